"""Batches of pairs: every pair once in an epoch, few shapes, little padding, and any place can be returned to."""

import itertools

import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.data import Process
from jaxformer.data.buckets import MOST_SHAPES, Pair, PairBatches, all_batches, bucket, pair_batch
from jaxformer.training.loop import Batches

START, PAD = 1, 0


def make_pairs(count: int, longest: int = 60) -> list[Pair]:
    """Pairs whose first source token is their number."""
    rng = np.random.default_rng(0)
    lengths = np.minimum(1 + rng.geometric(0.08, (count, 2)), longest)
    return [
        Pair(np.append(100 + number, rng.integers(5, 50, source)).astype(np.int32), rng.integers(5, 50, target))
        for number, (source, target) in enumerate(lengths)
    ]


def numbers(batch: dict[str, np.ndarray]) -> list[int]:
    real = (batch["labels"] != -100).any(axis=1)
    return (batch["source"][real, 0] - 100).tolist()


def test_an_epoch_has_every_pair_once_in_few_shapes_and_little_padding() -> None:
    pairs = make_pairs(1000)
    buckets = bucket(pairs, tokens=512, rows=1)
    assert sorted(np.concatenate(buckets.members)) == list(range(1000))
    assert 1 < len(buckets.shapes) <= MOST_SHAPES
    assert all(rows * max(source, target) <= 512 for rows, source, target in buckets.shapes)
    stream = PairBatches(pairs, buckets, 3, start=START, pad=PAD)
    epochs = [list(itertools.islice(stream, len(stream.order))) for _ in range(2)]
    orders = [[number for batch in epoch for number in numbers(batch)] for epoch in epochs]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(1000))
    assert orders[0] != orders[1]
    padding = sum(int((~batch["source_mask"]).sum()) for batch in epochs[0])
    whole = 1000 * max(len(pair.source) for pair in pairs) - sum(len(pair.source) for pair in pairs)
    assert padding < whole / 3
    once = [number for batch in all_batches(pairs, buckets, start=START, pad=PAD) for number in numbers(batch)]
    assert sorted(once) == list(range(1000))


def test_a_batch_is_ready_for_teacher_forcing() -> None:
    pairs = [Pair(np.array([7, 8]), np.array([4, 5, 2])), Pair(np.array([9]), np.array([6, 2]))]
    (shape,) = bucket(pairs, tokens=None, rows=3).shapes[-1:]
    batch = pair_batch(pairs, shape._replace(rows=3, source=3, target=4), start=START, pad=PAD)
    np.testing.assert_array_equal(batch["source"], [[7, 8, 0], [9, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch["source_mask"], [[1, 1, 0], [1, 0, 0], [1, 0, 0]])
    np.testing.assert_array_equal(batch["target"], [[1, 4, 5, 0], [1, 6, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(batch["labels"], [[4, 5, 2, -100], [6, 2, -100, -100], [-100] * 4])


def test_any_place_can_be_returned_to_and_processes_share_rows() -> None:
    pairs = make_pairs(100)
    buckets = bucket(pairs, tokens=256, rows=1, multiple=2)
    stream = PairBatches(pairs, buckets, 0, start=START, pad=PAD)
    assert isinstance(stream, Batches)
    passed = [(next(stream), stream.get_state()) for _ in range(2 * len(stream.order) + 3)]
    other = PairBatches(pairs, buckets, 0, start=START, pad=PAD)
    for index in (0, len(stream.order) - 1, len(stream.order), 2 * len(stream.order)):
        other.set_state(passed[index][1])
        np.testing.assert_array_equal(next(other)["source"], passed[index + 1][0]["source"])
    halves = [PairBatches(pairs, buckets, 0, start=START, pad=PAD, process=Process(part, 2)) for part in range(2)]
    first = [next(half)["source"] for half in halves]
    np.testing.assert_array_equal(passed[0][0]["source"][::2], first[0])
    np.testing.assert_array_equal(passed[0][0]["source"][1::2], first[1])
    for place in ({"epoch": -1, "batch": 0}, {"epoch": 0, "batch": 10**6}, {"epoch": "0", "batch": 0}):
        with pytest.raises(InputError, match="no place in the data"):
            other.set_state(place)


def test_a_batch_that_holds_no_pair_is_refused() -> None:
    with pytest.raises(InputError, match=r"--batch-tokens 16 holds no pair of \d+ tokens: raise it"):
        bucket(make_pairs(50), tokens=16, rows=1)
