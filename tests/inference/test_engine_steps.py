"""Several tokens between two looks of Python (Engine(steps=..)): no token, log-prob or reason differs from those of one at a time, on the CPU and on a device,
where the next steps are asked for before the last ones were seen.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from engine_cases import BIGRAMS, CONFIG, GPT2, TOKENIZER, make_model, make_prompts, same
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from freedive import ops
from freedive.inference import Engine, Params
from freedive.inference.grammar import Grammar
from freedive.model import Batch, DecoderConfig
from freedive.runs import UserError

DEVICES = ops.devices()
PROMPTS = make_prompts((1, 31, 32, 33, 60, 7, 2))


def engine(steps: int, device: str = "cpu", config: DecoderConfig = CONFIG, model: dict | None = None, **more: object) -> Engine:
    return Engine(make_model(config, device=device, threads=1, max_tokens=64, max_seqs=5, **(model or {})), TOKENIZER, steps=steps, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config,model,cache", [(CONFIG, {}, "auto"), (CONFIG, {"dtype": "bfloat16"}, "auto"), (GPT2, {}, "int8"), (BIGRAMS, {}, "auto")],
                         ids=["llama", "bf16", "gpt2-int8", "bigrams"])  # fmt: skip
def test_steps_change_nothing(device: str, config: DecoderConfig, model: dict, cache: str):
    """More prompts than rows, ends in the midst of a visit: by a stop id, by max_new_tokens, by the context; greedy and drawn"""
    one, many = engine(1, device, config, model, kv_cache_dtype=cache), engine(5, device, config, model, kv_cache_dtype=cache)
    for how in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 40}, {"temperature": 0.8, "top_p": 0.9, "stop_ids": list(range(0, 256, 9))}):
        want = one.generate(PROMPTS, max_new_tokens=23, **how)
        assert same(want, many.generate(PROMPTS, max_new_tokens=23, **how))
    assert any(out.stopped for out in want) and many.stats.calls < one.stats.calls


def test_the_context_ends_it():
    long = make_prompts((150, 3))
    assert same(engine(1).generate(long, max_new_tokens=40), engine(8).generate(long, max_new_tokens=40))


def test_a_cache_too_small_for_all():
    """Blocks taken ahead must not keep others out for ever, nor may one be written that a row does not have"""
    prompts = make_prompts((30, 40, 20, 33))
    want = engine(1).generate(prompts, max_new_tokens=50)
    few = engine(7, cache_tokens=160)
    assert same(want, few.generate(prompts, max_new_tokens=50))


def test_who_needs_a_look_after_each_token_gets_it():
    """Stop strings and alternatives beside a request that does not care"""
    for more in ({"stop": ("e",)}, {"logprobs": 3}, {"min_new_tokens": 4, "stop_ids": list(range(128))}):
        a, b = engine(1), engine(6)
        outs = []
        for e in (a, b):
            kind = type(e.prepare([1]).params)
            requests = [e.submit(PROMPTS[4], kind(max_new_tokens=20, **more), 3), e.submit(PROMPTS[1], kind(max_new_tokens=20), 4)]
            while e.busy:
                e.step()
            outs.append([r.done for r in requests])
        assert same(*outs), more


def test_early_end_on_the_cpu():
    """The last to stop ends the call: nothing is computed for nobody"""
    model = make_model(threads=1)
    run = lambda stops: steps_of(model, model.new_cache(4), 9, np.array([3, 4]), np.zeros(2, np.int32), np.arange(4).reshape(2, 2), stops).wait()[0]
    tokens = run(np.full((2, 1), -1))
    assert tokens.shape == (9, 2)
    stopped = run(np.array([[tokens[2, 0]], [tokens[5, 1]]]))
    ends = tokens[:, 0].tolist().index(tokens[2, 0]) + 1, tokens[:, 1].tolist().index(tokens[5, 1]) + 1
    assert stopped.shape == (max(ends), 2)
    for column, end in enumerate(ends):
        assert np.array_equal(stopped[:end, column], tokens[:end, column]) and (stopped[end:, column] == -1).all()


def test_what_is_refused():
    with pytest.raises(UserError, match="steps is 0"):
        engine(0)
    model = make_model(threads=1)
    cache, zero = model.new_cache(2), np.zeros(1, np.int32)
    run = lambda steps, table, **more: steps_of(model, cache, steps, zero, zero, table, np.zeros((1, 0)), **more)
    with pytest.raises(ValueError, match="longer than its cache blocks"):
        run(33, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="outside the cache"):
        run(33, np.array([[0, 2]]))
    with pytest.raises(ValueError, match="at least one step"):
        run(0, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="may sample 0 tokens"):
        run(3, np.zeros((1, 1)), remaining=zero)
    visit = run(20, np.zeros((1, 1)), remaining=np.array([90]))
    with pytest.raises(ValueError, match="longer than its cache blocks"):
        model.decode_on(visit, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="one row per sequence"):
        model.decode_on(visit, np.zeros((2, 2)))
    with pytest.raises(ValueError, match="another width"):
        model.decode_on(visit, np.array([[0, 1, 0]]))
    run(33, np.zeros((1, 1)), remaining=np.array([32]))  # no more than it may sample


# ---- the call itself: stop ids and limits on the device, steps asked for before others were seen --------------------------


def steps_of(model: Any, cache: Any, steps: int, tokens: Any, past: Any, table: Any, stops: Any, **more: Any) -> Any:
    n = len(tokens)
    how = {"temperature": np.linspace(0, 1, n, dtype=np.float32), "top_k": np.full(n, 30), "top_p": np.full(n, 0.95), "min_p": np.zeros(n), "seeds": np.arange(n)}
    return model.decode_steps(cache, steps, tokens, past, table, **how, counters=np.asarray(past) + 1, stop_ids=stops, **more)


def cut(tokens: np.ndarray, logprobs: np.ndarray, ends: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """-1 and 0 behind each column's end"""
    behind = np.arange(len(tokens))[:, None] >= np.array(ends)
    return np.where(behind, -1, tokens), np.where(behind, np.float32(0), logprobs)


def padded(tokens: np.ndarray, logprobs: np.ndarray, steps: int) -> list[bytes]:
    """As if all steps had been done"""
    more = steps - len(tokens)
    return [np.pad(tokens, ((0, more), (0, 0)), constant_values=-1).tobytes(), np.pad(logprobs, ((0, more), (0, 0))).tobytes()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cache_dtype", ["float32", "int8"])
def test_a_sequence_that_has_stopped_writes_nothing(device: str, cache_dtype: str):
    """Its next positions lie in a block that another sequence reads: one number written there would change what that one samples"""
    model = make_model(threads=1, device=device, max_seqs=4)
    past, table = np.array([31, 20], np.int32), np.array([[0, 2], [2, 3]])  # the first goes on into block 2 from its second token on
    none = np.full((2, 2), -1)

    def run(stops: np.ndarray, table: np.ndarray, **more: Any) -> tuple[np.ndarray, np.ndarray]:
        cache = model.new_cache(4, cache_dtype)
        prompt = [np.arange(31) % 7 + 1, np.arange(20) % 5 + 3]
        batch = Batch.pack([(p, np.full(len(p), -1)) for p in prompt])
        one = np.ones(2, np.float32)
        model.decode(cache, batch, np.zeros(2), table, temperature=one, top_k=one * 0, top_p=one, min_p=one * 0, seeds=one * 0, counters=one * 0)
        return steps_of(model, cache, 7, np.array([5, 6]), past, table, stops, **more).wait()

    free = run(none, np.array([[0, 1], [2, 3]]))
    assert not np.array_equal(run(none, table)[0][:, 1], free[0][:, 1])  # so would it be noticed
    for how in ({"stops": np.array([[999_999, free[0][0, 0]], [-1, -1]]), "remaining": np.array([7, 7])}, {"stops": none, "remaining": np.array([1, 7])}):
        assert padded(*run(table=table, **how), 7) == padded(*cut(*free, [1, 7]), 7)


@pytest.mark.parametrize("device", DEVICES)
def test_steps_asked_for_before_others_were_seen(device: str):
    """Four visits in a row, looked at in any order or not at all, with ends in all of them; and another batch in between, which ends the row"""
    model = make_model(threads=1, device=device, max_seqs=6)
    n, steps, visits = 5, 3, 4
    table, tokens, past = np.arange(2 * n).reshape(n, 2), np.arange(n), np.array([0, 3, 1, 20, 7], np.int32)
    none = np.full((n, 2), -1)
    whole = steps_of(model, model.new_cache(2 * n), steps * visits, tokens, past, table, none).wait()
    stops = none.copy()
    stops[1, 1], stops[3, 0] = whole[0][4, 1], whole[0][10, 3]
    left = np.array([12, 12, 2, 12, 7])
    ends = [12, whole[0][:, 1].tolist().index(stops[1, 1]) + 1, 2, whole[0][:, 3].tolist().index(stops[3, 0]) + 1, 7]
    want = cut(*whole, ends)

    def start() -> list[Any]:
        row = [steps_of(model, model.new_cache(2 * n), steps, tokens, past, table, stops, remaining=left)]
        while len(row) < visits:
            row.append(model.decode_on(row[-1], table))
        return row

    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2], [1, 3]):
        row = start()
        for i in order:
            assert padded(*row[i].wait(), steps) == padded(*(x[steps * i : steps * (i + 1)] for x in want), steps), (order, i)
    row = start()
    assert model.decode_on(row[0], table) is None  # it is not the last any more
    model.score(Batch.pack([([1, 2, 3], [2, 3, 4])]))
    assert model.decode_on(row[3], table) is None
    assert padded(*row[3].wait(), steps) == padded(*(x[9:] for x in want), steps)
    with pytest.raises(ValueError, match="outside of the batch"):
        steps_of(model, model.new_cache(2 * n), steps, tokens, past, table, stops)
        model.logits(np.zeros(1, np.int32))  # rows have moved
    start()
    gc.collect()  # nobody looked: neither the cache nor the visits are gone before the device is done with them


# ---- the engine ----------------------------------------------------------------------------------------------------------


def watched(e: Engine) -> list[bool]:
    """Whether each `decode_on` the engine asks for was had"""
    had: list[bool] = []
    ask = e.model.decode_on

    def asked(*arguments: Any) -> Any:
        more = ask(*arguments)
        had.append(more is not None)
        return more

    e.model.decode_on = asked  # type: ignore[method-assign]
    return had


HOWS = [
    {"temperature": 0.0},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 0.7, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.3, "stop_ids": tuple(range(0, 256, 40))},
    {"temperature": 0.0, "stop_ids": tuple(range(3, 256, 11))},
    {"temperature": 1.0, "stop_ids": (65, 66, 67, 68, 69, 70, 71, 72, 73, 74)},
]
SPECIAL = [{"stop": ("e", "t")}, {"logprobs": 2}, {"repetition_penalty": 1.3}, {"speculate": 3}, {"grammar": Grammar("regex", "[a-f]{3,9}")}, {"logit_bias": {65: 3.0}}]


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_mixture_of_requests(device: str, data: st.DataObject):
    """Requests of all kinds that come while others run, are given up, and have to leave when the cache is full: who ends by himself has the bits he has alone, one
    token a visit; of one given up that is how his begin"""
    kinds = data.draw(st.lists(st.tuples(st.integers(1, 70), st.integers(1, 40), st.sampled_from(HOWS + HOWS + SPECIAL), st.integers(0, 9)), min_size=1, max_size=8))
    tight, quantised = data.draw(st.booleans()), data.draw(st.booleans())
    how = {"kv_cache_dtype": "int8" if quantised else "auto"}
    many = engine(data.draw(st.sampled_from([2, 3, 8])), device, cache_tokens=192 if tight else 2048, **how)
    foreign = data.draw(st.booleans())
    asked = [(make_prompts((length,), seed=seed)[0], Params(max_new_tokens=new, **kind), seed) for length, new, kind, seed in kinds]
    come = [data.draw(st.integers(0, 6)) for _ in asked]
    gone = [data.draw(st.one_of(st.none(), st.integers(0, 9))) for _ in asked]
    requests: list[Any] = [None] * len(asked)
    for now in range(10_000):
        for i, (prompt, params, seed) in enumerate(asked):
            if come[i] == now:
                requests[i] = many.submit(prompt, params, seed)
            if gone[i] is not None and come[i] + gone[i] == now and requests[i] is not None:
                many.cancel(requests[i])
        if foreign and now % 3 == 1:
            many.model.score(Batch.pack([([1, 2, 3], [2, 3, 4])]))
        many.step()
        if now > 16 and not many.busy:
            break
    one = engine(1, device, **how)
    for i, (prompt, params, seed) in enumerate(asked):
        alone, got = one.submit(prompt, params, seed), requests[i].done
        while alone.done is None:
            one.step()
        if got.finish_reason != "cancelled":
            assert same([alone.done], [got]), kinds[i]
        else:
            assert got.ids == alone.done.ids[: len(got.ids)] and np.array_equal(got.logprobs, alone.done.logprobs[: len(got.ids)])


@pytest.mark.skipif("cuda-emu" not in DEVICES, reason="no cuda-emu: csrc/emulation/README.md")
def test_the_next_visit_is_asked_for_before_the_last_is_seen():
    """And every visit waits for the device once"""
    e = engine(4, "cuda-emu")
    had = watched(e)
    requests = [e.prepare(p, Params(max_new_tokens=41, temperature=1.0), i) for i, p in enumerate(make_prompts((1, 7, 3)))]
    e.enqueue(requests)
    while e.busy:
        e.step()
    assert all(r.done is not None and len(r.done.ids) == 41 for r in requests)
    assert had == [True] * 9  # 1 token with the prompt, then 10 visits of 4, of which the first is asked for by itself
    assert e.stats.calls == 1 + 10


@pytest.mark.skipif("cuda-emu" not in DEVICES, reason="no cuda-emu: csrc/emulation/README.md")
def test_a_row_given_up_ends_the_row_of_visits():
    """Its blocks may be another's by then. Planted: were the visits to go on, whoever gets the blocks would say something else"""
    prompts = make_prompts((40, 40, 40))
    want = engine(1, "cuda-emu").generate(prompts, max_new_tokens=60)
    e = engine(4, "cuda-emu", cache_tokens=320)
    had = watched(e)
    requests = [e.submit(p, Params(max_new_tokens=60), i) for i, p in enumerate(prompts)]
    for _ in range(4):
        e.step()
    before = len(had)
    assert before and requests[2].done is None
    e.cancel(requests[2])
    e.step()
    assert len(had) == before  # nothing was asked for from a state in which it still runs
    while e.busy:
        e.step()
    assert same(want[:2], [r.done for r in requests[:2]])
