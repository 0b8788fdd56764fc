"""Several tokens between two looks of Python (Engine(steps=..)): no token, log-prob or reason differs from those of one at a time, on the CPU and on a device."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import CONFIG, GPT2, TOKENIZER, make_model, make_prompts, same

from freedive import ops
from freedive.inference import Engine
from freedive.model import DecoderConfig
from freedive.runs import UserError

DEVICES = ops.devices()
PROMPTS = make_prompts((1, 31, 32, 33, 60, 7, 2))


def engine(steps: int, device: str = "cpu", config: DecoderConfig = CONFIG, model: dict | None = None, **more: object) -> Engine:
    return Engine(make_model(config, device=device, threads=1, max_tokens=64, max_seqs=5, **(model or {})), TOKENIZER, steps=steps, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("config,model,cache", [(CONFIG, {}, "auto"), (CONFIG, {"dtype": "bfloat16"}, "auto"), (GPT2, {}, "int8")], ids=["llama", "bf16", "gpt2-int8"])
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
    cache, n = model.new_cache(4), 2
    table, zero, one = np.arange(4, dtype=np.int32).reshape(n, 2), np.zeros(n, np.int32), np.ones(n, np.float32)
    run = lambda stops: model.decode_steps(cache, 9, np.array([3, 4]), zero, table, temperature=one, top_k=zero, top_p=one, min_p=one * 0, seeds=zero, counters=zero, stop_ids=stops)
    tokens, _ = run(np.full((n, 1), -1))
    assert tokens.shape == (9, n)
    stopped = run(np.array([[tokens[2, 0]], [tokens[5, 1]]]))[0]
    last = max(tokens[:, 0].tolist().index(tokens[2, 0]), tokens[:, 1].tolist().index(tokens[5, 1]))
    assert np.array_equal(stopped, tokens[: last + 1])


def test_what_is_refused():
    with pytest.raises(UserError, match="steps is 0"):
        engine(0)
    model = make_model(threads=1)
    cache, zero, one = model.new_cache(2), np.zeros(1, np.int32), np.ones(1, np.float32)
    run = lambda steps, table: model.decode_steps(cache, steps, zero, zero, table, temperature=one, top_k=zero, top_p=one, min_p=one, seeds=zero, counters=zero, stop_ids=np.zeros((1, 0)))
    with pytest.raises(ValueError, match="longer than its cache blocks"):
        run(33, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="outside the cache"):
        run(33, np.array([[0, 2]]))
    with pytest.raises(ValueError, match="at least one step"):
        run(0, np.zeros((1, 1)))
