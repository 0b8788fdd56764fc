"""libFuzzer on the readers of other people's files, through atheris: python tests/fuzz/fuzz_readers.py READER [CORPUS] [libFuzzer options].

The rule is tests/model/test_open_fuzz.py's: whatever the bytes, the answer is a model (or a tokenizer that encodes and decodes) or a
UserError. Anything else ends the run, with the input kept as crash-*, timeout-* or oom-*. hypothesis draws 200 mutations of each file in the
ordinary tests; this goes on for as long as it is let, led by the branches of our readers that an input reaches.

READER `list` prints the names. Without CORPUS it begins from the whole files it damages. dev/fuzz.sh runs all of them for some seconds each.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["freedive"]):
    from freedive.inference.export import ExportConfig
    from freedive.inference.export import run as export
    from freedive.model import Model, open_weights, preset, save_pretrained
    from freedive.model.weights import parameter_shapes
    from freedive.runs import UserError
    from freedive.tokenizer import Tokenizer, byte_tokenizer, save_hf, train_tokenizer
    from freedive.tokenizer.sentencepiece import SentencePiece

HERE = Path(tempfile.mkdtemp(prefix="fuzz-"))  # libFuzzer leaves without a word to Python: dev/fuzz.sh clears it
TEXT = "the town lies on a river, and 12 boats lie there; naïve 你好"


def read_weights(path: Path) -> None:
    weights = open_weights(path)
    for name in parameter_shapes(weights.config):
        if weights.read(name).dtype != np.float32:
            raise TypeError(f"{name} is not float32")


def read_tokenizer(path: Path) -> None:
    tok = Tokenizer.load(path)
    tok.decode(tok.encode(TEXT))


def whole_files() -> Path:
    """A small llama as our folder, a Hugging Face folder and a GGUF file; a SentencePiece and a byte tokenizer; llama2.c's two files."""
    room = HERE / "whole"
    tok = train_tokenizer([TEXT * 20], 280)
    config = preset("llama3", vocab_size=tok.vocab_size, n_layer=1, max_positions=16, n_head=2, n_kv_head=1, d_model=8, head_dim=4, d_ff=8)
    save_pretrained(Model(config, max_tokens=16, max_seqs=1, threads=1, trainable=False), room / "ours")
    tok.save(room / "ours" / "tokenizer")
    export(ExportConfig(room / "ours", room / "m.gguf"))
    export(ExportConfig(room / "ours", room / "hf", to="hf"))
    save_hf(tok, room / "tok-hf")
    tok.save(room / "tok-ours")
    byte_tokenizer().save(room / "tok-bytes")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), " ", "a", "b", " a", "ab", " ab"]
    SentencePiece(pieces, [-float(i) for i in range(len(pieces))], [2, 3, 3] + [6] * 256 + [1] * 6).save(room / "tok-spm")
    floats = 262 * 8 + 8 + 8 * 8 + 2 * 4 * 8 + 8 * 8 + 8 + 3 * 16 * 8 + 8 + 8 * 4
    (room / "m.bin").write_bytes(np.array([8, 16, 1, 2, 1, 262, 8], np.int32).tobytes() + bytes(4 * floats))
    raw = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % b for b in range(256)), b" ", b"a", b" a"]
    (room / "tok.bin").write_bytes(struct.pack("<i", 7) + b"".join(struct.pack("<fi", -float(i), len(p)) + p for i, p in enumerate(raw)))
    return room


def one_file(name: str, *readers: Callable[[Path], None]) -> Callable[[bytes], None]:
    path = HERE / name

    def run(data: bytes) -> None:
        path.write_bytes(data)
        for read in readers:
            sentence_or_nothing(read, path)

    return run


def one_file_of(folder: Path, name: str, read: Callable[[Path], None]) -> Callable[[bytes], None]:
    """The file `name` of a copy of `folder` is what the fuzzer makes of it."""
    copy = Path(tempfile.mkdtemp(dir=HERE))
    shutil.copytree(folder, copy, dirs_exist_ok=True)

    def run(data: bytes) -> None:
        (copy / name).write_bytes(data)
        sentence_or_nothing(read, copy)

    return run


def edited_json(folder: Path, name: str, read: Callable[[Path], None]) -> Callable[[bytes], None]:
    """The file stays JSON: the input says which values are replaced or left out, and with what."""
    whole, run = json.loads((folder / name).read_text()), one_file_of(folder, name, read)

    def edit(data: bytes) -> None:
        provider, content = atheris.FuzzedDataProvider(data), whole
        for _ in range(provider.ConsumeIntInRange(1, 3)):
            content = replaced(provider, content)
        run(json.dumps(content).encode("utf-8", "surrogatepass"))

    return edit


def replaced(f: Any, content: Any) -> Any:
    if isinstance(content, dict) and content and f.ConsumeIntInRange(0, 4):
        key = sorted(content)[f.ConsumeIntInRange(0, len(content) - 1)]
        if f.ConsumeIntInRange(0, 6) == 0:
            return {k: v for k, v in content.items() if k != key}
        return content | {key: replaced(f, content[key])}
    if isinstance(content, list) and content and f.ConsumeIntInRange(0, 4):
        at = f.ConsumeIntInRange(0, len(content) - 1)
        return [*content[:at], replaced(f, content[at]), *content[at + 1 :]]
    kind = f.ConsumeIntInRange(0, 9)
    if kind < 4:
        return (None, True, {}, [])[kind]
    if kind == 4:
        return f.ConsumeFloat()
    if kind == 5:
        return f.ConsumeUnicode(8)
    if kind == 6:
        return [f.ConsumeIntInRange(-3, 3) for _ in range(f.ConsumeIntInRange(1, 3))]
    return f.ConsumeIntInRange(-(2**63), 2**63 - 1) >> f.ConsumeIntInRange(0, 63)


def sentence_or_nothing(read: Callable[[Path], None], path: Path) -> None:
    try:
        read(path)
    except UserError as error:
        if len(str(error)) > 3000:
            raise ValueError(f"a sentence of {len(str(error))} characters") from error


def targets(room: Path) -> dict[str, tuple[Path | None, Callable[[bytes], None]]]:
    """name -> (the file it begins from, what it does with an input)"""
    out: dict[str, tuple[Path | None, Callable[[bytes], None]]] = {
        "gguf": (room / "m.gguf", one_file("x.gguf", read_weights, read_tokenizer)),
        "llama2c": (room / "m.bin", one_file("x.bin", read_weights)),
        "llama2c_tokenizer": (room / "tok.bin", one_file("t.bin", read_tokenizer)),
        "safetensors": (room / "hf" / "model.safetensors", one_file_of(room / "hf", "model.safetensors", read_weights)),
        "config": (room / "hf" / "config.json", one_file_of(room / "hf", "config.json", read_weights)),
        "config_edits": (None, edited_json(room / "hf", "config.json", read_weights)),
    }
    for folder in ("tok-hf", "tok-ours", "tok-bytes", "tok-spm"):
        for file in sorted((room / folder).iterdir()):
            name = f"{folder}-{file.name}".replace("tok-", "tokenizer_")
            out[name] = (file, one_file_of(room / folder, file.name, read_tokenizer))
            if file.suffix == ".json":
                out[name + "_edits"] = (None, edited_json(room / folder, file.name, read_tokenizer))
    return out


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):
        known = targets(whole_files())
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        print("\n".join(known))
        shutil.rmtree(HERE)
        sys.exit(0 if sys.argv[1:] == ["list"] else 2)
    seed, run = known[sys.argv.pop(1)]
    if all(a.startswith("-") for a in sys.argv[1:]):
        corpus = HERE / "corpus"
        corpus.mkdir()
        if seed is not None:
            shutil.copy(seed, corpus)
        sys.argv.insert(1, str(corpus))
    atheris.Setup(sys.argv, run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
