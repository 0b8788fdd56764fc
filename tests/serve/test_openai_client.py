"""The official `openai` client's whole conversation with the server, and that its answers are the engine's."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed: pip install openai")
pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install 'freedive[serve]'")

from serve_cases import leaks, make_lm  # noqa: E402
from serve_http import LARGE  # noqa: E402

from freedive.inference import Params  # noqa: E402
from freedive.model import Batch  # noqa: E402
from freedive.serve.chat_form import Offer, call_ends  # noqa: E402
from freedive.tokenizer import render  # noqa: E402

HELLO = [{"role": "user", "content": "Hello"}]


def alone():
    return make_lm(LARGE)


def test_models(served):
    (model,) = served.client.models.list().data
    assert model.id == "tiny" and model.max_model_len == 1024 and model.meta["n_params"] == LARGE.n_params()
    assert served.client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as error:
        served.client.models.retrieve("gpt-4")
    assert error.value.code == "model_not_found" and "'tiny'" in error.value.message


def test_completions_are_the_engines(served):
    lm = alone()
    text = "Once upon a time"
    told = served.client.completions.create(model="tiny", prompt=[text, "The"], max_tokens=20, temperature=0.8, seed=11, n=2, logprobs=2)
    for i, choice in enumerate(told.choices):
        prompt = lm.tokenizer.document_ids([text, "The"][i // 2])
        out = lm.engine.generate([prompt], 20, 0.8, stop_ids=lm.tokenizer.stop_ids, seeds=[11], n=2, logprobs=2)[i % 2]
        assert choice.index == i and choice.text == out.text and choice.finish_reason == out.finish_reason
        assert choice.logprobs.token_logprobs == out.logprobs.tolist()
        assert len(choice.logprobs.tokens) == len(out.ids) and choice.logprobs.text_offset[0] == 0
    assert told.usage.prompt_tokens == len(lm.tokenizer.document_ids(text)) + len(lm.tokenizer.document_ids("The"))
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens


def test_streamed_completions_join_to_the_whole(served):
    asked = dict(model="tiny", prompt=["a", "b"], max_tokens=30, temperature=1.2, seed=5, n=2, logprobs=1)
    whole = served.client.completions.create(**asked)
    texts, tokens, reasons, usage = {}, {}, {}, None
    for chunk in served.client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            tokens.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
            reasons[choice.index] = choice.finish_reason
    assert [texts[c.index] for c in whole.choices] == [c.text for c in whole.choices]
    assert [tokens[c.index] for c in whole.choices] == [c.logprobs.token_logprobs for c in whole.choices]
    assert [reasons[c.index] for c in whole.choices] == [c.finish_reason for c in whole.choices]
    assert (usage.prompt_tokens, usage.completion_tokens) == (whole.usage.prompt_tokens, whole.usage.completion_tokens)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_scores_a_prompt_as_training_does_and_the_chosen_is_the_top_bit_for_bit(served, max_tokens):
    lm = alone()
    ids = lm.tokenizer.encode("Is the likeliest token's log-prob the top value?")
    told = served.client.completions.create(model="tiny", prompt=[ids], max_tokens=max_tokens, temperature=0, logprobs=1, echo=True)
    scores = told.choices[0].logprobs
    expected = lm.model.score(Batch.pack([(ids[:-1], ids[1:])])).logprobs.tolist()
    assert scores.token_logprobs[: len(ids)] == [None, *expected]
    assert len(scores.token_logprobs) == len(ids) + max_tokens == len(scores.top_logprobs)
    greedy = 0
    for chosen, top in zip(scores.token_logprobs[1:], scores.top_logprobs[1:]):
        assert chosen in top.values() and chosen <= max(top.values())
        greedy += chosen == max(top.values())
    if max_tokens:
        assert scores.token_logprobs[-1] == max(scores.top_logprobs[-1].values())  # temperature 0 took the likeliest
    assert told.choices[0].text.startswith("Is the likeliest")
    assert scores.text_offset[: len(ids)] == list(range(len(ids)))


def test_best_of_keeps_the_likeliest(served):
    asked = dict(model="tiny", prompt="x", max_tokens=12, temperature=1.5, seed=3, logprobs=0)
    every = served.client.completions.create(**asked, n=4)
    best = served.client.completions.create(**asked, n=1, best_of=4)
    mean = {c.text: float(np.mean(c.logprobs.token_logprobs)) for c in every.choices}
    assert best.choices[0].text == max(mean, key=mean.get)
    assert best.usage.completion_tokens == every.usage.completion_tokens  # all were made


def test_chat_is_the_engines_and_streams_join_to_it(served):
    lm = alone()
    ids = render(lm.tokenizer, HELLO, add_generation_prompt=True)[0]
    ends = (*lm.tokenizer.stop_ids, *call_ends(lm.tokenizer, Offer()))  # only tools open their answers
    out = lm.engine.generate([ids], 40, 0, stop_ids=ends, logprobs=3)[0]
    told = served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=40, temperature=0, logprobs=True, top_logprobs=3)
    choice = told.choices[0]
    assert choice.message.content == out.text and choice.message.role == "assistant" and choice.finish_reason == out.finish_reason
    kept = [i for i in range(len(out.ids)) if out.ids[i] not in ends]
    assert [e.logprob for e in choice.logprobs.content] == [out.logprobs.tolist()[i] for i in kept]
    for entry, i in zip(choice.logprobs.content, kept):
        assert bytes(entry.bytes) == lm.tokenizer.token_bytes(out.ids[i]) and len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob  # bit for bit
    assert told.usage.prompt_tokens == len(ids) and told.usage.completion_tokens == len(out.ids)
    text, content, last, usage = "", [], None, None
    for chunk in served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=40, temperature=0, logprobs=True, top_logprobs=3,
                                                       stream=True, stream_options={"include_usage": True}):  # fmt: skip
        for c in chunk.choices:
            text += c.delta.content or ""
            content += c.logprobs.content if c.logprobs else []
            last = c.finish_reason
        usage = chunk.usage or usage
    assert text == out.text and content == choice.logprobs.content and last == choice.finish_reason
    assert usage.completion_tokens == told.usage.completion_tokens and usage.prompt_tokens_details.cached_tokens >= 0


def test_a_second_turn_finds_the_first_in_the_cache(served):
    said = "x" * 200
    turns = [{"role": "user", "content": said}]
    first = served.client.chat.completions.create(model="tiny", messages=turns, max_tokens=8, temperature=0)
    turns += [{"role": "assistant", "content": first.choices[0].message.content or "?"}, {"role": "user", "content": "more"}]
    second = served.client.chat.completions.create(model="tiny", messages=turns, max_tokens=2, temperature=0)
    assert second.usage.prompt_tokens_details.cached_tokens >= 192


def test_n_choices_have_seeds_of_their_own_and_a_seed_repeats(served):
    asked = dict(model="tiny", messages=HELLO, max_tokens=15, temperature=1.5, n=3)
    one, two = (served.client.chat.completions.create(**asked, seed=7) for _ in range(2))
    texts = [c.message.content for c in one.choices]
    assert texts == [c.message.content for c in two.choices] and len(set(texts)) == 3
    unseeded = served.client.chat.completions.create(**asked)
    again = served.client.chat.completions.create(**asked, seed=unseeded.x_seed)
    assert [c.message.content for c in again.choices] == [c.message.content for c in unseeded.choices]


def test_json_schema_and_json_object(served):
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    schema = {"type": "object", "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
              "required": ["name", "age"], "additionalProperties": False}  # fmt: skip
    for seed in range(3):
        told = served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=200, seed=seed,
                                                     response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}})  # fmt: skip
        person = json.loads(told.choices[0].message.content)
        assert person["name"] in ("Ada", "Bob") and 0 <= person["age"] <= 99 and told.choices[0].finish_reason == "stop"
    told = served.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=60, response_format={"type": "json_object"})
    assert told.choices[0].message.content.lstrip().startswith("{")
    told = served.client.completions.create(model="tiny", prompt="Pick: ", extra_body={"structured_outputs": {"choice": ["yes", "no"]}})
    assert told.choices[0].text in ("yes", "no")


def test_stop_strings_and_stop_ids(served):
    whole = served.client.completions.create(model="tiny", prompt="q", max_tokens=60, temperature=1, seed=1, logprobs=0)
    cut = whole.choices[0].text[10:13]
    told = served.client.completions.create(model="tiny", prompt="q", max_tokens=60, temperature=1, seed=1, stop=[cut])
    assert told.choices[0].text == whole.choices[0].text.split(cut)[0] and told.choices[0].finish_reason == "stop"


def test_embeddings(served):
    lm = alone()
    texts = ["a text", "another one"]
    for pooling in ("mean", "last"):
        told = served.client.embeddings.create(model="tiny", input=texts, extra_body={"pooling": pooling})  # base64, by default
        assert told.x_pooling == pooling and [e.index for e in told.data] == [0, 1]
        for text, e in zip(texts, told.data):
            ids = lm.tokenizer.document_ids(text)
            hidden = lm.model.hidden(Batch.pack([(ids, [-1] * len(ids))]))
            vector = hidden.mean(axis=0) if pooling == "mean" else hidden[-1]
            assert np.allclose(e.embedding, vector / np.linalg.norm(vector), atol=1e-6)
    ids = lm.tokenizer.document_ids("a text")
    floats = served.client.embeddings.create(model="tiny", input=[ids], encoding_format="float")
    coded = served.http.post("/v1/embeddings", json={"input": "a text", "encoding_format": "base64"}).json()
    assert np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4").tolist() == pytest.approx(floats.data[0].embedding, abs=1e-7)
    with pytest.raises(openai.BadRequestError, match="input 1 has 1,025 tokens; a vector is made of at most 1,024 here"):
        served.client.embeddings.create(model="tiny", input=[[1], [1] * 1025])


@pytest.mark.parametrize(
    ("asked", "kind", "told"),
    [
        (dict(model="gpt-4"), openai.NotFoundError, "there is no model"),
        (dict(n=10**9), openai.BadRequestError, "n: input should be less than or equal to 16"),
        (dict(n=0), openai.BadRequestError, "n: input should be greater"),
        (dict(temperature=2.5), openai.BadRequestError, "temperature"),
        (dict(max_tokens=5000), openai.BadRequestError, "context is 1024 tokens"),
        (dict(extra_body={"temprature": 1}), openai.BadRequestError, "temprature: there is no such field"),
        (dict(logit_bias={"999": 5}), openai.BadRequestError, "logit_bias"),
        (dict(messages=[]), openai.BadRequestError, "messages"),
        (dict(messages=[{"role": "user"}]), openai.BadRequestError, "no content"),
        (dict(messages=[{"role": "wizard", "content": "x"}]), openai.BadRequestError, "messages.0.role"),
        (dict(messages=[{"role": "tool", "content": "x", "tool_call_id": "1"}]), openai.BadRequestError, "answers the call '1'"),
        (dict(top_logprobs=3), openai.BadRequestError, "top_logprobs needs logprobs"),
        (dict(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}), openai.BadRequestError, "json_schema cannot be used"),
        (dict(extra_body={"structured_outputs": {"regex": "(["}}), openai.BadRequestError, "regex cannot be used"),
        (dict(tool_choice="required"), openai.BadRequestError, "no tools"),
        (dict(messages=[{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}]),
         openai.BadRequestError, "messages.0.content.1.type is 'image_url': models here read text"),
    ],
)  # fmt: skip
def test_errors_are_the_clients_own_exceptions_with_a_sentence(served, asked, kind, told):
    with pytest.raises(kind) as error:
        served.client.chat.completions.create(**({"model": "tiny", "messages": HELLO, "max_tokens": 4} | asked))
    assert told in error.value.message and error.value.type == "invalid_request_error"
    assert served.client.models.list().data[0].id == "tiny"  # it lives


def test_context_overflow_tells_the_counts_and_cuts_nothing(served):
    for call in (
        lambda: served.client.completions.create(model="tiny", prompt=[1] * 1000, max_tokens=25),
        lambda: served.client.completions.create(model="tiny", prompt=[1] * 1024),
        lambda: served.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "y" * 2000}]),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            call()
        assert error.value.code == "context_length_exceeded" and "in the prompt" in error.value.message and "1024" in error.value.message
    told = served.client.completions.create(model="tiny", prompt=[1] * 1000, max_tokens=24, extra_body={"ignore_eos": True})
    assert told.usage.completion_tokens == 24


def test_leaving_a_stream_frees_the_row(served):
    stream = served.client.completions.create(model="tiny", prompt="z", max_tokens=900, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    assert served.service.open_choices == 1
    stream.close()
    for _ in range(500):
        if not served.service.engine.busy and not served.service.open_choices:
            break
        served.http.get("/health")
    leaks(served.service)


def test_the_stream_method_of_the_service_is_what_the_api_gives(served):
    told = served.client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=9, temperature=0)
    out = alone().engine.submit([5, 6, 7], Params(9, 0, stop_ids=alone().tokenizer.stop_ids))
    assert out is not None and told.choices[0].finish_reason in ("stop", "length")
