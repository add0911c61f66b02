"""Done when 1: global batches are the same bytes on any ranks, threads and accumulation, and through kills and resumes."""

import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, cast

import numpy as np
import pytest

from penstock.errors import BadData, UsageError
from penstock.mix_loader import MixLoader
from penstock.mix_rows import MixPart
from penstock.mix_source import Mixed
from penstock.mix_views import Views
from penstock.samplers.pairs import PairRule
from penstock.train.pieces import pieces_of
from tests.mix.data import Pictures, Tracks, batch_bytes, digest, sample_bytes, samples_of

CASES, BLOCKS = 1000, 10
POSITIONS = 1300


@cache
def mixture() -> Mixed:
    """Three sources, pairs by rule and stored, one row in ten of the last one bad, a contiguous run among them."""
    bad = {row: BadData("planted") for row in (*range(40, 60), *range(100, 311, 20))}
    return Mixed(
        [
            MixPart(name="tracks", source=Tracks("tracks", 20, 9, hidden=(3, 77)), pairs=PairRule(max_gap=12)),
            MixPart(name="stored", source=Pictures("stored", 120, stored_pairs=True)),
            MixPart(name="words", source=Pictures("words", 311, bad=bad)),
        ],
        views=Views(size=2),
        seed=7,
    )


@cache
def truth() -> list[bytes]:
    """The samples at the first positions, each made alone, over the ends of two epochs."""
    return samples_of(mixture(), 0, POSITIONS)


def loaders(batch_size: int, world: int, threads: int, state: str | None) -> list[MixLoader]:
    """One loader per rank, all from one saved state."""
    made = [
        MixLoader(
            mixture(), batch_size=batch_size, rank=rank, world_size=world, threads=max(threads, 1), prefetch=1 + threads % 2,
            epochs=None, budget=None,
        )
        for rank in range(world)
    ]  # fmt: skip
    for loader in made if state else []:
        loader.load_state_dict(json.loads(state or ""))
    return made


def slices(loader: MixLoader, threads: int) -> Iterator[list[bytes]]:
    """The share of one rank, batch by batch, as bytes of samples; without threads it is made here, as a DataLoader
    without workers does."""
    names = list(mixture().schema)
    if threads:
        for batch in loader:
            yield batch_bytes(batch, names)
    local = loader.batch_size // loader.world_size
    while True:
        start = loader.next_position + loader.rank * local
        yield [sample_bytes(mixture()[position], names) for position in range(start, start + local)]
        loader._step += 1


def accumulated(samples: Sequence[bytes], pieces: int) -> list[bytes]:
    """The share as the trainer cuts it: the pieces, one after another."""
    count = len(samples)
    cut = [list(one["sample"]) for one in pieces_of({"sample": list(samples)}, count, min(pieces, count))]
    assert all(cut)
    return [sample for piece in cut for sample in piece]


def run_case(dice: random.Random, batch_size: int, world: int) -> int:
    """A chain of runs, each killed after some steps and resumed on other ranks from the state saved last; gives steps."""
    step, state, steps = 0, None, 0
    divisors = [one for one in range(1, batch_size + 1) if batch_size % one == 0]
    for _ in range(dice.choice((1, 1, 2, 3))):
        threads, accumulation = dice.choice((0, 1, 2, 3, dice.randint(4, 16))), dice.randint(1, 8)
        made = loaders(batch_size, world, threads, state)
        streams = [slices(loader, threads) for loader in made]
        taken, kept = dice.randint(1, 2 if world <= 16 else 1), dice.randint(0, 2)
        for number in range(taken):
            shares = [accumulated(next(stream), accumulation) for stream in streams]
            start = (step + number) * batch_size
            expected = truth()[start : start + batch_size]
            assert digest([sample for share in shares for sample in share]) == digest(expected)
            steps += 1
            if number + 1 == min(kept, taken) and threads:  # the state saved last; what came after is done again
                state, saved = json.dumps(made[0].state_dict()), step + number + 1
                assert len(state) < 1024
                assert all(json.dumps(loader.state_dict()) == state for loader in made)
                assert json.loads(state)["next_position"] == saved * batch_size
        step = json.loads(state)["next_position"] // batch_size if state else 0
        world = dice.choice(divisors)
    return steps


@pytest.mark.parametrize("block", range(BLOCKS))
def test_global_batches_are_the_same_bytes_on_any_topology_and_through_any_chain_of_kills(block: int) -> None:
    """1,000 random cases of (world 1..64, threads 0..16, accumulation 1..8), in order and in bytes."""
    dice = random.Random(block)
    for case in range(CASES // BLOCKS):
        batch_size = round(2 ** dice.uniform(0, 6))
        world = dice.choice([one for one in range(1, batch_size + 1) if batch_size % one == 0])
        if case == 0:
            batch_size, world = 64, (64, 32, 16)[block % 3]
        assert run_case(dice, batch_size, world)


def test_the_cases_reach_over_the_end_of_an_epoch() -> None:
    loader = loaders(50, 5, 3, None)[4]
    seen: list[bytes] = []
    for _, share in zip(range(POSITIONS // 50), slices(loader, 3), strict=False):
        seen += share
    expected = [sample for start in range(40, POSITIONS, 50) for sample in truth()[start : start + 10]]
    assert len(mixture()) < POSITIONS / 2
    assert digest(seen) == digest(expected)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_of_a_torch_dataloader_give_the_same_bytes(workers: int) -> None:
    from torch.utils.data import DataLoader

    names = list(mixture().schema)
    for rank in range(2):
        steps = [list(range(step * 12 + rank * 6, step * 12 + rank * 6 + 6)) for step in range(4)]
        batches = DataLoader(cast(Any, mixture()), batch_sampler=steps, num_workers=workers, collate_fn=list)
        found = [sample_bytes(record, names) for batch in batches for record in batch]
        assert digest(found) == digest([truth()[position] for step in steps for position in step])


def test_a_world_that_does_not_divide_the_batch_is_refused_at_start() -> None:
    with pytest.raises(UsageError, match="divisor of the global batch of 10"):
        MixLoader(mixture(), batch_size=10, world_size=4)


def test_a_second_resume_in_one_epoch_and_one_after_an_iterator_was_made() -> None:
    first = loaders(8, 1, 2, None)[0]
    stream = iter(first)
    next(stream)
    state = json.dumps(first.state_dict())
    next(stream)
    first.load_state_dict(json.loads(state))  # the loader that is in use
    again = [batch_bytes(batch, list(mixture().schema)) for _, batch in zip(range(2), first, strict=False)]
    second = loaders(8, 1, 1, json.dumps(first.state_dict()))[0]
    again += [batch_bytes(batch, list(mixture().schema)) for _, batch in zip(range(1), second, strict=False)]
    assert digest([sample for batch in again for sample in batch]) == digest(truth()[8:32])


def test_resuming_exactly_at_the_end_of_an_epoch_begins_the_next() -> None:
    batch_size = 4
    loader = MixLoader(mixture(), batch_size=batch_size, budget=None)
    steps = sum(1 for _ in loader)
    assert steps == len(loader) == -(-len(mixture()) // batch_size)
    resumed = MixLoader(mixture(), batch_size=batch_size, budget=None)
    resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    start = steps * batch_size
    batch = next(iter(resumed))
    assert digest(batch_bytes(batch, list(mixture().schema))) == digest(truth()[start : start + batch_size])
    assert np.asarray(batch["position"]).tolist() == list(range(start, start + batch_size))
