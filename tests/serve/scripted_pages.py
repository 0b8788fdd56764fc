"""Pages of a model that calls Python, in a process of their own: `python scripted_pages.py slots|json FOLDER`. Prints its address, ends with its input."""

from __future__ import annotations

import sys
from pathlib import Path

from serve_cases import TOKENIZER
from serve_http import Served, qwen_tokenizer

CODE = "sum(range(7)) * 2"
SCRIPTS = {
    "slots": (TOKENIZER, ["It is ", "<|python_start|>", CODE, "<|python_end|>", "42 é.", "<|im_end|>"]),
    "json": (qwen_tokenizer(), ["It is ", "<tool_call>", f'\n{{"name": "python", "arguments": {{"code": "{CODE}"}}}}\n', "</tool_call>", "<|im_end|>", "42 é.", "<|im_end|>"]),
}

if __name__ == "__main__":
    tokenizer, script = SCRIPTS[sys.argv[1]]
    with Served(tokenizer, context=4096, app={"pages": True, "conversations": Path(sys.argv[2])}) as served:
        served.script(*script)
        print(served.url, flush=True)
        sys.stdin.read()
