"""The block manager and the scheduler alone, driven at random: nothing is handed out twice, nothing is lost, sharing is right."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.inference.block_manager import BLOCK, Allocation, BlockManager, blocks_for
from freedive.inference.scheduler import Scheduler, Waiting

# Prompts of few blocks over few contents, so that beginnings often agree.
prompts = st.lists(st.integers(0, 2), min_size=0, max_size=4).flatmap(
    lambda contents: st.integers(1, BLOCK).map(lambda tail: np.concatenate([*(np.full(BLOCK, c, np.int32) for c in contents), np.full(tail, 9, np.int32)]))
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 24), st.lists(st.tuples(prompts, st.integers(0, 70), st.integers(0, 5)), max_size=40))
def test_blocks_are_never_given_twice_and_all_come_back(n, requests):
    manager = BlockManager(n)
    held: list[tuple[np.ndarray, Allocation]] = []
    for prompt, more, release in requests:
        free, found = manager.free, manager.allocate(prompt, len(prompt) + more)
        if found is not None:
            held.append((prompt, found))
            assert len(found.blocks) == blocks_for(len(prompt) + more) == len(set(found.blocks))
            assert found.shared * BLOCK < len(prompt)
            assert manager.free == free - len(found.blocks) + found.shared
        else:
            assert manager.free == free
        # A block in two hands holds, in both, the same full block of prompt after the same beginning.
        content: dict[int, bytes] = {}
        own: set[int] = set()
        for p, a in held:
            for j, block in enumerate(a.blocks):
                full = (j + 1) * BLOCK < len(p)
                if full:
                    assert content.setdefault(block, p[: (j + 1) * BLOCK].tobytes()) == p[: (j + 1) * BLOCK].tobytes()
                else:
                    assert block not in own
                    own.add(block)
        assert not own & content.keys()
        assert len(own | content.keys()) == n - manager.free
        if held and release < len(held):
            manager.release(held.pop(release)[1])
    for _, a in held:
        manager.release(a)
    assert manager.free == n and not manager._known


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(prompts, st.integers(1, 40)), min_size=1, max_size=20),
    st.integers(7, 20), st.integers(1, 6), st.integers(1, 90), st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_sequence_is_run_whole_in_order_and_within_capacity(wanted, n_blocks, rows, max_tokens, random):
    scheduler = Scheduler(BlockManager(n_blocks), rows, max_tokens)
    sequences = [Waiting(i, p, len(p) + new) for i, (p, new) in enumerate(wanted)]
    for s in sequences:
        scheduler.add(s)
    running: list[Waiting] = []
    covered: dict[int, int] = {}  # how much of each prompt is in the cache
    written: dict[int, bytes] = {}  # block -> prompt up to its end
    finished = 0
    while finished < len(sequences):
        for s in scheduler.admit():
            covered[s.index] = s.computed
        chunks = scheduler.chunks(len(running))
        assert chunks or running  # something always happens
        assert len(running) + sum(c.stop - c.start for c in chunks) <= max_tokens
        assert len(running) + len(chunks) <= rows
        for c in chunks:  # all of the call's keys are written before any are read
            assert c.start == covered[c.sequence.index] < c.stop
            covered[c.sequence.index] = c.stop
            for j in range(c.start // BLOCK, c.stop // BLOCK):
                written[c.sequence.allocation.blocks[j]] = c.sequence.prompt[: (j + 1) * BLOCK].tobytes()
        for c in chunks:
            for j in range(c.start // BLOCK):
                assert written[c.sequence.allocation.blocks[j]] == c.sequence.prompt[: (j + 1) * BLOCK].tobytes()
        running += [c.sequence for c in chunks if c.completes]
        for s in [s for s in running if random.random() < 0.4]:
            running.remove(s)
            scheduler.finish(s)
            finished += 1
    assert scheduler.blocks.free == n_blocks
    assert all(covered[s.index] == len(s.prompt) for s in sequences)
