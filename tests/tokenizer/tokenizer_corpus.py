"""Text for the tokenizer tests, made here so that no test needs a file."""

import random

STEMS = (
    "the of and to in a is that it was for on are with as his they at be this from have or by one had not but what all".split()
)
ENDS = ["", "", "", "s", "ing", "er", "ly", "ness"]
ODD = "naïve café Ünïcödé żółw 你好世界 привет 🙂 it's they'll 2024 3.14 x=1; ... e-mail".split() + ["\n\n", "\t"]


def corpus(words: int = 20_000) -> str:
    """English-like text with digits, line ends, accents and other scripts."""
    rng = random.Random(0)

    def word() -> str:
        if rng.random() < 0.15:
            return rng.choice(ODD)
        compound = rng.choice(STEMS) if rng.random() < 0.3 else ""
        return compound + rng.choice(STEMS) + rng.choice(ENDS)

    return " ".join(word() for _ in range(words))
