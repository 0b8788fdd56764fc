"""Your own chats: turn a base model into one that answers.   python 02_own_chats.py [CHATS.jsonl]      (after 01_own_text.py)

A line of CHATS.jsonl is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.
"""

import json
import sys
from pathlib import Path

import freedive
from freedive.sft.stage import SFTConfig, run


def sums() -> Path:
    """Conversations about sums up to 3 + 3."""
    path = Path("chats.jsonl")
    with path.open("w", encoding="utf-8") as f:
        for a in range(4):
            for b in range(4):
                turns = [{"role": "user", "content": f"What is {a}+{b}?"}, {"role": "assistant", "content": f"It is {a + b}."}]
                f.write(json.dumps({"messages": turns}) + "\n")
    return path


chats = Path(sys.argv[1]) if len(sys.argv) > 1 else sums()

# The same as: freedive sft --model base --data FILE --steps 120 --batch-tokens 512 --lr 4e-3 --out chat
run(SFTConfig(model=Path("base"), data=[str(chats)], out=Path("chat"), steps=120, batch_tokens=512, lr=4e-3))

assistant = freedive.load("chat")
for question in ("What is 1+2?", "What is 3+3?"):
    print(question, "->", assistant.chat(question, max_new_tokens=20))
