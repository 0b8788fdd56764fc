"""Your own text: train a base model on a file and let it continue a sentence.   python 01_own_text.py [FILE_OR_FOLDER]"""

import sys
from pathlib import Path

import freedive
from freedive.pretrain.stage import PretrainConfig, run


def python_manual() -> Path:
    """Some English that every Python carries: the reference manual behind help()."""
    from pydoc_data.topics import topics

    path = Path("manual.txt")
    path.write_text("\n\n".join(topics[name] for name in sorted(topics))[:200_000], encoding="utf-8")
    return path


text = Path(sys.argv[1]) if len(sys.argv) > 1 else python_manual()

# The same as: freedive pretrain --text FILE --vocab-size 512 --depth 2 --context 64 --batch-tokens 1024 --steps 250 --out base
# Calling it again does nothing: base/ is there already. More steps and depth make better text.
run(PretrainConfig(text=text, out=Path("base"), vocab_size=512, depth=2, context=64, batch_tokens=1024, steps=250))

model = freedive.load("base")
print(model.generate("The function", max_new_tokens=40, temperature=0.7, seed=1))
