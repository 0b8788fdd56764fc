"""The model page: what the file of numbers is, and what happens inside of it with a text (talk 1.4).

The drawing comes from the real shapes, the counts from the parameter table, and the logit lens and attention maps from the decoder's own
forward (model/trace.py).
"""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
from nicegui import ui
from nicegui.element import Element

from freedive import _core
from freedive.model.trace import Trace
from freedive.runs import UserError, human_bytes

from ..looking import look, read_layers
from ..stream import Busy, Closing
from .drawing import architecture_svg
from .parts import Tag, box, button, check, choice, field, fixed_html, piece_of
from .shell import Pages, frame, head

MAX_LOOK = 48  # tokens: a table wider than that is not read, and a lens costs a head's product for each layer and token
_START = "The capital of France is"


class Lens(Element, component="static/lens.js"):
    def __init__(self, columns: list[str], rows: list[dict[str, Any]]) -> None:
        super().__init__()
        self._props.update(columns=columns, rows=rows)


class Heads(Element, component="static/heads.js"):
    def __init__(self, maps: str, heads: int, words: list[str], layer: int) -> None:
        super().__init__()
        self._props.update(maps=maps, heads=heads, words=words, layer=layer)


def register(pages: Pages) -> None:
    @ui.page("/model")
    def page() -> None:
        with frame(pages, "/model", "Model"), box("page"):
            head("Model", f"{pages.name} is a file of numbers and a few lines of arithmetic that use them. Here are the numbers' shapes, and what the "
                 "arithmetic does to a text on its way to the next token.")  # fmt: skip
            _numbers(pages)
            with box("card stack drawing", "section", aria_label="Architecture"):
                Tag("h2", "Architecture")
                with box("wide", tabindex="0", role="region", aria_label="Drawing"):
                    fixed_html(architecture_svg(pages.model.config))
            _parameters(pages)
            _look(pages)


def _numbers(pages: Pages) -> None:
    c, model = pages.model.config, pages.model
    held = ", ".join(model.packed) if model.packed else "float32"
    with box("card", "section", aria_label="Figures"), box("numbers"):
        for number, what in [
            (f"{c.n_params():,}", "parameters"), (str(c.n_layer), "blocks"), (f"{c.d_model:,}", "width"), (f"{c.n_head} / {c.n_kv_head}", "heads / for keys and values"),
            (f"{c.d_ff:,}", "MLP width"), (f"{c.vocab_size:,}", "vocabulary"), (f"{c.max_positions:,}", "longest context"), (held, "weights held as"),
        ]:  # fmt: skip
            with box():
                Tag("b", number)
                Tag("span", what)


def parameter_groups(pages: Pages) -> list[tuple[str, int]]:
    """(name, parameters), tied ones counted once: the embedding, a block's parts times the blocks, the head."""
    c = pages.model.config
    names = {"embed_bigrams": "pairs of tokens", "q_proj": "attention: query", "k_proj": "attention: key", "v_proj": "attention: value", "o_proj": "attention: out", "gate_proj": "MLP: gate",
             "up_proj": "MLP: up", "down_proj": "MLP: down"}  # fmt: skip
    counts: dict[str, int] = {}
    for name, shape, _, _ in _core.parameter_table(c.core_dict()):
        part = name.split(".")[-2]
        group = names.get(part, "embedding" if part.startswith("embed_tokens") else "positions" if part.startswith("embed_pos") else "head" if part == "lm_head" else "norms")
        counts[group] = counts.get(group, 0) + math.prod(shape)
    return list(counts.items())


def _parameters(pages: Pages) -> None:
    groups = parameter_groups(pages)
    total, most = sum(n for _, n in groups), max(n for _, n in groups)
    c = pages.model.config
    per_block = sum(n for name, n in groups if name.startswith(("attention", "MLP"))) // c.n_layer
    with box("card stack", "section", aria_label="Parameters"):
        Tag("h2", "Where the parameters are")
        Tag("p", f"{per_block:,} in the matrices of each block, {c.n_layer} blocks; all {total:,} in float32 are {human_bytes(4 * total)}.", "hint")
        with box("bars"):
            for name, n in groups:
                Tag("span", name)
                with box():
                    Tag("i").style(f"width:{100 * n / most:.1f}%")
                Tag("span", f"{n:,} · {100 * n / total:.1f}%", "n")


def _look(pages: Pages) -> None:
    state: dict[str, Any] = {"chat": False}
    with box("card stack", "section", aria_label="Inside"):
        Tag("h2", "Look inside")
        Tag("p", "Each block adds to the residual stream. The logit lens reads the stream after every block as if it were the last: watch the answer "
            "appear on the way up. The attention maps show where each head of a block looks.", "hint")  # fmt: skip
        area = field("A text", _START, lambda _: None, maxlength=2000, id="look")
        with box("line"):
            go = button("Look", lambda text: show(text), kind="main", takes=area)
            if pages.tok.chat is not None and not pages.base:
                check("as a question to the assistant", False, lambda on: state.update(chat=on))
            told = Tag("span", "", "hint", role="status")
        out = box("stack")

    async def show(text: str) -> None:
        go.props(add="disabled")
        told.set_text("looking …")
        try:
            ids = _ids(pages, text[:2000], state["chat"])
            seen = await look(pages.service, ids)
            found = await read_layers(pages.service, seen)
            told.set_text(f"{len(ids)} tokens, {pages.model.config.n_layer} blocks")
            out.clear()
            with out:
                _show_lens(pages, seen, found)
                _show_heads(pages, seen)
        except (UserError, Busy, Closing) as error:
            told.set_text("")
            out.clear()
            with out, box("error", role="alert"):
                Tag("span", str(error))
        finally:
            go.props(remove="disabled")

    area.on("keydown.enter", lambda e: show(str(e.args)), js_handler="(e) => emit(e.target.value)")


def _ids(pages: Pages, text: str, chat: bool) -> list[int]:
    from freedive.tokenizer import render

    if not text.strip():
        raise UserError("there is no text", hint="type one above")
    ids = render(pages.tok, [{"role": "user", "content": text}], add_generation_prompt=True)[0] if chat else pages.tok.document_ids(text)
    if len(ids) > MAX_LOOK:
        raise UserError(f"the text has {len(ids)} tokens; this page draws at most {MAX_LOOK}", hint="shorten it, or ask /v1/trace, which takes 256")
    return ids


def _show_lens(pages: Pages, seen: Trace, found: Any) -> None:
    tok, last = pages.tok, found.ids[-1, :, 0]
    rows = []
    for at in reversed(range(len(found.layers))):
        cells = []
        for i in range(len(seen.ids)):
            top = [[piece_of(tok, int(t)), round(float(np.exp(lp)), 4)] for t, lp in zip(found.ids[at, i], found.logprobs[at, i])]
            cells.append({"t": top[0][0], "p": top[0][1], "top": top, "same": bool(found.ids[at, i, 0] == last[i])})
        rows.append({"name": "embedding" if found.layers[at] == 0 else str(found.layers[at]), "cells": cells})
    Tag("h3", "Logit lens")
    Lens([piece_of(tok, int(t)) for t in seen.ids], rows)


def _show_heads(pages: Pages, seen: Trace) -> None:
    c, words = pages.model.config, [piece_of(pages.tok, int(t)) for t in seen.ids]
    Tag("h3", "Attention")
    holder_choice = box().style("max-width:12rem")
    holder = box()

    def show(layer: int) -> None:
        maps = np.stack([seen.attention(layer, h) for h in range(c.n_head)])
        holder.clear()
        with holder:
            Heads(base64.b64encode(np.rint(255 * maps).astype(np.uint8).tobytes()).decode(), c.n_head, words, layer + 1)

    with holder_choice:
        choice("Block", [(str(i), f"{i + 1} of {c.n_layer}") for i in range(c.n_layer)], str(c.n_layer // 2), lambda value: show(int(value)))
    show(c.n_layer // 2)
