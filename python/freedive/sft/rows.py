"""The forms in which conversations are published, as one: a list of messages {"role", "content"}, with "tool_calls" where tools are called.

messages        OpenAI's, TRL's and UltraChat-200k's form; a column `tools` beside it
conversations   ShareGPT's: {"from": "human" | "gpt" | "system" | "function_call" | "observation", "value"}
prompt and completion, prompt and chosen (and rejected)    TRL's, texts or messages; of a pair the chosen one is learned
data            UltraChat's: texts, user and assistant in turn
turns           dialogue corpora: {"role" | "speaker", "text"}; SGD's service calls ("call", "result") become tool calls
prompt with replies     an OASST tree: one conversation for each path of the best-ranked replies; `ranking` gives people's order
message_id, parent_id   OASST's flat rows, put together into these trees
instruction (input, output or instances)    Alpaca's and self-instruct's
question and answer    GSM8K's and many quizzes'; also q and a
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]
FORMS = "messages, conversations, prompt + completion, prompt + chosen, UltraChat's data, turns, OASST (trees or flat rows), instruction + output, question + answer"
_ROLES = {
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatgpt": "assistant", "function_call": "assistant",
    "system": "system", "tool": "tool", "observation": "tool", "function": "tool",
}  # fmt: skip


def form_of(row: dict[str, Any]) -> str:
    """Which form a row has. ValueError for none."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "conversations"
    if "turns" in row:
        return "turns"
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return "tree"
    if "chosen" in row:
        return "chosen"
    if "prompt" in row and "completion" in row:
        return "completion"
    if "instruction" in row and ("output" in row or "instances" in row):
        return "instruction"
    if isinstance(row.get("data"), list):
        return "data"
    if "question" in row and "answer" in row or "q" in row and "a" in row:
        return "question"
    raise ValueError(f"a row needs 'messages'; it has {sorted(row)[:6]}")


def conversations(row: dict[str, Any]) -> list[list[Message]]:
    """The conversations of a row: one, or for an OASST tree one for each first reply that people ranked.

    Raises ValueError that says what is wrong with the row.
    """
    form = form_of(row)
    if form == "messages":
        return [_turns(row["messages"], "role", "content")]
    if form == "conversations":
        return [_turns(row["conversations"], *_keys(row["conversations"], ("from", "value"), ("role", "content")))]
    if form == "turns":
        return [_dialogue(row["turns"])]
    if form == "tree":
        return list(_tree(row["prompt"]))
    if form == "data":
        return [[{"role": ("user", "assistant")[i % 2], "content": _text(text, f"turn {i + 1}")} for i, text in enumerate(row["data"])]]
    if form == "instruction":
        return list(_instructions(row))
    if form == "question":
        question, answer = (row["question"], row["answer"]) if "question" in row and "answer" in row else (row["q"], row["a"])
        return [[{"role": "user", "content": _text(question, "the question")}, {"role": "assistant", "content": _text(answer, "the answer")}]]
    answer = "completion" if form == "completion" else "chosen"
    return [[*_part(row.get("prompt") or [], "user"), *_part(row[answer], "assistant")]]


@dataclass(frozen=True)
class Ranking:
    """Answers to one prompt, in the order that people put them in: what a reward model learns from."""

    prompt: list[Message]
    completions: list[list[Message]]
    ranks: list[int]  # 0 is best; equal ones are ties


def rankings(row: dict[str, Any]) -> list[Ranking]:
    """The orders a row holds: of chosen and rejected, of TRL-like prompt, completions and ranks, or of ranked siblings in an OASST tree.

    A prompt that is not given is what chosen and rejected begin with alike. Raises ValueError for a row without any order.
    """
    if "chosen" in row and "rejected" in row:
        pair = [_part(row[key], "assistant") for key in ("chosen", "rejected")]
        prompt = _part(row.get("prompt") or [], "user")
        shared = 0
        while not prompt and shared < min(map(len, pair)) and pair[0][shared] == pair[1][shared]:
            shared += 1
        return [Ranking(prompt or pair[0][:shared], [p[shared:] for p in pair], [0, 1])]
    if "completions" in row and "ranks" in row:
        completions, ranks = row["completions"], row["ranks"]
        if not isinstance(completions, list) or not isinstance(ranks, list):
            raise ValueError("completions and ranks must be lists")
        if len(completions) != len(ranks):
            raise ValueError(f"{len(completions)} completions have {len(ranks)} ranks")
        return [Ranking(_part(row.get("prompt") or [], "user"), [_part(c, "assistant") for c in completions], places(ranks))]
    if not isinstance(row.get("prompt"), dict) or "replies" not in row["prompt"]:
        raise ValueError("no order of answers: a row needs chosen and rejected, completions and ranks, or to be an OASST tree")
    return list(_ranked(row["prompt"], []))


def places(ranks: list[Any]) -> list[int]:
    """Ranks of any numbers as places from 0, equal ones equal: 0.4, 0.6, 0.4 are 0, 1, 0. Raises ValueError for what is no number."""
    if any(isinstance(r, bool) or not isinstance(r, (int, float)) or r != r for r in ranks):
        raise ValueError(f"ranks must be numbers, the lowest for the best; they are {ranks!r:.60}")
    order = sorted(set(ranks))
    return [order.index(r) for r in ranks]


def trees(rows: Iterable[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """OASST's flat rows (message_id, parent_id, text, role) as trees, in the order of their prompts; all other rows as they are."""
    nodes: dict[str, dict[str, Any]] = {}
    roots: list[tuple[int, dict[str, Any]]] = []
    waiting: list[tuple[str, dict[str, Any]]] = []
    for line, row in rows:
        if "message_id" not in row or "text" not in row:
            yield line, row
            continue
        node = {**row, "replies": []}
        nodes[str(row["message_id"])] = node
        if row.get("parent_id"):
            waiting.append((str(row["parent_id"]), node))
        else:
            roots.append((line, node))
    for parent, node in waiting:
        if parent in nodes:
            nodes[parent]["replies"].append(node)
    for line, node in roots:
        yield line, {"prompt": node}


# ---- one form each -------------------------------------------------------------------------------------------------


def _keys(turns: Any, *pairs: tuple[str, str]) -> tuple[str, str]:
    """The pair of keys that the first turn has."""
    first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
    return next((pair for pair in pairs if pair[0] in first), pairs[0])


def _text(content: Any, where: str) -> str:
    """A content as text; OpenAI's list of parts is joined."""
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        return "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{where} has a content that is no text, but {type(content).__name__}")
    return content


def _turns(turns: Any, role: str, text: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise ValueError("the conversation is no list of turns, or an empty one")
    out: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict) or role not in turn or text not in turn and not turn.get("tool_calls"):
            raise ValueError(f"turn {number} needs '{role}' and '{text}'")
        name = str(turn[role])
        message: Message = {"role": _ROLES.get(name.lower(), name)}
        calls = turn.get("tool_calls")
        if name.lower() == "function_call":  # ShareGPT's: the call itself is the text
            calls, message["content"] = [{"type": "function", "function": _json(turn[text], number)}], ""
        else:
            message["content"] = "" if calls and turn.get(text) is None else _text(turn[text], f"turn {number}")
        if calls:
            message["tool_calls"] = calls
        if message["role"] == "tool" and isinstance(turn.get("name"), str):
            message["name"] = turn["name"]
        out.append(message)
    return out


def _json(text: Any, number: int) -> Any:
    try:
        return json.loads(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"turn {number} is a call, and no JSON: {error}") from None


def _dialogue(turns: Any) -> list[Message]:
    """Turns with "text"; one with a "call" {"method", "parameters"} is three messages: the call, its result, and what is said then."""
    out: list[Message] = []
    role, _ = _keys(turns, ("speaker", "text"), ("role", "text"))
    for turn, message in zip(turns if isinstance(turns, list) else [], _turns(turns, role, "text"), strict=False):
        call = turn.get("call")
        if call is not None:
            if not isinstance(call, dict) or not isinstance(call.get("method"), str) or not isinstance(call.get("parameters"), dict):
                raise ValueError("a turn's call needs method and parameters")
            out += tool_messages(call["method"], call["parameters"], turn.get("result"))
        out.append(message)
    return out


def tool_messages(name: str, arguments: dict[str, Any], result: Any) -> list[Message]:
    """The assistant's call of a tool, and the tool's answer as JSON."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [{"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "name": name, "content": json.dumps(result, ensure_ascii=False)}]


def _part(value: Any, role: str) -> list[Message]:
    return [{"role": role, "content": value}] if isinstance(value, str) else _turns(value, "role", "content") if value else []


def _instructions(row: dict[str, Any]) -> Iterator[list[Message]]:
    instances = row.get("instances") or [row]
    if not isinstance(instances, list) or not all(isinstance(i, dict) for i in instances):
        raise ValueError("instances must be a list of objects with an output")
    for instance in instances:
        question = _text(row["instruction"], "the instruction")
        if given := instance.get("input"):
            question += "\n\n" + _text(given, "the input")
        yield [{"role": "user", "content": question}, {"role": "assistant", "content": _text(instance.get("output"), "the output")}]


def _tree(prompt: dict[str, Any]) -> Iterator[list[Message]]:
    """Each reply to the first prompt, then down the best-ranked replies, to the last turn of the assistant. None of a prompt that was taken back."""
    if prompt.get("deleted"):
        return
    for reply in sorted(_usable(prompt), key=_rank):
        path = [_said(prompt, "user")]
        node: dict[str, Any] | None = reply
        while node is not None:
            path.append(_said(node, "assistant"))
            following = sorted(_usable(node), key=_rank)
            node = following[0] if following else None
        if path[-1]["role"] == "user":
            path.pop()
        yield path


def _ranked(node: dict[str, Any], before: list[Message]) -> Iterator[Ranking]:
    """The ranked answers of the assistant to every prompt of a tree."""
    if node.get("deleted"):
        return
    path = [*before, _said(node, "user")]
    replies = _usable(node)
    ranked = sorted((r for r in replies if r.get("rank") is not None), key=_rank)
    if path[-1]["role"] == "user" and len(ranked) > 1:
        yield Ranking(path, [[_said(r, "assistant")] for r in ranked], places([r["rank"] for r in ranked]))
    for reply in replies:
        yield from _ranked(reply, path)


def _said(node: dict[str, Any], role: str) -> Message:
    return {"role": _ROLES.get(str(node.get("role", "")), role), "content": _text(node.get("text"), "a message of the tree")}


def _usable(node: dict[str, Any]) -> list[dict[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(r, dict) for r in replies):
        raise ValueError("replies must be a list of messages")
    return [r for r in replies if not r.get("deleted") and isinstance(r.get("text"), str) and r["text"].strip()]


def _rank(node: dict[str, Any]) -> tuple[bool, float]:
    """0 is best; what nobody ranked comes last."""
    rank = node.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, (int, float))):
        raise ValueError(f"a rank is {rank!r:.40}; it must be a number, 0 for the best")
    return (rank is None, rank or 0)
