"""Your own objective: any function of per-token log-probs and entropies, in NumPy.   python 04_own_objective.py   (after 01_own_text.py)

An objective is two lines of calculus: the derivative of your loss by each token's log-prob, and by each token's entropy. The model
does the rest. Here: the focal loss -(1 - p)^2 log p, which cares more about the tokens the model finds hard, less 0.01 entropy.
"""

import numpy as np

import freedive

lm = freedive.load("base", trainable=True)
ids = lm.tokenizer.encode("The for statement is used to iterate over the elements of a sequence. " * 2)
batch = freedive.Batch.next_token([ids])  # entry t of every array is about the token after position t; the last has none
learned = (batch.targets >= 0).astype(np.float32)
n = learned.sum()


def focal(logprobs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each token, and its derivative by the log-prob (dp / dlog p = p)."""
    p = np.exp(logprobs)
    return -((1 - p) ** 2) * logprobs, 2 * (1 - p) * p * logprobs - (1 - p) ** 2


for step in range(8):
    out = lm.forward(batch)
    loss, slope = focal(out.logprobs)
    lm.model.zero_grad()
    lm.backward(dlogprobs=slope * learned / n, dentropy=-0.01 * learned / n)
    norm = lm.model.adamw(lr=3e-3)
    print(f"step {step}: focal loss {(loss * learned).sum() / n:.3f}, entropy {out.entropy.sum() / n:.2f} nats, gradient norm {norm:.2f}")
