"""Configurations: frozen dataclasses, their JSON form inside run.json, how two of them differ, and TOML files of them.

    @dataclass(frozen=True)
    class PretrainConfig:
        data: Path = option(help="folder made by `freedive data`")             # no default: required
        steps: int = option(2000, "optimizer steps")
        threads: int | None = option(None, "CPU threads", hash=False)          # does not change the result

Fields with `hash=False`, and those named in NEVER_HASHED, are not part of what identifies a run: changing them neither asks for
--force nor changes a byte of run.json. Paths never are either: inputs count by content, other paths by their last part.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import json
import os
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from .atomic import plain
from .errors import UserError

Config = TypeVar("Config")

NEVER_HASHED = frozenset({"out", "force", "dry_run", "threads", "quiet", "report_to"})


def option(default: Any = dataclasses.MISSING, help: str = "", *, hash: bool = True, positional: bool = False) -> Any:
    """A dataclass field with its help text for the command line. Lists and dicts as defaults are copied for each instance."""
    metadata = {"help": help, "hash": hash, "positional": positional}
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_at_least(config: Any, low: float, *names: str) -> None:
    """UserError for the first of these fields that is below `low` or not a finite number; None passes (it means "derive it")."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not low <= value < float("inf"):
            hint = f"--{name.replace('_', '-')} {max(low, 1):g}" if isinstance(value, int) else ""  # 1 is no learning rate to propose
            raise UserError(f"{name} is {value}, it must be at least {low:g}", hint=hint)


def hashed_fields(config: Any) -> list[dataclasses.Field[Any]]:
    """The fields that identify a run."""
    return [f for f in dataclasses.fields(config) if f.metadata.get("hash", True) and f.name not in NEVER_HASHED]


def config_json(config: Any, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """The identifying part of a configuration as JSON. Inputs become "(input NAME)", other paths their last part."""
    names = {path: name for name, value in (inputs or {}).items() for path in input_paths(value)}

    def convert(value: Any) -> Any:
        if isinstance(value, Path):
            known = names.get(_absolute(value))
            return f"(input {known})" if known else value.name
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: convert(getattr(value, f.name)) for f in hashed_fields(value)}
        if isinstance(value, enum.Enum):
            return value.name
        if isinstance(value, (list, tuple)):
            return [convert(item) for item in value]
        if isinstance(value, dict):
            return {str(key): convert(item) for key, item in value.items()}
        return plain(value)

    result = {}
    for f in hashed_fields(config):
        value = getattr(config, f.name)
        result[f.name] = f"(input {f.name})" if (inputs or {}).get(f.name) is not None else convert(value)
    return result


def input_paths(value: Any) -> list[str]:
    """Absolute paths of one entry of a stage's inputs: a path, a list of them, or None."""
    if value is None:
        return []
    if isinstance(value, (str, os.PathLike)):
        return [_absolute(value)]
    return [_absolute(item) for item in value]


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.realpath(path)


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two config_json, as "field was 1, now 2"."""
    found = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif isinstance(a, list) and isinstance(b, list) and "(input inputs)" in (*a, *b):
            found += [] if a == b else ["other inputs were given"]
        elif a != b or type(a) is not type(b) and not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
            found.append(f"{prefix}{key} was {_short(a)}, now {_short(b)}")
    return found


def told(wrong: list[str]) -> str:
    """Differences as part of a sentence: the first few; what a stage's own settings are needs no "config."."""
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(difference.removeprefix("config.") for difference in wrong[:3]) + more


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


# TOML


def read_toml(path: str | os.PathLike[str], cls: type) -> dict[str, Any]:
    """The settings of a TOML file, converted to the types of the dataclass `cls`. Keys may be written with - or _."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise UserError(f"no such configuration file: {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; a TOML file was expected") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None
    return _settings(table, cls, str(path), "")


def load_toml(path: str | os.PathLike[str], cls: type[Config]) -> Config:
    """A configuration from a TOML file. UserError for unknown keys, wrong types and missing required keys."""
    values = read_toml(path, cls)
    missing = [f.name for f in dataclasses.fields(cls) if required(f) and f.name not in values]  # type: ignore[arg-type]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}", hint="add it to the file")
    return cls(**values)


def required(f: dataclasses.Field[Any]) -> bool:
    """True for a field without a default."""
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _settings(table: dict[str, Any], cls: type, path: str, prefix: str) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    allowed = [f.name for f in dataclasses.fields(cls) if f.init]
    values = {}
    for raw, value in table.items():
        key = raw.replace("-", "_")
        if key not in allowed:
            import difflib

            close = difflib.get_close_matches(key, allowed, n=3)
            guess = f"did you mean {' or '.join(close)}? " if close else ""
            raise UserError(f"{path}: unknown key {prefix}{raw}", hint=f"{guess}allowed keys: {', '.join(allowed)}")
        values[key] = _convert(value, hints[key], path, prefix + raw)
    return values


class _Mismatch(Exception):
    pass


def _convert(value: Any, kind: Any, path: str, key: str) -> Any:
    try:
        return _as(value, kind, path, key)
    except _Mismatch:
        raise UserError(f"{path}: {key} must be {describe(kind)}; found {_short(plain_toml(value))}") from None


def _as(value: Any, kind: Any, path: str, key: str) -> Any:
    """`value` as the annotated type; _Mismatch if it is none."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is typing.Annotated:
        return _as(value, args[0], path, key)
    if origin is typing.Literal:
        if not any(value == a and type(value) is type(a) for a in args):
            raise _Mismatch
        return value
    if origin in (typing.Union, types.UnionType):
        for option_kind in args:
            try:
                return _as(value, option_kind, path, key)
            except _Mismatch:
                continue
        raise _Mismatch
    if origin in (list, tuple, collections.abc.Sequence):
        if not isinstance(value, list):
            raise _Mismatch
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            if len(value) != len(args):
                raise _Mismatch
            return tuple(_as(v, a, path, key) for v, a in zip(value, args, strict=True))
        items = [_as(v, args[0] if args else Any, path, key) for v in value]
        return items if origin is list else tuple(items)
    if origin is dict or kind is dict:
        if not isinstance(value, dict):
            raise _Mismatch
        return {k: _as(v, args[1] if args else Any, path, key) for k, v in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise _Mismatch
        return kind(**_settings(value, kind, path, key + "."))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value in kind.__members__:
            return kind[value]
        raise _Mismatch
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None) and value is None or isinstance(kind, type) and type(value) is kind:
        return value
    raise _Mismatch


def describe(kind: Any) -> str:
    """A type for a person: `int | None` -> "a whole number"."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(a) for a in args if a is not type(None))
    if origin is typing.Literal:
        return "one of " + ", ".join(json.dumps(a) for a in args)
    if origin in (list, tuple, collections.abc.Sequence):
        return "a list" + (f" ({describe(args[0])} each)" if args else "")
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return "one of " + ", ".join(kind.__members__)
    if dataclasses.is_dataclass(kind) or origin is dict:
        return "a table"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", Path: "a path (a string)"}
    return words.get(kind, str(kind))


def plain_toml(value: Any) -> Any:
    """A TOML value for an error message (dates have no JSON form)."""
    try:
        return plain(value)
    except TypeError:
        return str(value)
