"""Conversations in which an assistant calls a tool, in TRL's form: `tool_calls` of one message, the answer in a message of role "tool".

The tool's answer stands in the row, so that a model learns what to do with one; it is masked when the row is trained on.
"""

from __future__ import annotations

from typing import Any

ARGUMENT = {"python": "code", "search": "query"}  # what each tool is given


def call(tool: str, text: str) -> dict[str, Any]:
    """An assistant's message that calls `tool` with `text`."""
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": tool, "arguments": {ARGUMENT[tool]: text}}}]}


def with_call(prompt: list[dict[str, Any]], tool: str, text: str, result: str, reply: str) -> list[dict[str, Any]]:
    """The prompt, a call, what the tool answered, and what the assistant then says."""
    return [*prompt, call(tool, text), {"role": "tool", "name": tool, "content": result}, {"role": "assistant", "content": reply}]
