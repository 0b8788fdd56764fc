"""Load a model folder and see what it thinks of a text, token by token.   python 06_load_and_score.py [FOLDER] [TEXT]   (after 01)

Bits per byte measure a model on a text whatever its tokenizer is: 8 is knowing nothing, English is worth about 1.
"""

import sys

import numpy as np

import freedive

folder = sys.argv[1] if len(sys.argv) > 1 else "base"
text = sys.argv[2] if len(sys.argv) > 2 else "The function returns a new list."

model = freedive.load(folder)
ids, logprobs = model.score(text)

print(f"{'token':>16}  log-prob  probability")
for i, logprob in zip(ids, logprobs):
    print(f"{model.tokenizer.token_bytes(i)!r:>16}  {logprob:8.3f}  {np.exp(logprob):11.4f}")
bits = -float(logprobs.sum(dtype=np.float64)) / np.log(2)
print(f"{len(ids)} tokens, {bits / len(text.encode()):.2f} bits per byte")
