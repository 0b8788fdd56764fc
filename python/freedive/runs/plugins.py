"""A function of the user's, found by name: a reward, a checker."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import UserError


def find_function(name: str, built_in: Mapping[str, Callable[..., Any]], what: str) -> Callable[..., Any]:
    """A built-in by its name, else `package.module:function` or `path/to/file.py:function`.

    `what` names the thing in messages ("reward", "checker"). Raises UserError when there is no such function, or its file or module
    cannot be run.
    """
    if name in built_in:
        return built_in[name]
    where, _, function = name.rpartition(":")
    if not where:
        raise UserError(f"there is no {what} {name!r}", hint=f"built in: {', '.join(built_in)}; or module:function, or file.py:function")
    if where.endswith(".py") and not Path(where).is_file():
        raise UserError(f"no such {what} file: {where}")
    try:
        module = _run_file(Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as error:
        told = f"the {what}'s {'file' if where.endswith('.py') else 'module'} {where} cannot be imported: {type(error).__name__}: {error}"
        raise UserError(told, hint="your own function can be given as file.py:function") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{where} has no function {function!r}", hint=f"the {what} is the name after the colon")
    return found


def function_file(name: str) -> Path | None:
    """The user's file that a function comes from, which is then one of the run's inputs; None for built-in and imported ones."""
    where = name.rpartition(":")[0]
    return Path(where) if where.endswith(".py") else None


def _run_file(path: Path) -> ModuleType:
    """The file as a module, registered as imports are: dataclasses and pickles in it look themselves up there."""
    name = f"freedive_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
