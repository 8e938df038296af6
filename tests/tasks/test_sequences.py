"""Sequence tasks and their data: what is held out stays out, and any place in the stream can be returned to."""

import json

import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.data import BOS, EOS, PAD, Process, Symbols, example, held_out, is_held_out, training_batches
from jaxformer.data.pipeline import IGNORED, Examples
from jaxformer.tasks import TASKS, Copy, Reverse, SequenceSettings, SequenceTask, Sort

SMALL = {"symbols": 5, "min_length": 1, "max_length": 3}


@pytest.mark.parametrize(("task", "answer"), [(Copy, [9, 4, 7, 4]), (Reverse, [4, 7, 4, 9]), (Sort, [4, 4, 7, 9])])
def test_answers(task: type[SequenceTask], answer: list[int]) -> None:
    assert TASKS[task.name] is task
    np.testing.assert_array_equal(task().answer(np.array([9, 4, 7, 4])), answer)


def of(task: type[SequenceTask], **text: int) -> SequenceTask:
    """A task on such symbols."""
    return task(SequenceSettings(text=Symbols(**text)))


def test_teacher_forcing_is_shifted_by_one() -> None:
    row = example(of(Reverse, max_length=5), np.array([7, 8, 9], np.int32))
    np.testing.assert_array_equal(row["source"], [7, 8, 9, PAD, PAD])
    np.testing.assert_array_equal(row["target"], [BOS, 9, 8, 7, PAD, PAD])
    np.testing.assert_array_equal(row["labels"], [9, 8, 7, EOS, IGNORED, IGNORED])


@pytest.mark.parametrize("kind", [Copy, Reverse, Sort])
def test_no_held_out_sequence_is_trained_on(kind: type[SequenceTask]) -> None:
    # Few enough sequences that training meets nearly all of them.
    task = of(kind, **SMALL)
    examples = Examples(task, seed=3)
    trained = {tuple(examples[index]["source"]) for index in range(6000)}
    kept = {tuple(row) for row in held_out(task, 1000, seed=3)["source"]}
    assert len(trained) + len(kept) == 5 + 5**2 + 5**3
    assert not trained & kept
    assert 0.05 < len(kept) / (len(trained) + len(kept)) < 0.2


def test_held_out_examples_are_different_and_reproducible() -> None:
    task = Copy()
    first, again = held_out(task, 300, seed=0), held_out(task, 300, seed=0)
    assert len({tuple(row) for row in first["source"]}) == 300
    assert all(is_held_out(row[row != PAD]) for row in first["source"])
    np.testing.assert_array_equal(first["labels"], again["labels"])


def test_every_length_and_symbol_occurs() -> None:
    examples = Examples(Copy(), seed=0)
    rows = [examples[index]["source"] for index in range(500)]
    assert {int((row != PAD).sum()) for row in rows} == set(range(1, 17))
    assert set(np.concatenate(rows)) - {PAD} == set(range(3, 35))


def test_a_stream_resumes_at_the_very_batch() -> None:
    task = Copy()
    batches = training_batches(task, 4, seed=1)
    for _ in range(3):
        next(batches)
    position = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches)["source"] for _ in range(6)]
    resumed = training_batches(task, 4, seed=1)
    resumed.set_state(position)
    for batch in expected:
        np.testing.assert_array_equal(next(resumed)["source"], batch)
    other = training_batches(task, 4, seed=2)
    other.set_state(position)
    assert (next(other)["source"] != expected[0]).any()


def test_the_smallest_tasks_hold_something_out() -> None:
    for text in ({"symbols": 2, "max_length": 6}, {"symbols": 100, "max_length": 1}, SMALL):
        assert 0 < len(held_out(of(Copy, **text), 1000, seed=0)["source"]) < 50


def test_processes_share_the_rows_of_every_batch() -> None:
    """The parts of a batch make up the batch of one process, in training, later on, and in validation."""
    task = Copy(SequenceSettings(text=Symbols(**SMALL), batch_size=6))
    whole = task.batches("train")
    parts = [task.batches("train", Process(index, 3)) for index in range(3)]
    for _ in range(4):
        batch, shares = next(whole), [next(part) for part in parts]
        for index, share in enumerate(shares):
            np.testing.assert_array_equal(share["source"], batch["source"][index::3])
    position = whole.get_state()
    alone, pair = next(whole), task.batches("train", Process(1, 2))
    pair.set_state(position)  # goes on with another number of processes
    np.testing.assert_array_equal(next(pair)["labels"], alone["labels"][1::2])
    with pytest.raises(InputError, match="process 0 of 4 cannot share batches of 6 rows"):
        task.batches("train", Process(0, 4))
    (rows,), (part,) = task.batches("validation"), task.batches("validation", Process(0, 1))
    np.testing.assert_array_equal(rows["source"], part["source"])


class TooLong(Copy):
    """Say the source twice."""

    def answer(self, source: np.ndarray) -> np.ndarray:
        return np.concatenate([source, source])


class Strange(Copy):
    """Say symbols that do not exist."""

    def answer(self, source: np.ndarray) -> np.ndarray:
        return source + 100


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (TooLong, r"length 3 has shape \(6,\), longer than max_answer_length = 5: raise that"),
        (Strange, "holds 107: symbols have the ids from 3 to 34"),
    ],
)
def test_an_answer_that_no_model_could_give_is_refused(kind: type[SequenceTask], message: str) -> None:
    with pytest.raises(InputError, match=message):
        example(of(kind, max_length=5), np.array([7, 8, 9], np.int32))
