"""SmolLM2, real weights, through the official client: known answers, characters of several tokens, the cache between turns, forms and forced calls."""

from __future__ import annotations

import json
import threading

import pytest

pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")
pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")

from serve_cases import leaks  # noqa: E402
from serve_http import Served  # noqa: E402

import freedive  # noqa: E402

pytestmark = pytest.mark.slow
SUM = [{"role": "user", "content": "What is 2+2?"}]


@pytest.fixture(scope="module")
def real(smollm2):
    with Served(lm=freedive.load(smollm2, max_tokens=1024, max_seqs=16)) as s:
        yield s


def test_known_answers_alone_and_among_others_to_the_bit(real):
    chat = real.client.chat.completions.create
    asked = dict(model="tiny", messages=SUM, temperature=0, max_tokens=30, logprobs=True, top_logprobs=5)
    alone = chat(**asked).choices[0]
    assert alone.message.content == "The answer to this classic math problem is 4." and alone.finish_reason == "stop"
    assert all(e.logprob == e.top_logprobs[0].logprob for e in alone.logprobs.content)
    told = real.client.completions.create(model="tiny", prompt="The capital of France is", temperature=0, max_tokens=1)
    assert told.choices[0].text == " Paris"
    found = []
    threads = [threading.Thread(target=lambda: found.append(chat(**asked).choices[0])) for _ in range(4)]
    threads += [threading.Thread(target=lambda i=i: chat(model="tiny", messages=[{"role": "user", "content": f"Story {i}"}], max_tokens=10)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4 and all(f.logprobs == alone.logprobs and f.message.content == alone.message.content for f in found)
    leaks(real.service)


def test_a_character_of_several_tokens_comes_whole(real):
    text = "naïve café 😀 日本語"
    ids = real.http.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert ids == [3546, 46494, 37366, 40303, 218, 17097, 241, 115, 40993, 179, 120, 248]
    grammar = {"structured_outputs": {"choice": [text]}}
    pieces = [c.choices[0].text for c in real.client.completions.create(model="tiny", prompt="x", max_tokens=40, stream=True, extra_body=grammar)]
    assert "".join(pieces) == text and not any("\ufffd" in p for p in pieces)


def test_a_second_turn_computes_its_own_tokens_only(real):
    turns = [{"role": "user", "content": "Name three rivers of Europe and say one sentence about each of them, please."}]
    first = real.client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=60)
    turns += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "Thanks"}]
    second = real.client.chat.completions.create(model="tiny", messages=turns, temperature=0, max_tokens=2)
    assert second.usage.prompt_tokens_details.cached_tokens >= 64


def test_forms_and_forced_calls_hold(real):
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}, "people": {"type": "integer", "minimum": 1, "maximum": 99999999}},
              "required": ["city", "people"], "additionalProperties": False}  # fmt: skip
    told = real.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "The capital of France, as JSON."}], temperature=0, max_tokens=60,
                                               response_format={"type": "json_schema", "json_schema": {"name": "c", "schema": schema}})  # fmt: skip
    assert json.loads(told.choices[0].message.content)["city"] == "Paris"
    tool = {"type": "function", "function": {"name": "weather", "description": "the weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"], "additionalProperties": False}}}  # fmt: skip
    told = real.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "What is the weather in Rome?"}], temperature=0, max_tokens=60, tools=[tool], tool_choice="required")
    (call,) = told.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Oslo", "Rome") and told.choices[0].finish_reason == "tool_calls"
