"""The playground: a base model and a text it goes on with, token by token (talk 1.5). Few-shot prompts, several dreams of one beginning, and how
surprised the model is by a text that is there already."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from nicegui import background_tasks, ui

from freedive.inference import Params
from freedive.runs import UserError

from ..stream import Busy, Closing
from .panel import sampler
from .parts import Element, Tag, TokenView, box, button, choice, token_items
from .parts import field as text_field
from .shell import Pages, frame, head
from .source import Settings, local

MAX_CHARS, MAX_SCORED = 100_000, 1000  # of a prompt; tokens whose log-probs are drawn
TEMPLATES = {
    "A document begins": "The zebra is an African animal of the horse family. Its coat of black and white stripes",
    "Translator, English to Korean": "butterfly: 나비\nsea: 바다\nmountain: 산\nfreedom: 자유\nmoon: 달\nteacher:",
    "Translator, English to French": "English: bread\nFrench: pain\n\nEnglish: house\nFrench: maison\n\nEnglish: good morning\nFrench: bonjour\n\nEnglish: thank you\nFrench:",
    "Opposites": "hot -> cold\nbig -> small\nfast -> slow\nlight -> dark\nopen ->",
    "An assistant made of a prompt": "This is a conversation between a helpful assistant, who answers briefly and correctly, and a person.\n\n"
    "Person: What is the tallest mountain on Earth?\nAssistant: Mount Everest, at 8,849 metres.\n\nPerson: How many days does a week have?\nAssistant: Seven.\n\n"
    "Person: Which colour do blue and yellow make?\nAssistant:",
    "A list goes on": "The planets of the solar system, from the Sun outwards:\n1. Mercury\n2. Venus\n3.",
    "Code": "def is_prime(n: int) -> bool:\n    \"\"\"Whether n is a prime number.\"\"\"\n",
    "Something to know by heart": "We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator with certain unalienable Rights",
}  # fmt: skip


@dataclass
class _Dream:
    """One continuation."""

    prompt: list[int]
    tokens: list[list[Any]] = field(default_factory=list)
    view: TokenView | None = None
    told: Tag | None = None
    task: asyncio.Task[None] | None = None
    seed: int = 0


def register(pages: Pages) -> None:
    @ui.page("/playground")
    def page() -> None:
        Playground(pages)


class Playground:
    """One browser tab."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.settings = Settings(temperature=0.8, top_p=1.0, max_tokens=64)
        self.text = next(iter(TEMPLATES.values()))
        self.dreams: list[_Dream] = []
        with frame(pages, "/playground", "Playground"), box("page"):
            head("Playground", "No questions and no answers here: the model goes on with a text, as the documents it has read would. Ask again and it dreams "
                 "another one. A few examples in the text are enough to make it a translator.")  # fmt: skip
            with box("play"):
                with box("stack"):
                    self._prompt()
                    self.out = box("stack", aria_live="off")
                with box("card", "aside", aria_label="Sampling"):
                    sampler(self.settings, pages.service.context, lambda: None)
        ui.context.client.on_delete(self.stop)

    def _prompt(self) -> None:
        with box("card stack", "section", aria_label="Prompt"):
            choice("Begin with", [(name, name) for name in TEMPLATES], next(iter(TEMPLATES)), self._template)
            self.area = text_field("The text so far", self.text, lambda text: setattr(self, "text", text[:MAX_CHARS]), rows=8, mono=True,
                                   maxlength=MAX_CHARS, spellcheck="false", id="prompt")  # fmt: skip
            with box("line"):
                button("Go on", lambda text: self.dream(text, 1), kind="main", icon_name="play", takes=self.area)
                button("Three times", lambda text: self.dream(text, 3), kind="second", takes=self.area)
                button("How likely is this text?", self.score, kind="second", takes=self.area)
                self.halt = button("Stop", self.stop, kind="second", icon_name="stop")
                self.halt.set_visibility(False)
            Tag("p", "Ctrl-Enter goes on, Escape stops.", "hint")
        self.area.on("keydown.ctrl.enter", lambda e: self.dream(str(e.args), 1), js_handler="(e) => emit(e.target.value)")
        self.area.on("keydown.esc", lambda _: self.stop())

    def _template(self, name: str) -> None:
        self.text = TEMPLATES[name]
        self.area.put(self.text)

    def stop(self) -> None:
        for dream in self.dreams:
            if dream.task is not None:
                dream.task.cancel()

    def dream(self, text: str, n: int) -> None:
        """n continuations, one below the other."""
        self.text = text[:MAX_CHARS]
        self.stop()
        self.out.clear()
        prompt = self.pages.tok.document_ids(self.text)
        base = self.settings.seed if self.settings.seed is not None else secrets.randbits(31)
        self.dreams = [_Dream(prompt, seed=base + i) for i in range(n)]
        for i, dream in enumerate(self.dreams):
            with self.out:
                self._card(dream, f"Dream {i + 1}" if n > 1 else "It goes on")
            self._begin(dream, [])

    def _card(self, dream: _Dream, title: str) -> None:
        before = self.text.rsplit("\n", 1)[-1][-200:]
        with box("card stack", "section", aria_label=title, data_dream=""):
            with box("line").style("justify-content:space-between"):
                Tag("h2", title)
                dream.told = Tag("span", "", "hint", role="status")
            dream.view = TokenView([], pick=True, code=True, lead=before)
        dream.view.on("pick", lambda e: self._picked(dream, e.args))

    def _picked(self, dream: _Dream, picked: Any) -> None:
        at, id = (picked.get("index"), picked.get("id")) if isinstance(picked, dict) else (None, None)
        if not isinstance(at, int) or not isinstance(id, int) or not 0 <= at < len(dream.tokens):
            return
        found = next((t for t in dream.tokens[at][2] if t[0] == id), None)
        if found is not None:
            self._begin(dream, [*dream.tokens[:at], [id, found[1], dream.tokens[at][2]]])

    def _begin(self, dream: _Dream, before: list[list[Any]]) -> None:
        if dream.task is not None:
            dream.task.cancel()
        dream.tokens = []
        self.halt.set_visibility(True)
        dream.task = background_tasks.create(self._run(dream, before), name="dream")

    async def _run(self, dream: _Dream, before: list[list[Any]]) -> None:
        mine, drawn = dream.task, 0.0
        settings = Settings(**(vars(self.settings) | {"seed": dream.seed}))
        tokens: list[list[Any]] = []
        told, loop = "", asyncio.get_running_loop()
        try:
            async with aclosing(local(self.pages.service, dream.prompt, settings, before=before, think=False)) as deltas:
                async for delta in deltas:
                    tokens += delta.tokens
                    told = {"length": "cut here", "stop": "the document ends"}.get(delta.finish, told)
                    if loop.time() - drawn > 0.15:
                        drawn = loop.time()
                        self._show(dream, tokens, "…")
        except asyncio.CancelledError:
            told = "stopped"
        except UserError as error:
            told = str(error)
        except Exception as error:  # Busy, Closing, EngineFailure, or a bug
            told = f"{error or type(error).__name__}"
        if dream.task is mine or mine is None:
            self._show(dream, tokens, f"{len(tokens)} tokens · {told}" if told else f"{len(tokens)} tokens")
            dream.task = None
            if not self.out.is_deleted:
                self.halt.set_visibility(any(d.task is not None for d in self.dreams))

    def _show(self, dream: _Dream, tokens: list[list[Any]], told: str) -> None:
        dream.tokens = tokens
        if dream.view is not None and dream.told is not None and not dream.view.is_deleted:
            dream.view.show(token_items(self.pages.tok, tokens))
            dream.told.set_text(told)

    async def score(self, text: str) -> None:
        """The text's own tokens, tinted by how likely the model held each of them."""
        self.text = text[:MAX_CHARS]
        self.stop()
        self.out.clear()
        ids = self.pages.tok.document_ids(self.text)
        try:
            if len(ids) > MAX_SCORED or self.pages.service.room(ids) < 1:
                raise UserError(f"the text has {len(ids):,} tokens; at most {min(MAX_SCORED, self.pages.service.context - 1):,} are drawn")
            tokens = await scored(self.pages.service, ids)
        except (UserError, Busy, Closing, RuntimeError) as error:
            with self.out, box("error", role="alert"):
                Tag("span", str(error))
            return
        known = [t[1] for t in tokens if t[1] is not None]
        dream = _Dream(ids, tokens)
        self.dreams = [dream]
        with self.out, box("card stack", "section", aria_label="How likely"):
            Tag("h2", "How likely it held each token")
            if known:
                sure = sum(1 for lp in known if lp > -0.105)
                Tag("p", f"{-sum(known) / len(known):.2f} nats a token on average; {sure} of {len(known)} it was sure of (above 90%). A long stretch without a tint is "
                    "a text it knows by heart.", "hint")  # fmt: skip
            view: Element = TokenView(token_items(self.pages.tok, tokens), pick=False, code=True)
        del view


async def scored(service: Any, ids: list[int], k: int = 8) -> list[list[Any]]:
    """[id, log-prob or None, [[id, log-prob], ...]] of each token of a text, given those before it."""
    async with aclosing(service.stream(ids, Params(max_new_tokens=1, temperature=0.0, prompt_logprobs=k))) as events:
        async for event in events:
            if event.prompt_logprobs is not None:
                tops = event.prompt_top_logprobs or [None] * len(ids)
                return [[i, None if lp is None else round(lp, 4), [[t, round(p, 4)] for t, p in (top or {}).items()]]
                        for i, lp, top in zip(ids, event.prompt_logprobs, tops)]  # fmt: skip
    raise RuntimeError("the engine gave no log-probs of the prompt")
