"""Published vocabularies in their own files: Hugging Face's `tokenizer.json`, and the one inside of a GGUF file.

Both list merges, tiktoken ranks tokens. The two give the same ids if each token's canonical merge (what BPE with lower ranks
leaves of its bytes: two parts) is among the listed ones, in the order of ids. Proof: tiktoken joins x and y to t only after all
lower ranks are done, and within the bytes of t that leaves what it leaves of t alone, the canonical pair. So the condition is
checked when a file is read, and files that break it are refused instead of giving slightly other ids.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from freedive import _core
from freedive.runs import UserError

from .chat_config import ChatConfig
from .chat_llama2 import llama2_form
from .known import GPT2_PATTERN, O200K_PATTERN, byte_of_character
from .sentencepiece import SentencePiece, from_hf_model
from .tokenizer import END_OF_TEXT, Tokenizer
from .train import QWEN2_PATTERN

if TYPE_CHECKING:
    from freedive.model.gguf import GGUF

# Every digit alone, then GPT-2's split, as one expression. White space before a digit is the end of what GPT-2's split sees.
SMOLLM_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's names (tokenizer.ggml.pre)
GGUF_PATTERNS = {
    "gpt-2": GPT2_PATTERN,
    "smollm": SMOLLM_PATTERN,
    "qwen2": QWEN2_PATTERN,
    "llama-bpe": LLAMA3_PATTERN,
    "llama3": LLAMA3_PATTERN,
    "gpt-4o": O200K_PATTERN,
}
MAX_TOKEN_BYTES = 4096  # published vocabularies have runs of 128 spaces
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5  # llama.cpp's token types
_BOS_NAMES = (END_OF_TEXT, "<|begin_of_text|>", "<s>", "<bos>")
# every class of character that a split pattern may treat differently
_PROBE = string.printable + " it's  naïve ÅǅʰªЖשأ你あ한ก้ \u0301\u20dd ١२Ⅷ²½ ‿—«»„‟±€^√\u00a0\u2028\u2029\u200b\u00ad\ue000🙂👩‍👩‍👧 \t \r\n\n x"


# A system turn whose content is plain text: of several (Qwen2.5 has one for conversations with tools) the last, which is the plain one.
_DEFAULT_SYSTEM = re.compile(r"(?s).*<\|im_start\|>system(?:\\n|\n)((?:[^<{}'\\]|\\')+)<\|im_end\|>")


def is_hf(path: Path) -> bool:
    """True for a JSON file with a Hugging Face tokenizer in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("format") is None and isinstance(content.get("model"), dict)


def from_hf(path: str | Path) -> Tokenizer:
    """Read a byte-level BPE `tokenizer.json` (its file or folder), and the chat form from `tokenizer_config.json` beside it.

    Raises UserError for another kind of tokenizer, and for steps that freedive does not reproduce exactly.
    """
    path = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    where = f"{path} (a Hugging Face tokenizer)"
    content, model = _json(path), {}
    if isinstance(content.get("model"), dict):
        model = content["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise UserError(f"{where}: only byte-level BPE can be read, this is {model.get('type')!r:.40}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(key):
            raise UserError(f"{where}: model.{key} is not supported")
    specials: dict[str, int] = {}
    added_tokens = content.get("added_tokens") or []
    if not isinstance(added_tokens, list):
        raise UserError(f"{where}: added_tokens is {added_tokens!r:.80}, not a list")
    for added in added_tokens:
        name, index = (added.get("content"), added.get("id")) if isinstance(added, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(index, int):
            raise UserError(f"{where}: an added token is {added!r:.80}")
        if not added.get("special") and not (name[:1] in "<[" and name[-1:] in ">]"):
            raise UserError(f"{where}: the added token {name!r} is ordinary text, which freedive would encode differently")
        specials[name] = index
    beside = path.with_name("tokenizer_config.json")
    config = _json(beside) if beside.is_file() else {}
    bos, template = _name(config.get("bos_token")), config.get("chat_template")
    if template is None and (file := path.with_name("chat_template.jinja")).is_file():
        template = _text(file)
    if isinstance(template, list):  # several, by name
        template = next((t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None)
    eos, add_bos = _ends(path, config, specials), _adds_bos(content.get("post_processor"), config, bos)
    if model.get("byte_fallback"):
        return from_hf_model(content, specials, where, bos, eos, add_bos, llama2_form(template, specials))
    spelled = _Spelling(where)
    vocab = _vocab(model["vocab"], specials, spelled)
    pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) if isinstance(m, list) else () for m in model["merges"]]
    normalizer = _normalizer(content.get("normalizer"), where)
    pattern = _hf_pattern(content.get("pre_tokenizer"), where)
    return _build(vocab, pairs, specials, pattern, spelled, normalizer, bos, template, bool(model.get("ignore_merges")), eos, add_bos)


def _name(token: Any) -> str | None:
    """A token of tokenizer_config.json: its text, or an object with it."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _ends(path: Path, config: Mapping[str, Any], specials: Mapping[str, int]) -> tuple[str, ...]:
    """Tokens that end a text: the tokenizer's eos_token, and those of generation_config.json and config.json beside it, often a list."""
    names = {_name(config.get("eos_token"))}
    by_id = {index: name for name, index in specials.items()}
    for file in ("generation_config.json", "config.json"):
        if path.with_name(file).is_file():
            ids = _json(path.with_name(file)).get("eos_token_id")
            names |= {by_id.get(i) for i in (ids if isinstance(ids, list) else [ids]) if isinstance(i, int)}
    return tuple(sorted(n for n in names if n is not None and n in specials))


def _adds_bos(post_processor: Any, config: Mapping[str, Any], bos: str | None) -> bool:
    """Whether the tokenizer puts bos before a text: a step after splitting does it, or the configuration says so."""
    if isinstance(post_processor, dict):
        steps = post_processor.get("processors") if post_processor.get("type") == "Sequence" else [post_processor]
        for step in steps if isinstance(steps, list) else []:
            if isinstance(step, dict) and step.get("type") == "TemplateProcessing":
                return bos is not None and repr(bos) in repr(step.get("single"))
    return bool(config.get("add_bos_token")) and bos is not None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8") if path.stat().st_size < 1 << 20 else None
    except (OSError, UnicodeDecodeError):
        return None


def from_gguf(path: str | Path) -> Tokenizer:
    """Read the byte-level BPE tokenizer of a GGUF file. Raises UserError for another kind, or an unknown split pattern."""
    from freedive.model.gguf import read_gguf

    return from_gguf_metadata(read_gguf(path))


def from_gguf_metadata(file: GGUF) -> Tokenizer:
    """As `from_gguf`, from a header that has been read already."""
    where = str(file.path)
    kind, name = file.get("tokenizer.ggml.model", str), file.get("tokenizer.ggml.pre", str, "default")
    if kind == "llama":
        return _gguf_sentencepiece(file, where)
    if kind != "gpt2":
        what = "none" if kind is None else repr(kind)
        raise UserError(f"{where}: its tokenizer is {what}", hint="byte-level BPE ('gpt2') and SentencePiece BPE ('llama') can be read")
    if name not in GGUF_PATTERNS:
        raise UserError(f"{where}: unknown split pattern {name!r:.40}", hint=f"known: {', '.join(GGUF_PATTERNS)}")
    tokens, merges = file.get("tokenizer.ggml.tokens", list, []), file.get("tokenizer.ggml.merges", list, [])
    types = _numbers(file, "tokenizer.ggml.token_type", [1] * len(tokens))
    if len(types) != len(tokens) or not {*map(type, tokens), *map(type, merges)} <= {str}:
        raise UserError(f"{where}: {len(tokens):,} tokens with {len(types):,} types, or tokens that are not text")
    if len(set(tokens)) != len(tokens):
        raise UserError(f"{where}: a token is listed twice")
    specials = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (_CONTROL, _USER_DEFINED)}
    words = {t: i for i, (t, kind) in enumerate(zip(tokens, types, strict=True)) if kind != _UNUSED}
    spelled = _Spelling(where)
    vocab = _vocab(words, specials, spelled)
    pairs = [tuple(m.split(" ")) for m in merges]
    # Not written in published files; Qwen's own tokenizers do it, llama.cpp does not. Files of ours say it
    normalizer = file.get("freedive.normalizer", str, "NFC" if name == "qwen2" else "") or None
    index = file.metadata.get("tokenizer.ggml.bos_token_id")
    bos = tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
    template = file.metadata.get("tokenizer.chat_template")
    whole = name.startswith("llama")  # llama.cpp sets ignore_merges for these, and puts bos in front
    add_bos = file.get("tokenizer.ggml.add_bos_token", bool, whole)
    return _build(vocab, pairs, specials, GGUF_PATTERNS[name], spelled, normalizer, bos, template, whole, _gguf_ends(file, tokens, specials), add_bos)


def _numbers(file: GGUF, key: str, default: list[int], kinds: str = "iu") -> list[Any]:
    """An array of numbers of NumPy's `kinds` ("iu": integers). UserError for anything else under that name."""
    value = file.metadata.get(key)
    if value is None:
        return default
    if getattr(getattr(value, "dtype", None), "kind", "") not in (*kinds,):
        raise UserError(f"{file.path}: {key!r} is no array of {'integers' if kinds == 'iu' else 'numbers'}")
    return value.tolist()


def _gguf_ends(file: GGUF, tokens: list[str], specials: Mapping[str, int]) -> tuple[str, ...]:
    ids = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot")]
    names = {tokens[i] for i in ids if type(i) is int and 0 <= i < len(tokens)}
    return tuple(sorted(names & specials.keys()))


def _gguf_sentencepiece(file: GGUF, where: str) -> Tokenizer:
    """SentencePiece's pieces as llama.cpp keeps them, with the chat form if it is Llama 2's."""
    pieces, scores = file.get("tokenizer.ggml.tokens", list, []), _numbers(file, "tokenizer.ggml.scores", [], "iuf")
    types = _numbers(file, "tokenizer.ggml.token_type", [])
    index = file.get("tokenizer.ggml.bos_token_id", int, 1)
    if len({len(pieces), len(scores), len(types)}) != 1 or not 0 <= index < len(pieces) or not isinstance(pieces[index], str):
        raise UserError(f"{where}: {len(pieces):,} pieces, {len(scores):,} scores, {len(types):,} types, bos {index}")
    specials = {p: i for i, (p, t) in enumerate(zip(pieces, types, strict=True)) if t in (_CONTROL, _USER_DEFINED)}
    prefix = file.get("tokenizer.ggml.add_space_prefix", bool, True)
    chat = llama2_form(file.metadata.get("tokenizer.chat_template"), specials)
    try:
        return SentencePiece(pieces, scores, types, add_prefix=prefix, bos=pieces[index],
                             eos=_gguf_ends(file, pieces, specials), add_bos=file.get("tokenizer.ggml.add_bos_token", bool, True), chat=chat)  # fmt: skip
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: a score or type is not a number: {error}") from None
    except UserError as error:
        raise UserError(f"{where}: {error.message}", hint=error.hint) from None


def chat_form(template: Any, specials: Mapping[str, int], bos: bool) -> ChatConfig | None:
    """The chat form that a Jinja template writes, if it is one of two that models share; else None. Nothing is executed.

    A default system message that some templates add (SmolLM2, Qwen2.5) is taken over: it stands in them as plain text.
    """
    if not isinstance(template, str):
        return None
    if "<|im_start|>" in template and {"<|im_start|>", "<|im_end|>"} <= specials.keys():
        if "<|im_sep|>" in template and "<|im_sep|>" in specials:
            return ChatConfig(bos="bos_token" in template and bos)
        default = _DEFAULT_SYSTEM.search(template) if "messages[0]" in template else None
        return ChatConfig(sep="", sep_text="\n", after="\n", bos="bos_token" in template and bos, default_system=default[1].replace("\\'", "'") if default else "")
    llama = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    if llama[0] in template and set(llama) <= specials.keys():
        return ChatConfig(start=llama[0], sep=llama[1], sep_text="\n\n", end=llama[2], bos=bos)
    return None


def _build(
    tokens: dict[bytes, int], pairs: list[tuple[str, ...]], specials: dict[str, int], pattern: str, spelled: _Spelling, normalizer: str | None,
    bos: Any, template: Any, ignore_merges: bool, eos: tuple[str, ...] = (), add_bos: bool = False,
) -> Tokenizer:  # fmt: skip
    where = spelled.where
    _check_merges(tokens, pairs, spelled, ignore_merges)
    missing = bytes(b for b in range(256) if bytes((b,)) not in tokens)
    # The token that opens documents. Chat models often name <|im_start|> here, which is no such thing
    names = [bos] if isinstance(bos, str) and bos in specials and not bos.startswith("<|im_") else []
    begin = next((name for name in [*names, *_BOS_NAMES] if name in specials), END_OF_TEXT)
    chat = chat_form(template, specials, begin in specials)
    try:
        tok = Tokenizer("bpe", tokens, specials, pattern, chat, bos=begin, normalizer=normalizer, missing_bytes=missing, add_bos=add_bos, eos=eos)
    except UserError as error:
        raise UserError(f"{where}: {error.message}", hint=error.hint) from error
    probe = _PROBE.encode().translate(None, missing).decode("utf-8", "ignore")
    if normalizer is None and tok.decode(tok.encode(probe)) != probe:
        raise UserError(f"{where}: its split pattern loses characters", hint=f"pattern: {pattern[:200]}")
    return tok


def _check_merges(tokens: dict[bytes, int], pairs: Iterable[tuple[str, ...]], spelled: _Spelling, ignore_merges: bool) -> None:
    """UserError unless merging by rank does what the listed merges do; see the top of this file."""
    place: dict[tuple[bytes, bytes], int] = {}
    where = spelled.where
    for number, pair in enumerate(pairs):
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str):
            raise UserError(f"{where}: merge {number} is not a pair of tokens: {pair!r:.80}")
        left, right = spelled[pair[0]], spelled[pair[1]]
        if left not in tokens or right not in tokens or left + right not in tokens:
            raise UserError(f"{where}: merge {number} ({pair[0]} {pair[1]}) is made of or makes something that is no token")
        place.setdefault((left, right), number)
    ordered = sorted(tokens, key=tokens.__getitem__)
    longest = max(map(len, ordered), default=0)
    if longest > MAX_TOKEN_BYTES:
        raise UserError(f"{where}: a token has {longest:,} bytes; the limit is {MAX_TOKEN_BYTES:,}")
    last = -1
    for token, first in zip(ordered, _core.first_parts(ordered).tolist(), strict=True):  # 48,900 tokens: 0.4 s in Python, 0.03 s there
        if first == 0 or (first < 0 and ignore_merges):  # a single byte; found as a whole piece only, and never by merging: both ways
            continue
        here = place.get((token[:first], token[first:]), -1) if first > 0 else -1
        if here <= last:
            why = "is not made by its merges" if here < 0 else "comes before a merge with a lower id"
            raise UserError(f"{where}: token {tokens[token]} ({token!r}) {why}, so ids would differ from the original's")
        last = here


def _hf_pattern(pre: Any, where: str) -> str:
    steps = pre.get("pretokenizers") if isinstance(pre, dict) and pre.get("type") == "Sequence" else [pre]
    if isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps):
        kinds = [step.get("type") for step in steps]
        last = steps[-1]
        if kinds[-1:] == ["ByteLevel"] and not last.get("add_prefix_space"):
            own = last.get("use_regex", True)
            if kinds == ["ByteLevel"]:
                return GPT2_PATTERN if own else r"[\s\S]+"  # not split at all
            if kinds == ["Digits", "ByteLevel"] and own and steps[0].get("individual_digits"):
                return SMOLLM_PATTERN
            if kinds == ["Split", "ByteLevel"] and not own:
                split = steps[0]
                pattern = split.get("pattern", {})
                pattern = pattern.get("Regex") if isinstance(pattern, dict) else None
                keeps = (split.get("behavior"), bool(split.get("invert"))) in (("Isolated", False), ("Removed", True))
                if isinstance(pattern, str) and keeps:
                    return pattern
    known = "ByteLevel, Digits + ByteLevel, or Split + ByteLevel"
    raise UserError(f"{where}: how it splits text is not supported: {json.dumps(pre)[:160]}", hint=f"supported: {known}")


def _normalizer(step: Any, where: str) -> str | None:
    if step is None or (isinstance(step, dict) and step.get("type") == "Sequence" and not step.get("normalizers")):
        return None
    if isinstance(step, dict) and step.get("type") in ("NFC", "NFD", "NFKC", "NFKD"):
        return str(step["type"])
    raise UserError(f"{where}: the normalizer {json.dumps(step)[:120]} is not supported", hint="supported: NFC and its relatives")


def _vocab(words: Mapping[str, Any], specials: Mapping[str, int], spelled: _Spelling) -> dict[bytes, int]:
    """The ordinary tokens: their bytes, written with GPT-2's printable characters in the files."""
    reserved = set(specials.values())
    out: dict[bytes, int] = {}
    for word, index in words.items():
        if not isinstance(index, int) or isinstance(index, bool):
            raise UserError(f"{spelled.where}: the id of {word!r:.40} is {index!r:.40}")
        if index not in reserved:
            out[spelled[word]] = index
    return out


class _Spelling(dict[str, bytes]):
    """The bytes of words, each worked out once: parts of merges occur many times."""

    def __init__(self, where: str):
        super().__init__()
        self.where = where

    def __missing__(self, word: str) -> bytes:
        self[word] = spelled = _bytes(word, self.where)
        return spelled


def _bytes(word: str, where: str) -> bytes:
    try:
        return word.translate(_LATIN_1).encode("latin-1")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: {word[error.start]!r} in the token {word!r:.60} stands for no byte") from None


# each of GPT-2's printable characters to the character of its byte; other characters below 256 to one that has no byte
_LATIN_1 = {b: 0xFFFF for b in range(256)} | {ord(character): b for character, b in byte_of_character().items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} could not be read: {error.strerror}", hint="give a tokenizer.json or the folder that holds it") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", hint="the file is damaged: fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content
