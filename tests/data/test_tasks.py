"""Tasks and their pipelines: what is held out stays out, and any place in the stream can be returned to."""

import json

import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.data import BOS, EOS, PAD, TASKS, Symbols, example, held_out, is_held_out, training_batches
from jaxformer.data.pipeline import IGNORED, Examples

SMALL = Symbols(symbols=5, min_length=1, max_length=3)


@pytest.mark.parametrize(
    ("name", "answer"), [("copy", [9, 4, 7, 4]), ("reverse", [4, 7, 4, 9]), ("sort", [4, 4, 7, 9])]
)
def test_answers(name: str, answer: list[int]) -> None:
    np.testing.assert_array_equal(TASKS[name]().answer(np.array([9, 4, 7, 4])), answer)


def test_teacher_forcing_is_shifted_by_one() -> None:
    row = example(TASKS["reverse"](Symbols(max_length=5)), np.array([7, 8, 9], np.int32))
    np.testing.assert_array_equal(row["source"], [7, 8, 9, PAD, PAD])
    np.testing.assert_array_equal(row["target"], [BOS, 9, 8, 7, PAD, PAD])
    np.testing.assert_array_equal(row["labels"], [9, 8, 7, EOS, IGNORED, IGNORED])


@pytest.mark.parametrize("name", TASKS)
def test_no_held_out_sequence_is_trained_on(name: str) -> None:
    # Few enough sequences that training meets nearly all of them.
    task = TASKS[name](SMALL)
    examples = Examples(task, seed=3)
    trained = {tuple(examples[index]["source"]) for index in range(6000)}
    kept = {tuple(row) for row in held_out(task, 1000, seed=3)["source"]}
    assert len(trained) + len(kept) == 5 + 5**2 + 5**3
    assert not trained & kept
    assert 0.05 < len(kept) / (len(trained) + len(kept)) < 0.2


def test_held_out_examples_are_different_and_reproducible() -> None:
    task = TASKS["copy"]()
    first, again = held_out(task, 300, seed=0), held_out(task, 300, seed=0)
    assert len({tuple(row) for row in first["source"]}) == 300
    assert all(is_held_out(row[row != PAD]) for row in first["source"])
    np.testing.assert_array_equal(first["labels"], again["labels"])


def test_every_length_and_symbol_occurs() -> None:
    examples = Examples(TASKS["copy"](), seed=0)
    rows = [examples[index]["source"] for index in range(500)]
    assert {int((row != PAD).sum()) for row in rows} == set(range(1, 17))
    assert set(np.concatenate(rows)) - {PAD} == set(range(3, 35))


def test_a_stream_resumes_at_the_very_batch() -> None:
    task = TASKS["copy"]()
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


def test_symbols_are_read_and_shown() -> None:
    text = Symbols(symbols=32, max_length=4)
    ids = text.read(" 3 1  31 ")
    np.testing.assert_array_equal(ids, [6, 4, 34])
    assert text.show(ids) == "3 1 31"
    assert text.show(np.array([BOS, 6, 4, EOS, 9])) == "3 1"
    assert text.show(np.array([6, PAD, BOS])) == "3 <pad> <bos>"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("3 32", "'32' is no symbol"),
        ("3 x", "'x' is no symbol"),
        ("-1", "'-1'"),
        ("9" * 5000, "'9{60}' is no symbol"),
        ("", "0 symbols"),
        ("1 2 3 4 5", "5"),
    ],
)
def test_wrong_symbols_are_named(words: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Symbols(symbols=32, max_length=4).read(words)


@pytest.mark.parametrize(
    "settings",
    [
        {"symbols": 1},
        {"min_length": 0},
        {"min_length": 5, "max_length": 4},
        {"symbols": 2, "max_length": 5},
        {"symbols": 99, "max_length": 1},
    ],
)
def test_impossible_sequences_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Symbols(**settings)


@pytest.mark.parametrize(("symbols", "max_length"), [(2, 6), (100, 1), (10**9, 10**9)])
def test_enough_sequences_are_accepted(symbols: int, max_length: int) -> None:
    assert Symbols(symbols=symbols, max_length=max_length).vocab_size == symbols + 3


def test_the_smallest_tasks_hold_something_out() -> None:
    for text in (
        Symbols(symbols=2, max_length=6),
        Symbols(symbols=100, max_length=1),
        Symbols(symbols=5, max_length=3),
    ):
        assert 0 < len(held_out(TASKS["copy"](text), 1000, seed=0)["source"]) < 50
