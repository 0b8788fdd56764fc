"""Hugging Face's `tokenizer.json` and `tokenizer_config.json`, so that an export runs in transformers, vLLM and llama.cpp.

tiktoken keeps ranks, Hugging Face keeps merges. The merge that made a token is found by running BPE on its bytes with lower
ranks only: exactly two parts remain. Unlike freedive's own renderer, those programs render a string and split it again, so
there a user's text *can* hold a special token: a limit of the format, not of the ids.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from freedive.runs import UserError

from .chat_config import ChatConfig
from .chat_llama2 import TEMPLATE
from .sentencepiece import BYTE, NORMAL, SPACE, UNKNOWN, SentencePiece
from .tokenizer import Tokenizer, byte_pairs

# tiktoken's patterns use possessive quantifiers, which only make matching faster; Oniguruma (tokenizers) gives them another
# meaning.
_PLAIN_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PLAIN_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def to_hf(tok: Tokenizer) -> dict[str, dict[str, Any]]:
    """Return the contents of `tokenizer.json` and `tokenizer_config.json` by file name. UserError if the ranks aren't BPE."""
    return {"tokenizer.json": _tokenizer_json(tok), "tokenizer_config.json": _tokenizer_config(tok)}


def save_hf(tok: Tokenizer, folder: str | Path) -> None:
    """Write both files into `folder`. Not into a freedive tokenizer folder: the name tokenizer.json is taken there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in to_hf(tok).items():
        (Path(folder) / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8", newline="\n")


def byte_characters() -> list[str]:
    """GPT-2's printable character for each byte value, [256]; also what Hugging Face's ByteLevel uses."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]


def recover_merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that made each token longer than a byte, in rank order. Raises UserError for a token that no merge can make."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = byte_pairs(token, ranks, rank)
            if len(parts) != 2:
                raise UserError(
                    f"token {rank} ({token!r}) is not a merge of two earlier tokens; these ranks have no Hugging Face form"
                )
            merges.append((parts[0], parts[1]))
    return merges


def chat_template(chat: ChatConfig, mark: bool = True) -> str:
    """The chat form as a Jinja template; with `mark`, `{% generation %}` marks what is trained (transformers' assistant mask)."""
    if chat.form == "llama2":
        return TEMPLATE if mark else TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    if not mark:
        return chat_template(chat).replace("{% generation %}", "").replace("{% endgeneration %}", "")

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    start, sep, role = (quoted(t) for t in (chat.start, chat.sep + chat.sep_text, chat.assistant))
    end, after = quoted(chat.end), quoted(chat.after)
    default = quoted(chat.start + "system" + chat.sep + chat.sep_text + chat.default_system + chat.end + chat.after)
    return (
        ("{{ bos_token }}" if chat.bos else "")
        + (f"{{% if messages[0]['role'] != 'system' %}}{{{{ {default} }}}}{{% endif %}}" if chat.default_system else "")
        + "{% for message in messages %}"
        + f"{{{{ {start} + message['role'] + {sep} }}}}"
        + f"{{% if message['role'] == {role} %}}"
        + f"{{% generation %}}{{{{ message['content'] + {end} }}}}{{% endgeneration %}}"
        + f"{{% else %}}{{{{ message['content'] + {end} }}}}{{% endif %}}"
        + (f"{{{{ {after} }}}}" if chat.after else "")
        + "{% endfor %}"
        + f"{{% if add_generation_prompt %}}{{{{ {start} + {role} + {sep} }}}}{{% endif %}}"
    )


def _tokenizer_json(tok: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any]
    if isinstance(tok, SentencePiece):
        return _sentencepiece_json(tok)
    if tok.kind == "chars":
        vocab = {token.decode("utf-8"): i for token, i in tok.tokens.items()}
        unknown = next(iter(tok.special_tokens), next(iter(vocab)))
        model = {"type": "WordLevel", "vocab": {**vocab, **tok.special_tokens}, "unk_token": unknown}
        pre: dict[str, Any] = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        decoder: dict[str, Any] = {"type": "Fuse"}
    else:
        character = byte_characters()

        def written(token: bytes) -> str:
            return "".join(character[b] for b in token)

        # Hugging Face numbers added tokens without gaps unless the model's vocabulary knows them; published ids have gaps (o200k)
        vocab = {**{written(token): i for token, i in tok.tokens.items()}, **tok.special_tokens}
        merges = [[written(left), written(right)] for left, right in recover_merges(tok.tokens)]
        model = {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": True, "vocab": vocab, "merges": merges,
        }  # fmt: skip
        decoder = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        pre = decoder
        if tok.pattern is not None:
            split = {"type": "Split", "pattern": {"Regex": _plain_pattern(tok.pattern)}, "behavior": "Isolated", "invert": False}
            pre = {"type": "Sequence", "pretokenizers": [split, decoder]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": name, **_ADDED} for name, i in _by_id(tok.special_tokens)],
        "normalizer": {"type": tok.normalizer} if tok.normalizer else None,
        "pre_tokenizer": pre,
        "post_processor": _post_processor(tok),
        "decoder": decoder,
        "model": model,
    }


def _post_processor(tok: Tokenizer) -> dict[str, Any] | None:
    """Puts bos before a text where a published tokenizer does; nothing in our own, whose chat template writes it."""
    if not (tok.add_bos and tok.eos and tok.bos in tok.special_tokens):
        return None
    bos, text = {"SpecialToken": {"id": tok.bos, "type_id": 0}}, lambda which: {"Sequence": {"id": which, "type_id": 0}}
    return {"type": "TemplateProcessing", "single": [bos, text("A")], "pair": [bos, text("A"), text("B")],
            "special_tokens": {tok.bos: {"id": tok.bos, "ids": [tok.bos_id], "tokens": [tok.bos]}}}  # fmt: skip


def _sentencepiece_json(tok: SentencePiece) -> dict[str, Any]:
    """Scores as merges: every way to make a piece of two, the best piece first."""
    vocab = {p if t == BYTE else p.replace(" ", SPACE): i for i, (p, t) in enumerate(zip(tok.pieces, tok.types, strict=True))}
    merges = []
    for _, i in sorted((-s, i) for i, s in enumerate(tok.scores) if tok.types[i] == NORMAL):
        piece = tok.pieces[i].replace(" ", SPACE)
        merges += [[piece[:at], piece[at:]] for at in range(1, len(piece)) if piece[:at] in vocab and piece[at:] in vocab]
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}] if tok.add_prefix else []
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": name, **_ADDED} for name, i in _by_id(tok.special_tokens)],
        "normalizer": {"type": "Sequence", "normalizers": [*steps, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]},
        "pre_tokenizer": None, "post_processor": _post_processor(tok),
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}, {"type": "ByteFallback"},
                                                     {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": next((p for p, t in zip(tok.pieces, tok.types) if t == UNKNOWN), None),
                  "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True,
                  "ignore_merges": False, "vocab": vocab, "merges": merges},
    }  # fmt: skip


_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}


def _tokenizer_config(tok: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _post_processor(tok) is not None,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): {"content": name, **_ADDED} for name, i in _by_id(tok.special_tokens)},
    }
    if tok.bos in tok.special_tokens:
        config.update(bos_token=tok.bos, eos_token=tok.eos[0] if tok.eos else tok.bos, pad_token=tok.bos)
    if tok.chat is not None:
        config.update(eos_token=tok.chat.end, chat_template=chat_template(tok.chat))
    return config


def _by_id(special_tokens: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(special_tokens.items(), key=lambda item: item[1])


def _plain_pattern(pattern: str) -> str:
    from .known import CL100K_PATTERN, GPT2_PATTERN

    plain = {CL100K_PATTERN: _PLAIN_CL100K, GPT2_PATTERN: _PLAIN_GPT2}.get(pattern, pattern)
    if re.search(r"[+*?]\+|\{\d+(?:,\d*)?\}\+", plain):
        raise UserError(
            "the split pattern has possessive quantifiers, which Hugging Face's tokenizers read differently",
            hint="train with a pattern without them, such as freedive's default",
        )
    return plain
