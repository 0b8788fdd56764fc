"""The service's promises: a client gets what the engine alone would give it, a closed stream leaves nothing behind, limits are told."""

from __future__ import annotations

import asyncio
import random
import time

import numpy as np
import pytest
from serve_cases import leaks, make_lm, run_with

from freedive.inference import Params
from freedive.runs import UserError
from freedive.serve import Busy, Closing, ContextOverflow, EngineFailure


def collect(service, prompt, params, **more):
    async def go():
        found = {}
        async for event in service.stream(prompt, params, **more):
            if event.index in found:
                found[event.index].add(event)
            else:
                found[event.index] = event
        return [found[i] for i in sorted(found)]

    return go()


def slowly(service, seconds=0.02):
    """Every step takes so long: what is asked for does not end while a test looks on, on however busy a machine."""
    whole = service.engine.step

    def step():
        time.sleep(seconds)
        return whole()

    service.engine.step = step


def test_a_stream_is_what_the_engine_gives_bit_for_bit():
    lm = make_lm()
    ids = lm.tokenizer.encode("Once upon a time")
    params = Params(30, 0.9, top_p=0.95, logprobs=3, prompt_logprobs=2)
    expected = lm.engine.generate([ids], 30, 0.9, top_p=0.95, logprobs=3, prompt_logprobs=2, seeds=[5], n=3)

    async def body(service):
        return await collect(service, ids, params, seed=5, n=3)

    for event, out in zip(run_with(lm, body), expected, strict=True):
        assert event.ids == out.ids and event.text == out.text and event.finish_reason == out.finish_reason
        assert event.logprobs == out.logprobs.tolist() and event.top_logprobs == out.top_logprobs
        assert event.prompt_logprobs == out.prompt_logprobs and event.prompt_top_logprobs == out.prompt_top_logprobs


def test_stop_strings_never_show_and_characters_are_whole():
    lm = make_lm()
    ids = lm.tokenizer.encode("héllo")

    async def body(service):
        texts = []
        async for event in service.stream(ids, Params(60, 1.5, stop=("e", "\u00e9")), seed=1):
            texts.append(event.text)
        return texts

    (alone,) = lm.engine.generate([ids], 60, 1.5, stop=("e", "\u00e9"), seeds=[1])
    assert "".join(run_with(lm, body)) == alone.text and "e" not in alone.text


def test_many_clients_that_leave_at_random_lose_nobody_and_leak_nothing():
    lm = make_lm(max_seqs=8)
    rng = random.Random(0)
    prompts = [lm.tokenizer.encode("".join(rng.choice("abcdefg ") for _ in range(rng.randint(1, 90)))) for _ in range(60)]
    alone = make_lm().engine.generate(prompts, 25, 0.8, seeds=range(60))

    async def body(service):
        async def client(i):
            stays = i % 3 != 0
            stream = await service.open(prompts[i], Params(25, 0.8), seed=i)
            got = []
            async for event in stream:
                got += event.ids
                if not stays and len(got) > i % 7:
                    stream.close()
                    return None
            return got

        found = await asyncio.gather(*(client(i) for i in range(60)))
        while service.engine.busy:
            await asyncio.sleep(0.01)
        assert service.open_choices == 0
        leaks(service)
        return found

    for i, got in enumerate(run_with(lm, body, max_queue=100)):
        assert got == (alone[i].ids if i % 3 else None)


def test_a_closed_stream_frees_its_row_before_the_next_step():
    lm = make_lm()

    async def body(service):
        for _ in range(100):
            stream = await service.open([1, 2, 3], Params(100, 1.0), n=4)
            await stream.next()
            if service.engine.busy:
                break
            stream.close()  # it had all tokens before this thread came to look
        assert service.engine.busy
        stream.close()
        calls = lm.engine.stats.calls
        while service.engine.busy:
            await asyncio.sleep(0.001)
        leaks(service)
        return lm.engine.stats.calls - calls

    assert run_with(lm, body) <= 1  # the step under way


def test_a_cancelled_task_frees_what_its_stream_held():
    lm = make_lm()

    async def body(service):
        task = asyncio.ensure_future(collect(service, [1, 2, 3], Params(120, 1.0)))
        while not service.engine.busy:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while service.engine.busy:
            await asyncio.sleep(0.001)
        assert service.open_choices == 0
        leaks(service)

    run_with(lm, body)


def test_limits_are_errors_with_the_numbers():
    lm = make_lm(max_seqs=2)

    async def body(service):
        with pytest.raises(ContextOverflow, match="128 tokens; the request has 140: 20 in the prompt, 120"):
            await service.open([1] * 20, Params(120))
        with pytest.raises(UserError, match="token id 300"):
            await service.open([1, 300], Params(5))
        with pytest.raises(UserError, match="no tokens"):
            await service.open([], Params(5))
        with pytest.raises(UserError, match="6 sequences"):
            await service.open([1], Params(5), n=6)
        slowly(service)
        streams = [await service.open([1], Params(100, 1.0)) for _ in range(5)]
        with pytest.raises(Busy):
            await service.open([1], Params(5))
        for stream in streams:
            stream.close()
        assert len((await collect(service, [1], Params(5, 1.0)))[0].ids) == 5  # room again at once
        assert service.open_choices == 0

    run_with(lm, body, max_queue=3)


def test_a_deadline_ends_what_takes_too_long():
    lm = make_lm(max_seqs=1)

    async def body(service):
        first = await service.open([1], Params(100, 1.0), deadline=1e-4)
        events = [event async for event in first]
        return events[-1].finish_reason

    assert run_with(lm, body) == "deadline"


def test_a_failing_step_is_an_error_of_those_under_way_only(monkeypatch, capsys):
    lm = make_lm()

    async def body(service):
        whole = service.engine.step
        monkeypatch.setattr(service.engine, "step", lambda: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(EngineFailure, match="MemoryError"):
            await collect(service, [1], Params(5))
        monkeypatch.setattr(service.engine, "step", whole)
        for request in list(service.engine.scheduler.waiting):  # the engine's own step would have dropped it
            service.engine.cancel(request)
        assert len((await collect(service, [1], Params(5, 1.0)))[0].ids) == 5
        assert service.open_choices == 0

    run_with(lm, body)
    assert "no room" in capsys.readouterr().err


def test_close_lets_requests_end_or_cancels_them():
    lm = make_lm()

    async def body(service):
        task = asyncio.ensure_future(collect(service, [1], Params(20, 1.0)))
        while not service.open_choices and not task.done():
            await asyncio.sleep(0.001)
        await service.close(grace=30)
        assert (await task)[0].finish_reason == "length"
        with pytest.raises(Closing):
            await service.open([1], Params(5))

    run_with(lm, body)

    async def at_once(service):
        slowly(service)
        stream = await service.open([1], Params(120, 1.0))
        await stream.next()
        await service.close()
        events = [event async for event in stream]
        assert events[-1].finish_reason == "cancelled"
        leaks(service)

    run_with(make_lm(), at_once)


def test_a_function_of_the_model_runs_between_steps():
    lm = make_lm()

    async def body(service):
        assert await service.call(lambda a: a + 1, 41) == 42
        with pytest.raises(ZeroDivisionError):
            await service.call(lambda: 1 // 0)
        ids, scores = await service.call(lm.score, "hello")
        return ids, scores

    ids, scores = run_with(lm, body)
    again = make_lm().score("hello")
    assert ids == again[0] and np.array_equal(scores, again[1])
