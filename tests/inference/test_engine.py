"""The engine's promises: the sampler's log-prob is the trainer's, a completion has no neighbours, and it ends where it should."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import CONFIG, GPT2, TOKENIZER, make_engine, make_model, make_prompts, rescored, same

from freedive.inference import Engine
from freedive.model import Batch, Model
from freedive.runs import UserError


@pytest.mark.parametrize("config", [CONFIG, GPT2], ids=["qwen3", "gpt2"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("max_tokens", [512, 128, 40], ids=["whole prompts", "a few at a time", "chunked prompts"])
def test_sampled_logprobs_are_the_training_forwards_bit_for_bit(config, temperature, max_tokens):
    engine, scorer, prompts = make_engine(config, max_tokens=max_tokens), make_model(config), make_prompts()
    outs = engine.generate(prompts, max_new_tokens=40, temperature=temperature)
    for out, again in zip(outs, rescored(scorer, prompts, outs, temperature)):
        assert len(out.ids) == 40 and out.logprobs.dtype == np.float32
        assert np.array_equal(out.logprobs, again)


def test_truncation_changes_what_is_drawn_but_not_the_logprobs_it_is_told_with():
    engine, prompts = make_engine(), make_prompts()
    outs = engine.generate(prompts, max_new_tokens=20, temperature=1.3, top_k=5, top_p=0.8, min_p=0.02)
    for out, again in zip(outs, rescored(engine.model, prompts, outs, 1.3)):
        assert np.array_equal(out.logprobs, again)


def test_greedy_is_the_argmax_of_the_whole_forward():
    engine, prompts = make_engine(), make_prompts((5, 40))
    scorer = make_model(max_targets=CONFIG.vocab_size)
    outs = engine.generate(prompts, max_new_tokens=12, temperature=0)
    for prompt, out in zip(prompts, outs):
        ids = np.array([*prompt, *out.ids[:-1]], np.int32)
        every = np.tile(np.arange(CONFIG.vocab_size, dtype=np.int32), (len(ids), 1))
        batch = Batch(ids, every, np.arange(len(ids), dtype=np.int32), np.array([0, len(ids)], np.int32))
        logprobs = scorer.score(batch).logprobs[len(prompt) - 1 :]
        assert out.ids == logprobs.argmax(axis=1).tolist()
        assert np.array_equal(out.logprobs, logprobs.max(axis=1))  # at temperature 1


def test_a_completion_depends_on_its_own_prompt_and_seed_only():
    prompts, seeds = make_prompts(), [100 + i for i in range(12)]
    settings = dict(max_new_tokens=30, temperature=0.9, top_p=0.95, stop_ids=(10, 65))
    engine = make_engine()
    together = engine.generate(prompts, seeds=seeds, **settings)
    alone = [engine.generate([p], seeds=[s], **settings)[0] for p, s in zip(prompts, seeds)]
    assert same(together, alone)
    order = [7, 3, 11, 0, 1, 5, 2, 9, 4, 8, 6, 10]
    mixed = engine.generate([prompts[i] for i in order], seeds=[seeds[i] for i in order], **settings)
    assert same(mixed, [together[i] for i in order])
    for capacity in (dict(max_seqs=1), dict(max_seqs=3), dict(max_tokens=5), dict(max_tokens=33, max_seqs=7), dict(threads=1)):
        assert same(make_engine(**capacity).generate(prompts, seeds=seeds, **settings), together), capacity


def test_many_more_prompts_than_rows_with_early_ends():
    prompts = make_prompts(tuple(1 + i % 90 for i in range(100)))
    settings = dict(max_new_tokens=25, stop_ids=tuple(range(40)), seeds=list(range(100)))
    small, large = make_engine(max_seqs=4), make_engine(max_seqs=100, max_tokens=2048)
    outs = small.generate(prompts, **settings)
    assert same(outs, large.generate(prompts, **settings))
    assert len({len(o.ids) for o in outs}) > 5 and {o.stopped for o in outs} == {True, False}


def test_samples_of_one_prompt_share_its_blocks_and_nothing_else():
    long, other = make_prompts((100, 70))
    forked = [*long[:64], *other]  # begins with two of the same blocks
    prompts, seeds = [long] * 6 + [forked] * 3 + [long[:33]], [1, 2, 3, 1, 4, 5, 1, 2, 3, 1]
    engine = make_engine(max_seqs=5, max_tokens=48)
    outs = engine.generate(prompts, max_new_tokens=20, seeds=seeds)
    assert same(outs, [make_engine().generate([p], max_new_tokens=20, seeds=[s])[0] for p, s in zip(prompts, seeds)])
    assert outs[0].ids == outs[3].ids != outs[1].ids


def test_shared_blocks_save_prompt_tokens():
    engine = make_engine(max_seqs=8)
    ran, decode = [], engine.model.decode
    engine.model.decode = lambda cache, batch, *a, **k: ran.append(batch.n_tokens) or decode(cache, batch, *a, **k)
    engine.generate(make_prompts((100,)) * 8, max_new_tokens=1)
    assert ran == [100 + 7 * 4]  # three blocks of 32 are computed once
    engine.generate(make_prompts((100,)), max_new_tokens=1)
    assert ran[1:] == [4]  # and are still there later


def written(model: Model) -> None:
    model.trained()[...] *= 1.25
    model.touch()


@pytest.mark.parametrize("change", [written, lambda model: model.adamw(0.1), lambda model: model.muon(0.1, adamw_lr=0.1)], ids=["by hand", "adamw", "muon"])
def test_weights_changed_between_calls_are_seen(change):
    model, prompts = make_model(trainable=True), make_prompts()
    engine = Engine(model, TOKENIZER)
    before = engine.generate(prompts, max_new_tokens=10)
    change(model)
    after = engine.generate(prompts, max_new_tokens=10)
    assert not same(before, after)
    assert all(np.array_equal(o.logprobs, again) for o, again in zip(after, rescored(model, prompts, after, 1.0)))


def test_stop_ids_end_a_completion_and_stay_out_of_the_text():
    engine, prompts = make_engine(), make_prompts()
    free = engine.generate(prompts, max_new_tokens=30)
    stop = free[0].ids[12]
    cut = engine.generate(prompts, max_new_tokens=30, stop_ids=(stop,))
    for a, b in zip(free, cut):
        at = a.ids.index(stop) if stop in a.ids else None
        assert b.stopped == (at is not None)
        assert b.ids == (a.ids if at is None else a.ids[: at + 1])
        assert b.text == TOKENIZER.decode(a.ids if at is None else a.ids[:at])


def test_the_context_is_filled_to_its_end_and_no_further():
    engine, prompts = make_engine(), make_prompts((159, 150, 3))
    outs = engine.generate(prompts, max_new_tokens=1000)
    assert [len(p) + len(o.ids) for p, o in zip(prompts, outs)] == [160, 160, 160]
    assert not any(o.stopped for o in outs)
    assert all(np.array_equal(o.logprobs, again) for o, again in zip(outs, rescored(engine.model, prompts, outs, 1.0)))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (dict(prompts=[[1], []]), "prompt 1 has no tokens"),
        (dict(prompts=[[1] * 160]), "160 tokens"),
        (dict(prompts=[[1, 268]]), "268"),
        (dict(prompts=[[-1]]), "-1"),
        (dict(prompts=[[1]], seeds=[1, 2]), "2 seeds"),
        (dict(prompts=[[1]], max_new_tokens=0), "max_new_tokens is 0"),
        (dict(prompts=[[1]], temperature=-1.0), "temperature is -1"),
        (dict(prompts=[[1]], temperature=float("nan")), "temperature is nan"),
        (dict(prompts=[[1]], top_p=0.0), "top_p is 0"),
        (dict(prompts=[[1]], stop_ids=(268,)), "268"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, said):
    with pytest.raises(UserError, match=said):
        make_engine().generate(**arguments)


def test_no_prompts_and_large_seeds():
    engine = make_engine()
    assert engine.generate([]) == []
    a, b = engine.generate([[1, 2]] * 2, seeds=[2**64 - 1, 2**63])
    assert a.ids != b.ids


def test_on_finish_is_called_once_for_each():
    seen: dict[int, object] = {}
    outs = make_engine(max_seqs=3).generate(make_prompts(), max_new_tokens=9, stop_ids=range(60), on_finish=seen.__setitem__)
    assert [seen[i] for i in range(12)] == outs


def test_a_stream_is_the_completion_in_whole_characters():
    engine, prompts = make_engine(), make_prompts()
    for prompt in prompts[:6]:
        out = engine.generate([prompt], max_new_tokens=60, temperature=1.0, seeds=[4], stop_ids=(0, 1, 2))[0]
        pieces = list(engine.stream(prompt, max_new_tokens=60, temperature=1.0, seed=4, stop_ids=(0, 1, 2)))
        assert "".join(pieces) == out.text and all(pieces)


def test_a_stream_never_splits_a_character():
    text = "héllo, wörld: 你好 🙂!"
    ids = TOKENIZER.encode(text)
    model = make_model()
    answers = iter(ids)

    def scripted(cache, batch, *a, **k):  # a model that says `text`, byte by byte
        return np.array([next(answers)], np.int32), np.zeros(1, np.float32)

    model.decode = scripted
    pieces = list(Engine(model, TOKENIZER).stream([1], max_new_tokens=len(ids)))
    assert pieces == list(text)


def test_an_abandoned_stream_leaves_the_engine_whole_and_others_go_on_beside():
    engine, prompts = make_engine(), make_prompts()
    alone = make_engine().generate(prompts, max_new_tokens=20)
    whole = "".join(make_engine().stream(prompts[3], max_new_tokens=90))
    stream, second = engine.stream(prompts[3], max_new_tokens=90), engine.stream(prompts[3], max_new_tokens=90)
    begin = next(stream)
    next(second)
    assert same(engine.generate(prompts, max_new_tokens=20), alone)
    second.close()
    assert begin + "".join(stream) == whole
    engine.stream(prompts[3]).close()
    assert same(engine.generate(prompts, max_new_tokens=20), alone)
    assert not engine.busy and engine.manager.free == engine.manager.n
