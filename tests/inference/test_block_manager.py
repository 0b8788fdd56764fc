"""The block manager and the scheduler alone, driven at random: nothing is handed out twice, nothing is lost, sharing is right."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.inference.block_manager import BLOCK, Allocation, BlockManager, blocks_for
from freedive.inference.scheduler import Request, Scheduler

# Prompts of few blocks over few contents, so that beginnings often agree.
prompts = st.lists(st.integers(0, 2), min_size=0, max_size=4).flatmap(
    lambda contents: st.integers(1, BLOCK).map(lambda tail: np.concatenate([*(np.full(BLOCK, c, np.int32) for c in contents), np.full(tail, 9, np.int32)]))
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 24), st.lists(st.tuples(prompts, st.integers(0, 3), st.integers(0, 5), st.integers(0, 130)), max_size=40))
def test_blocks_are_never_given_twice_and_all_come_back(n, requests):
    """Random allocations, growth and releases: two hands hold one block only for the same ids up to its end, computed by somebody."""
    manager = BlockManager(n)
    held: list[tuple[np.ndarray, Allocation]] = []
    truth: dict[int, bytes] = {}  # block -> the ids up to its end that were last computed into it
    for prompt, more, release, computed in requests:
        free, matched = manager.free, manager.match(prompt)
        unused = sum(manager._references[b] == 0 for b in matched)
        found = manager.allocate(prompt)
        if found is None:
            assert manager.free == free and blocks_for(len(prompt)) - len(matched) + unused > free
        else:
            assert len(found.blocks) == blocks_for(len(prompt)) == len(set(found.blocks)) and found.blocks[: found.shared] == matched
            assert found.shared * BLOCK < len(prompt) and manager.free == free - len(found.blocks) + found.shared - unused
            for j, block in enumerate(found.blocks):
                upto = prompt[: (j + 1) * BLOCK].tobytes()
                if j < found.shared:
                    assert truth[block] == upto
                truth[block] = upto
            for _ in range(more):
                if (block := manager.append(found)) is not None:
                    truth[block] = b"growing"
            held.append((prompt, found))
        own: set[int] = set()
        for p, a in held:
            for j, block in enumerate(a.blocks):
                if (j + 1) * BLOCK >= len(p):
                    assert block not in own
                    own.add(block)
        assert len({b for _, a in held for b in a.blocks}) == n - manager.free
        if held and release < len(held) and release == len(held) - 1:  # the last may have been interrupted; others have run
            p, a = held.pop(release)
            manager.release(a, p[: max(a.shared * BLOCK, min(computed, len(p) - 1))])
        elif held and release < len(held):
            p, a = held.pop(release)
            manager.release(a, p[: len(p) - 1])
    for p, a in reversed(held):
        manager.release(a, p[: len(p) - 1])
    assert manager.free == n and not any(manager._references)
    assert {manager._content[b].digest for b in manager._unused} == set(manager._known)  # everything known is there to be taken


def test_what_was_said_is_found_by_the_next_turn_and_the_longest_unused_goes_first():
    manager, ids = BlockManager(6), np.arange(200, dtype=np.int32)
    first = manager.allocate(ids[:70])
    assert first.shared == 0 and len(first.blocks) == 3
    manager.append(first)
    manager.release(first, ids[:120])  # the prompt and 50 ids more
    again = manager.allocate(ids[:130])
    assert again.shared == 3 and again.blocks[:3] == first.blocks[:3]
    manager.release(again, ids[:129])
    other = manager.allocate(np.full(65, 7, np.int32))  # needs 3 blocks: 1 was never used, 1 is no full block, 1 has to be thrown out
    assert other.shared == 0 and len(manager.match(ids)) == 3  # the end of the chain went
    manager.release(other, np.full(64, 7, np.int32))
    manager.new_weights()
    assert not manager.match(ids) and manager.free == 6


def test_a_hash_is_not_believed():
    manager, ids = BlockManager(4), np.arange(40, dtype=np.int32)
    a = manager.allocate(ids)
    block = manager.match(ids)[0]
    manager._content[block] = type(manager._content[block])(manager._content[block].digest, b"other ids")
    assert not manager.match(ids)
    manager.release(a, ids[:39])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(prompts, st.integers(1, 40)), min_size=1, max_size=20),
    st.integers(7, 20), st.integers(1, 6), st.integers(1, 90), st.randoms(use_true_random=False),
)  # fmt: skip
def test_every_request_is_run_whole_in_order_and_within_capacity(wanted, n_blocks, rows, max_tokens, random):
    scheduler = Scheduler(BlockManager(n_blocks), rows, max_tokens)
    requests = [Request(p, len(p) + new, index=i) for i, (p, new) in enumerate(wanted)]
    for r in requests:
        scheduler.add(r)
    running: list[Request] = []
    covered: dict[int, int] = {}  # how much of each prompt is in the cache
    written: dict[int, bytes] = {}  # block -> prompt up to its end
    finished, preemptions = 0, 10
    while finished < len(requests):
        for r in scheduler.admit():
            covered[r.index] = r.computed
        chunks = scheduler.chunks(len(running))
        assert chunks or running  # something always happens
        assert len(running) + sum(c.stop - c.start for c in chunks) <= max_tokens
        assert len(running) + len(chunks) <= rows
        for c in chunks:  # all of the call's keys are written before any are read
            assert c.start == covered[c.request.index] < c.stop
            covered[c.request.index] = c.stop
            for j in range(c.start // BLOCK, c.stop // BLOCK):
                written[c.request.allocation.blocks[j]] = c.request.ids[: (j + 1) * BLOCK].tobytes()
        for c in chunks:
            for j in range(c.start // BLOCK):
                assert written[c.request.allocation.blocks[j]] == c.request.ids[: (j + 1) * BLOCK].tobytes()
        running += [c.request for c in chunks if c.completes]
        if preemptions and scheduler.admitted and random.random() < 0.2:
            preemptions -= 1
            victim = scheduler.youngest()
            done = victim.computed if victim in scheduler.prefilling else len(victim.ids) - 1
            if victim in running:
                running.remove(victim)
            scheduler.preempt(victim, victim.ids[:done])
        for r in [r for r in scheduler.admitted if random.random() < (0.4 if r in running else 0.05)]:
            if r not in scheduler.admitted:  # sent back with the one before
                continue
            done = r.computed if r in scheduler.prefilling else len(r.ids) - 1
            if r in running:
                running.remove(r)
            scheduler.leave(r, r.ids[:done])
            covered[r.index] = len(r.ids)
            finished += 1
    assert scheduler.blocks.free == n_blocks and not scheduler.busy
    assert all(covered[r.index] == len(r.ids) for r in requests)
