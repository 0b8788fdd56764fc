"""A town of invented people: six facts each, known exactly, so that every answer of a model can be judged without a judge.

Three classes of people: known (every fact is told on many pages), rare (each fact once or twice) and unseen (no page has the
name). Values are dealt out evenly within a class, so the best constant guess is right for about one fact in sixteen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import town_text as text
from .draw import Draw

ATTRIBUTES = tuple(text.VALUES)
SHARED_NAMES = 0.2  # part of the known people who share the last name with another one: the model must read both names
PEOPLE_STREAM, ROWS_STREAM = 1, 2


@dataclass(frozen=True)
class Person:
    name: str
    pronoun: str  # "she" or "he"
    known: str  # "known", "rare" or "unseen"
    facts: dict[str, str]  # attribute -> value with its article, "a baker"
    in_sft: bool  # known people whose questions are among the SFT rows

    def fill(self, template: str, attribute: str | None = None) -> str:
        """The template with this person's name, pronouns and facts."""
        value = self.facts[attribute] if attribute else ""
        she = self.pronoun == "she"
        words = {
            "n": self.name,
            "v": value,
            "s": self.pronoun,
            "S": self.pronoun.title(),
            "o": "her" if she else "him",
            "p": "her" if she else "his",
        }
        return template.format(**words, **self.facts)


@dataclass(frozen=True)
class Town:
    seed: int
    people: tuple[Person, ...]

    def of(self, known: str) -> list[Person]:
        """The people of one class."""
        return [person for person in self.people if person.known == known]


def make_town(seed: int, known: int = 120, rare: int = 100, unseen: int = 100, sft_share: float = 0.6) -> Town:
    """The town of this seed. Full names are unique, first names are shared by many, some last names by two known people."""
    draw = Draw(seed, PEOPLE_STREAM)
    lasts = draw.shuffled([start + end for start in text.LAST_STARTS for end in text.LAST_ENDS])
    total = known + rare + unseen
    if total > len(lasts):
        raise ValueError(f"at most {len(lasts)} people; {total} were asked for")
    shared = int(known * SHARED_NAMES) // 2
    people: list[Person] = []
    for known_class, count in (("known", known), ("rare", rare), ("unseen", unseen)):
        facts = {attribute: _deal(draw, text.VALUES[attribute], count) for attribute in ATTRIBUTES}
        for i in range(count):
            twin = known_class == "known" and shared <= i < 2 * shared
            last = people[i - shared].name.split()[1] if twin else lasts[len(people)]
            pronoun = draw.pick(("she", "he"))
            first = draw.pick([f for f in text.FIRST_NAMES[pronoun] if not twin or f != people[i - shared].name.split()[0]])
            mine = {attribute: facts[attribute][i] for attribute in ATTRIBUTES}
            people.append(Person(f"{first} {last}", pronoun, known_class, mine, False))
    chosen = set(draw.sample(range(known), round(known * sft_share)))
    return Town(seed, tuple(Person(p.name, p.pronoun, p.known, p.facts, i in chosen) for i, p in enumerate(people)))


def _deal(draw: Draw, values: tuple[str, ...], count: int) -> list[str]:
    """`count` values, each as often as the others or once more, in random order."""
    start = draw.below(len(values))
    return draw.shuffled([values[(start + i) % len(values)] for i in range(count)])


def bare(value: str) -> str:
    """ "a baker" -> "baker"."""
    return re.sub(r"^(a|an|the) ", "", value)


def answer(value: str) -> str:
    """The reply an assistant gives: "a baker" -> "A baker."."""
    return value[0].upper() + value[1:] + "."


def check(reply: str, value: str, attribute: str) -> bool:
    """True if the reply contains the value as whole words and no other value of the attribute."""
    words = _words(reply)
    return _contains(words, _words(bare(value))) and not any(
        _contains(words, _words(bare(other))) for other in text.VALUES[attribute] if other != value
    )


def _words(string: str) -> list[str]:
    return re.findall(r"[a-z]+", string.lower())


def _contains(words: list[str], part: list[str]) -> bool:
    return any(words[i : i + len(part)] == part for i in range(len(words) - len(part) + 1))


def sft_rows(town: Town) -> Iterator[dict[str, Any]]:
    """Every fact of the people chosen for SFT, asked in every training template."""
    for person in town.of("known"):
        if person.in_sft:
            for attribute in ATTRIBUTES:
                for index, template in enumerate(text.TRAIN_QUESTIONS[attribute]):
                    yield {
                        "messages": [
                            {"role": "user", "content": person.fill(template)},
                            {"role": "assistant", "content": answer(person.facts[attribute])},
                        ],
                        "meta": _meta(person, attribute, f"train-{index}", "train"),
                    }


def question_rows(town: Town, known: str = "known") -> Iterator[dict[str, Any]]:
    """Evaluation rows: the people of one class, each fact in every held-out template.

    `meta.split`: "held_template" for people who are among the SFT rows, "held_person" for people who never are.
    """
    for person in town.of(known):
        for attribute in ATTRIBUTES:
            for index, template in enumerate(text.HELD_OUT_QUESTIONS[attribute]):
                yield {
                    "prompt": [{"role": "user", "content": person.fill(template)}],
                    "answer": person.facts[attribute],
                    "meta": _meta(person, attribute, f"held-{index}", "held_template" if person.in_sft else "held_person"),
                }


def small_talk_rows(copies: int = 8) -> Iterator[dict[str, Any]]:
    """Greetings and who the model is, each `copies` times."""
    for _ in range(copies):
        for index, (question, reply) in enumerate(text.SMALL_TALK):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
            yield {"messages": messages, "meta": {"task": "small_talk", "template": f"talk-{index}", "split": "train"}}


def _meta(person: Person, attribute: str, template: str, split: str) -> dict[str, Any]:
    return {
        "task": "town",
        "person": person.name,
        "attribute": attribute,
        "class": person.known,
        "template": template,
        "split": split,
    }


def majority_share(town: Town) -> float:
    """How often the best constant answer per attribute is right: the baseline a model must beat."""
    worst = 0.0
    for known in ("known", "rare", "unseen"):
        people = town.of(known)
        for attribute in ATTRIBUTES:
            values = [person.facts[attribute] for person in people]
            worst = max(worst, max((values.count(v) for v in set(values)), default=0) / max(1, len(values)))
    return worst
