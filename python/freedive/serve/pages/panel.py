"""The sampler's panel, shared by the chat and the playground: what can be set, with its bounds and what it does (talk 1.5)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .parts import Tag, box, button, check, choice, field, slider
from .source import Settings


def sampler(settings: Settings, most_tokens: int, changed: Callable[[], None], *, tools: bool = False) -> None:
    """Fields that write into `settings`; `changed` is called after each. tools: the model can call Python."""
    holder = box("stack")

    def put(name: str, cast: Callable[[Any], object] = float) -> Callable[[Any], None]:
        def change(value: Any) -> None:
            setattr(settings, name, cast(value))
            changed()

        return change

    def seed(text: str) -> None:
        settings.seed = int(text) if text.strip().isdecimal() and len(text.strip()) < 19 else None
        changed()

    def draw() -> None:
        holder.clear()
        with holder:
            slider("Temperature", settings.temperature, 0, 2, 0.05, put("temperature"), "0 takes the likeliest token; higher is more surprising")
            slider("Top p", settings.top_p, 0.05, 1, 0.05, put("top_p"), "draw among the likeliest tokens that together have this probability")
            slider("Top k", settings.top_k, 0, 200, 1, put("top_k", int), "draw among so many likeliest tokens; 0 is off")
            slider("Min p", settings.min_p, 0, 0.5, 0.01, put("min_p"), "leave out tokens less likely than this part of the likeliest one")
            slider("Repetition penalty", settings.repetition_penalty, 1, 1.5, 0.01, put("repetition_penalty"), "above 1: what was said already becomes less likely")
            slider("Longest answer", min(settings.max_tokens, most_tokens), 16, max(16, min(4096, most_tokens)), 16, put("max_tokens", int), "in tokens")
            field("Seed (empty: another one each time)", "" if settings.seed is None else str(settings.seed), seed, inputmode="numeric", maxlength=18)
            field("Stop at (one a line)", settings.stop, put("stop", lambda text: text[:1000]), rows=2)
            if tools:
                check("Python in a sandbox", settings.tools, put("tools", bool))
            with box("line"):
                button("Back to the defaults", reset, kind="plain")

    def reset() -> None:
        for name, value in vars(Settings()).items():
            setattr(settings, name, value)
        draw()
        changed()

    draw()


class Elsewhere:
    """Another endpoint to ask: its address, key and model. The key is in this page's memory only."""

    def __init__(self) -> None:
        self.who, self.url, self.key, self.model = "ours", "", "", ""

    def draw(self, name: str) -> None:
        with Tag("details"):
            Tag("summary", "Another endpoint", "hint", style="cursor:pointer")
            with box("stack").style("margin-top:.7rem"):
                choice("Who answers", [("ours", name), ("theirs", "the endpoint"), ("both", "both, side by side")], self.who, lambda value: setattr(self, "who", value))
                field("Address", self.url, lambda text: setattr(self, "url", text.strip()), pause=0.1, placeholder="http://127.0.0.1:8080/v1", autocomplete="off", spellcheck="false")
                field("Model", self.model, lambda text: setattr(self, "model", text.strip()), pause=0.1, autocomplete="off", spellcheck="false")
                field("Key, if it wants one", self.key, lambda text: setattr(self, "key", text.strip()), kind="password", pause=0.1, autocomplete="off")
                Tag("p", "Any server that speaks OpenAI's chat completions. The conversation is sent to it; the key is kept nowhere.", "hint")
