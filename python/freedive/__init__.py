"""freedive: everything in "Deep Dive into LLMs like ChatGPT", on your own machine.

The names below are the public API. They are imported when first used (PEP 562), so that `import freedive` takes milliseconds;
`__init__.pyi` tells type checkers the same. Everything else is reachable as a submodule and may change.
"""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "load": "freedive.inference",
    "Model": "freedive.model",
    "DecoderConfig": "freedive.model",
    "preset": "freedive.model",
    "Batch": "freedive.model",
    "Tokenizer": "freedive.tokenizer",
    "train_tokenizer": "freedive.tokenizer",
    "render": "freedive.tokenizer",
    "Engine": "freedive.inference",
    "UserError": "freedive.runs",
}
_MODULES = ("ops", "objectives")

__all__ = ["Batch", "DecoderConfig", "Engine", "Model", "Tokenizer", "UserError", "__version__", "load", "objectives", "ops", "preset", "render", "train_tokenizer"]  # fmt: skip # noqa: E501, F822


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"freedive.{name}")
    else:
        raise AttributeError(f"module 'freedive' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("freedive")
    except metadata.PackageNotFoundError:  # used from the source tree
        return "0.1.0"
