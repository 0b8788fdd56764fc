"""What requests can ask for, and that nobody else notices: caches, preemption, guesses, penalties, stops, alternatives, grammars."""

from __future__ import annotations

import dataclasses
import json
import re
import threading

import numpy as np
import pytest
from engine_cases import BIGRAMS, CONFIG, GPT2, TOKENIZER, make_engine, make_model, make_prompts, same
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive import ops
from freedive.inference import Engine, Grammar, Params
from freedive.model import Batch
from freedive.runs import UserError

PLAIN = dict(max_new_tokens=24, temperature=0.8, top_p=0.95)
MIXED = [  # one of each kind, to run side by side
    Params(**PLAIN), Params(max_new_tokens=30, temperature=0.0), Params(**PLAIN, repetition_penalty=1.3), Params(**PLAIN, presence_penalty=0.7, frequency_penalty=0.2),
    Params(**PLAIN, logit_bias={65: 4.0, 66: -3.0}), Params(**PLAIN, logprobs=3), Params(max_new_tokens=40, stop=("A", "zz"), stop_ids=(7,)),
    Params(**PLAIN, prompt_logprobs=2), Params(max_new_tokens=40, temperature=0.0, speculate=4), Params(max_new_tokens=30, stop_ids=tuple(range(0, 200, 3)), min_new_tokens=9),
]  # fmt: skip


def run(engine: Engine, prompts: list[list[int]], asked: list[Params]) -> list:
    requests = [engine.submit(p, a, seed=100 + i) for i, (p, a) in enumerate(zip(prompts, asked))]
    while engine.busy:
        engine.step()
    return [r.done for r in requests]


def alike(a, b) -> bool:
    """Bit-equal but for what the cache happened to hold."""
    bare = lambda c: [dataclasses.replace(x, logprobs=x.logprobs.tobytes(), cached_tokens=0) for x in c]
    return bare(a) == bare(b)


CACHES = ["float32", "bfloat16", "int8"]


@pytest.fixture(scope="module")
def alone() -> dict[str, list]:
    return {kept: [_alone(i, p, a, kept) for i, (p, a) in enumerate(zip(make_prompts()[: len(MIXED)], MIXED))] for kept in CACHES}


def _alone(i: int, prompt: list[int], asked: Params, kept: str):
    engine = Engine(make_model(), TOKENIZER, kv_cache_dtype=kept)
    request = engine.submit(prompt, asked, seed=100 + i)
    while engine.busy:
        engine.step()
    return request.done


# ---- same request, same bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("settings_", [dict(), dict(max_tokens=40), dict(max_seqs=3), dict(threads=1)], ids=str)
def test_every_kind_of_request_side_by_side_is_as_alone(alone, settings_, kept):
    prompts = make_prompts()[: len(MIXED)]
    engine = Engine(make_model(**settings_), TOKENIZER, cache_tokens=64 * 32, kv_cache_dtype=kept)
    assert alike(run(engine, prompts, MIXED), alone[kept])
    again = run(engine, prompts, MIXED)  # now from a warm cache
    assert alike(again, alone[kept])
    assert sum(c.cached_tokens for c in again) >= 32 * 5 and again[7].cached_tokens == 0  # a scored prompt is computed
    assert engine.manager.free == engine.manager.n


def test_keys_and_values_as_they_are_kept():
    """int8 and bfloat16 say nearly what float32 says, and are other bits; with products in bfloat16 a bfloat16 cache is float32's, bit for bit"""
    prompts, asked = make_prompts(), dict(max_new_tokens=40, temperature=0.8)
    made = lambda kept, **how: Engine(make_model(**how), TOKENIZER, kv_cache_dtype=kept)
    outs = {kept: made(kept).generate(prompts, **asked) for kept in CACHES}
    exact = outs["float32"]
    assert same(made("auto").generate(prompts, **asked), exact) and same(make_engine().generate(prompts, **asked), exact)
    for kept, near in (("bfloat16", 0.1), ("int8", 0.2)):
        assert not same(outs[kept], exact)
        first = [abs(a.logprobs[0] - b.logprobs[0]) for a, b in zip(outs[kept], exact) if a.ids[0] == b.ids[0]]
        assert len(first) >= 10 and max(first) < near
    half = made("float32", dtype="bfloat16").generate(prompts, **asked)
    assert made("auto", dtype="bfloat16").kv_cache_dtype == "bfloat16"
    assert same(made("auto", dtype="bfloat16").generate(prompts, **asked), half) and not same(half, exact)
    bytes_each = [made(kept).stats.cache_bytes_per_token for kept in CACHES]
    assert bytes_each == [2 * 2 * 2 * 8 * 4, 2 * 2 * 2 * 8 * 2, 2 * 2 * 2 * (8 + 4)]  # layers, keys and values, heads, head_dim (and a scale)
    with pytest.raises(UserError, match="kv_cache_dtype is 'int4'"):
        made("int4")


@pytest.mark.parametrize("kept", CACHES)
@pytest.mark.parametrize("config", [CONFIG, GPT2, BIGRAMS], ids=["qwen3", "gpt2", "bigrams"])
def test_a_cache_too_small_for_all_sends_some_back_and_changes_nothing(config, kept):
    prompts = make_prompts((70, 33, 64, 90, 5, 31, 100, 12))
    wanted = Engine(make_model(config), TOKENIZER, kv_cache_dtype=kept).generate(prompts, max_new_tokens=50, temperature=0.9)
    engine = Engine(make_model(config), TOKENIZER, cache_tokens=12 * 32, kv_cache_dtype=kept)
    assert same(engine.generate(prompts, max_new_tokens=50, temperature=0.9), wanted)
    assert engine.stats.preemptions > 0 and engine.manager.free == engine.manager.n == 12
    asked = [dataclasses.replace(p, max_new_tokens=45) for p in MIXED[:8]]
    again, free = (Engine(make_model(config), TOKENIZER, cache_tokens=n * 32, kv_cache_dtype=kept) for n in (10, 200))
    assert alike(run(again, prompts, asked), run(free, prompts, asked)) and again.stats.preemptions > 0


def test_a_second_turn_prefills_only_its_tail():
    engine = make_engine()
    turn = make_prompts((70,))[0]
    said = engine.generate([turn], max_new_tokens=30)[0].ids
    before = dataclasses.replace(engine.stats)
    longer = [*turn, *said, *make_prompts((9,))[0]]
    out = engine.generate([longer], max_new_tokens=5)[0]
    # 70 + 29 ids are in the cache, 96 of them in whole blocks
    assert out.cached_tokens == 96 and engine.stats.prefilled_tokens - before.prefilled_tokens == len(longer) - 96
    assert same([out], make_engine().generate([longer], max_new_tokens=5))


def test_changed_weights_are_never_read_from_the_cache():
    model, prompts = make_model(), make_prompts((100, 70))
    engine = Engine(model, TOKENIZER)
    engine.generate(prompts, max_new_tokens=10)
    for view in model.parameters.values():
        view *= 1.25
    model.touch()
    out = engine.generate(prompts, max_new_tokens=10)
    assert all(c.cached_tokens == 0 for c in out)
    assert same(out, Engine(model, TOKENIZER).generate(prompts, max_new_tokens=10))


@pytest.mark.parametrize("config,kept", [*((CONFIG, kept) for kept in CACHES), (BIGRAMS, "float32")], ids=[*CACHES, "bigrams"])
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0])
def test_guessing_ahead_changes_nothing_but_the_number_of_calls(temperature, config, kept):
    loop = make_prompts((5,))[0] * 12
    prompts = [loop, *make_prompts((40, 3)), loop[7:]]
    wanted = Engine(make_model(config), TOKENIZER, kv_cache_dtype=kept).generate(prompts, max_new_tokens=60, temperature=temperature, stop_ids=(3, 9))
    engine = Engine(make_model(config), TOKENIZER, kv_cache_dtype=kept)
    assert same(engine.generate(prompts, max_new_tokens=60, temperature=temperature, stop_ids=(3, 9), speculate=5), wanted)
    assert engine.stats.drafted_tokens >= engine.stats.accepted_tokens
    if temperature == 0.0 and config is CONFIG:  # this model repeats itself
        assert engine.stats.accepted_tokens > 20


# ---- sampling ---------------------------------------------------------------------------------------------------


def last_logits(engine: Engine, ids: list[int]) -> np.ndarray:
    engine.generate([ids], max_new_tokens=1, temperature=0, prompt_logprobs=0)
    return engine.model.logits(np.array([len(ids) - 1]))[0].astype(np.float64)


def test_penalties_and_bias_are_their_formulas():
    engine, scorer, prompt = make_engine(), make_engine(), make_prompts((20,))[0]
    p = dict(repetition_penalty=1.4, frequency_penalty=0.5, presence_penalty=0.3, logit_bias={5: 2.5, 200: -1.0})
    out = engine.generate([prompt], max_new_tokens=25, temperature=0, **p)[0]
    ids = list(prompt)
    for token in out.ids:
        z = last_logits(scorer, ids)
        for i, b in p["logit_bias"].items():
            z[i] += b
        for i in set(ids):
            z[i] = z[i] / 1.4 if z[i] > 0 else z[i] * 1.4
        for i in set(ids[20:]):
            z[i] -= 0.5 * ids[20:].count(i) + 0.3
        assert z[token] >= z.max() - 1e-5
        ids.append(token)
    plain = make_engine().generate([prompt], max_new_tokens=25, temperature=0)[0].ids
    assert len(set(out.ids)) > len(set(plain))


def test_a_bias_forbids_and_forces():
    engine, prompts = make_engine(), make_prompts((20, 30))
    assert all(c.ids == [77] * 6 for c in engine.generate(prompts, max_new_tokens=6, logit_bias={77: 1e5}))
    for c in engine.generate(prompts, max_new_tokens=40, temperature=2.0, logit_bias={i: -1e5 for i in range(0, 256, 2)}):
        assert all(i % 2 == 1 or i > 255 for i in c.ids)


def test_log_probs_told_are_the_models_own_whatever_is_changed():
    engine, prompt = make_engine(), make_prompts((40,))[0]
    out = engine.generate([prompt], max_new_tokens=20, temperature=0.7, repetition_penalty=1.5, top_k=8, logprobs=5)[0]
    ids = [*prompt, *out.ids]
    wanted = make_model().score(Batch.next_token([ids]), 0.7).logprobs[len(prompt) - 1 : -1]
    assert np.array_equal(out.logprobs, wanted)
    scorer = make_model(max_targets=CONFIG.vocab_size)
    every = np.tile(np.arange(CONFIG.vocab_size, dtype=np.int32), (len(ids), 1))
    table = scorer.score(Batch(np.array(ids, np.int32), every, np.arange(len(ids), dtype=np.int32), np.array([0, len(ids)], np.int32)), 0.7).logprobs
    for t, top in enumerate(out.top_logprobs):
        row = table[len(prompt) - 1 + t]
        assert list(top) == np.argsort(-row, kind="stable")[:5].tolist()
        assert list(top.values()) == [float(row[i]) for i in top]


def test_prompts_are_scored_bit_for_bit_with_their_alternatives():
    engine, prompts = make_engine(max_tokens=48), make_prompts((1, 100, 33))
    outs = engine.generate(prompts, max_new_tokens=3, prompt_logprobs=4)
    for prompt, out in zip(prompts, outs):
        wanted = make_model().score(Batch.next_token([prompt])).logprobs[:-1]
        assert out.prompt_logprobs == [None, *map(float, wanted)]
        assert out.prompt_top_logprobs[0] is None and all(len(top) == 4 for top in out.prompt_top_logprobs[1:])
        for i, token in enumerate(prompt[1:], 1):  # the greedy check that evaluation harnesses make
            best = max(out.prompt_top_logprobs[i].values())
            assert (out.prompt_logprobs[i] == best) == (token == next(iter(out.prompt_top_logprobs[i])))
    assert same(outs, make_engine().generate(prompts, max_new_tokens=3))


def test_no_stop_id_before_its_time():
    engine, prompts = make_engine(), make_prompts()
    for c in engine.generate(prompts, max_new_tokens=40, stop_ids=range(0, 256, 2), min_new_tokens=15):
        assert len(c.ids) > 15 and all(i % 2 or i > 255 for i in c.ids[:15]) and (c.ids[-1] % 2 == 0) == c.stopped


def test_stop_strings_end_the_text_before_them():
    engine, prompts = make_engine(), make_prompts()
    free = engine.generate(prompts, max_new_tokens=40)
    text = free[0].text
    stops = (text[9:12], text[20:21])
    for a, b in zip(free, engine.generate(prompts, max_new_tokens=40, stop=stops)):
        found = [a.text.find(s) for s in stops if s in a.text]
        assert b.stopped == bool(found) and b.text == (a.text[: min(found)] if found else a.text) and b.ids == a.ids[: len(b.ids)]
        assert b.finish_reason == ("stop" if found else "length")
    pieces = list(make_engine().stream(prompts[0], max_new_tokens=40, stop=stops, seed=0))
    assert "".join(pieces) == engine.generate(prompts[:1], max_new_tokens=40, stop=stops)[0].text


@settings(max_examples=200, deadline=None)
@given(st.text("ab🙂", max_size=30), st.lists(st.text("ab🙂", min_size=1, max_size=4), max_size=3))
def test_a_stream_never_shows_a_part_of_a_stop_string(text, stops):
    from freedive.inference.stops import StopText

    out, shown = StopText(TOKENIZER, stops), ""
    cut = min([text.find(s) for s in stops if s in text], default=len(text))
    for token in TOKENIZER.encode(text):
        if out.push(token):
            break
        shown += out.safe()
        assert text.startswith(shown) and len(shown) <= cut
    shown += out.safe() + out.rest()
    # the first stop string to be complete ends it: an earlier begin may belong to a longer one that is not complete yet
    ends = sorted((text.find(s) + len(s), text.find(s)) for s in stops if s in text)
    assert shown == (text[: min(b for e, b in ends if e == ends[0][0])] if ends else text)


def test_n_samples_of_a_prompt_differ_and_the_first_is_the_plain_one():
    engine, prompts = make_engine(), make_prompts((40, 7))
    outs = engine.generate(prompts, max_new_tokens=20, n=3)
    assert len(outs) == 6 and len({tuple(c.ids) for c in outs}) == 6
    assert same(outs[::3], engine.generate(prompts, max_new_tokens=20))
    assert same(outs, make_engine(max_seqs=2).generate(prompts, max_new_tokens=20, n=3))


# ---- grammars ---------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
          "required": ["name", "age"], "additionalProperties": False}  # fmt: skip


@pytest.fixture
def llguidance():
    return pytest.importorskip("llguidance", reason="the package llguidance is not installed")


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
def test_answers_keep_to_a_schema_an_expression_and_choices(llguidance, temperature):
    engine, prompts = make_engine(), make_prompts((40, 7, 3))
    ask = lambda kind, text: engine.generate(prompts, max_new_tokens=110, temperature=temperature, stop_ids=TOKENIZER.stop_ids, grammar=Grammar(kind, text))
    for c in ask("json_schema", json.dumps(SCHEMA)):
        if c.stopped:  # random weights may write white space to the end
            found = json.loads(c.text)
            assert found["name"] in ("Ann", "Bob") and 0 <= found["age"] <= 120 and len(found) == 2
    for c in ask("regex", "[a-f]{3,6}-[0-9]+ (yes|no)"):
        assert re.fullmatch("[a-f]{3,6}-[0-9]+ (yes|no)", c.text) or not c.stopped
    for c in ask("choice", '["red", "green", "blue"]'):
        assert c.text in ("red", "green", "blue") and c.stopped
    for c in ask("lark", 'start: "<" /[xyz]+/ ">"'):
        assert re.fullmatch("<[xyz]+>", c.text) or not c.stopped


@pytest.mark.parametrize(
    ("kind", "text"),
    [("regex", "(("), ("json_schema", "{"), ("json_schema", "[1]"), ("json_schema", '{"type": "nonsense"}'), ("lark", "start: foo"), ("choice", "[]"),
     ("choice", '"a"'), ("prolog", "x"), ("regex", "a" * 200_000)],
)  # fmt: skip
def test_a_bad_grammar_is_an_error_of_that_request_alone(llguidance, kind, text):
    engine = make_engine()
    running = engine.submit(make_prompts((10,))[0], Params(max_new_tokens=20))
    engine.step()
    with pytest.raises(UserError, match="grammar|cannot be used"):
        engine.generate([[1, 2]], grammar=Grammar(kind, text))
    while engine.busy:
        engine.step()
    assert len(running.done.ids) == 20


def test_what_is_wrong_with_a_regex_is_one_line(llguidance):
    with pytest.raises(UserError) as caught:
        make_engine().generate([[1, 2]], grammar=Grammar("regex", "[a-z"))
    assert caught.value.message == "the regex cannot be used: unclosed character class"


def test_the_text_fits_the_grammar_whatever_stops_were_given(llguidance):
    """The token that ends an answer is no part of it, asked for as a stop or not."""
    engine = make_engine()
    for expression in ("(yes|no)[.!]*", "[a-z]{1,30}", ""):
        for c in engine.generate(make_prompts((40, 7, 3)), max_new_tokens=60, temperature=1.0, grammar=Grammar("regex", expression)):
            assert re.fullmatch(expression, c.text) or not c.stopped
            pieces = "".join(engine.stream(make_prompts((7,))[0], 60, grammar=Grammar("regex", expression)))
            assert re.fullmatch(expression, pieces) or len(pieces) >= 30
    with pytest.raises(UserError, match="min_new_tokens"):
        engine.generate([[1, 2]], grammar=Grammar("regex", "a{1,3}"), min_new_tokens=10)


def test_a_grammar_that_breaks_ends_its_own_answer_only(llguidance, monkeypatch):
    from freedive.inference.grammar import Matcher

    engine, prompts = make_engine(), make_prompts((10, 20))
    wanted = engine.generate(prompts[:1], max_new_tokens=20)
    monkeypatch.setattr(Matcher, "mask", lambda self, n: np.zeros(n, np.uint8))  # permits nothing
    plain, broken = engine.submit(prompts[0], Params(max_new_tokens=20)), engine.submit(prompts[1], Params(max_new_tokens=20, grammar=Grammar("regex", "[a-z]+")))
    while engine.busy:
        engine.step()
    assert same([plain.done], wanted) and broken.done.stopped and len(broken.done.ids) == 1


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        dict(logit_bias={268: 1.0}), dict(logit_bias={-1: 1.0}), dict(logit_bias={3: float("nan")}), dict(repetition_penalty=0.0), dict(repetition_penalty=float("nan")),
        dict(frequency_penalty=float("inf")), dict(presence_penalty=float("nan")), dict(min_new_tokens=65), dict(min_new_tokens=-1), dict(stop=("",)), dict(stop=("a",) * 65),
        dict(logprobs=101), dict(logprobs=-1), dict(prompt_logprobs=-1), dict(speculate=-1), dict(speculate=65), dict(n=0), dict(n=10**9), dict(min_p=1.0), dict(top_k=-1),
        dict(max_new_tokens=-5), dict(prompts=[["a"]]), dict(prompts=[[1.5]]), dict(prompts=[[2**40]]), dict(prompts=[[[1]]]),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked_is_said_and_the_engine_lives_on(arguments):
    engine = make_engine()
    with pytest.raises(UserError):
        engine.generate(**({"prompts": [[1, 2]]} | arguments))
    assert not engine.busy and len(engine.generate([[1, 2]], max_new_tokens=3)[0].ids) == 3


def test_a_failing_call_cancels_what_runs_and_the_engine_lives_on():
    engine, prompts = make_engine(), make_prompts()
    wanted = engine.generate(prompts, max_new_tokens=9)
    decode, calls = engine.model.decode, []

    def failing(*a, **k):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return decode(*a, **k)

    engine.model.decode = failing
    with pytest.raises(KeyboardInterrupt):
        engine.generate(prompts, max_new_tokens=9)
    assert not engine.busy and engine.manager.free == engine.manager.n
    assert same(engine.generate(prompts, max_new_tokens=9), wanted)


def test_a_fixed_cache_refuses_what_can_never_fit():
    engine = Engine(make_model(), TOKENIZER, cache_tokens=64)
    with pytest.raises(UserError, match="cache"):
        engine.generate([[1] * 50], max_new_tokens=40)
    assert len(engine.generate([[1] * 50], max_new_tokens=14)[0].ids) == 14


ALONE: dict = {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, len(MIXED) - 1), st.integers(0, 3), st.booleans()), min_size=1, max_size=14))
def test_any_order_of_asking_and_giving_up(actions):
    """Requests of every kind come and go at random over a tiny cache; those that end are as alone, and nothing is lost."""
    prompts = make_prompts()
    model = ALONE.setdefault("model", make_model())
    engine = Engine(model, TOKENIZER, cache_tokens=9 * 32)
    running = []
    for which, asked, steps, give_up in actions:
        running.append((engine.submit(prompts[which], MIXED[asked], seed=which), which, asked))
        for _ in range(steps):
            engine.step()
        if give_up:
            engine.cancel(running[len(running) // 2][0])
    while engine.busy:
        engine.step()
    assert engine.manager.free == engine.manager.n and not any(engine.manager._references)
    for request, which, asked in running:
        if request.done.finish_reason == "cancelled":
            continue
        if (which, asked) not in ALONE:
            other = Engine(model, TOKENIZER)
            found = other.submit(prompts[which], MIXED[asked], seed=which)
            while other.busy:
                other.step()
            ALONE[which, asked] = found.done
        assert alike([request.done], [ALONE[which, asked]])


def test_the_long_way_to_a_token_is_the_short_one():
    """A head of one input draws what the fused sampler draws from the same logits."""
    rng = np.random.Generator(np.random.Philox(key=[3, 3]))
    z = (4 * rng.standard_normal(1000)).astype(np.float32)
    weight, x = z[:, None].copy(), np.ones((1, 1), np.float32)
    for seed in range(20):
        p = (0.8, 50, 0.9, 0.01, seed, 7)
        a, b = ops.head_sample(x, weight, *p), ops.head_sample(x, weight, *p, variant="naive")
        assert a[0] == b[0] and abs(a[1] - b[1]) < 1e-5


# ---- several threads ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engines", [1, 2])
def test_threads_that_ask_one_model_get_what_they_would_get_alone(engines):
    """Of one engine or of two on the same model: the batches differ from run to run, the bits do not."""
    model = make_model()
    mine = [Engine(model, TOKENIZER) for _ in range(engines)]
    prompts = make_prompts()[:8]
    wanted = [Engine(make_model(), TOKENIZER).generate([p], 20, seeds=[i])[0] for i, p in enumerate(prompts)]
    found: list[list] = [[] for _ in prompts]

    def ask(i: int) -> None:
        for _ in range(3):
            found[i].append(mine[i % engines].generate([prompts[i]], 20, seeds=[i])[0])

    threads = [threading.Thread(target=ask, args=(i,), daemon=True) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert all(len(f) == 3 and alike(f, [w] * 3) for f, w in zip(found, wanted, strict=True))


def test_calls_of_a_model_from_threads_wait_for_each_other():
    model = make_model()
    batch = Batch.pack([(np.array(p[:-1], np.int32), np.array(p[1:], np.int32)) for p in make_prompts((9, 33, 64, 5))])
    wanted = model.score(batch).logprobs.tobytes()
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.extend(model.score(batch).logprobs.tobytes() for _ in range(5)), daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [wanted] * 20
