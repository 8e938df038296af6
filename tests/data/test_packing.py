"""Documents packed into rows: nothing lost, nothing mixed, little room wasted, and any place can be returned to."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxformer import InputError
from jaxformer.data import Corpus, Process
from jaxformer.data.examples import kind_of, read_conversations, read_prompts
from jaxformer.data.packing import PackedBatches, all_packed, pack, packed_batch, spans
from jaxformer.data.pipeline import IGNORED


def make_corpus(count: int, longest: int = 30) -> Corpus:
    """Documents whose tokens are all different; of each the second half is learned."""
    sizes = np.random.default_rng(0).integers(2, longest, count)
    learned = np.concatenate([np.arange(size) >= size // 2 for size in sizes])
    return Corpus(np.arange(sizes.sum(), dtype=np.uint32), np.cumsum(sizes), sizes, learned=learned)


@given(st.lists(st.integers(1, 40), max_size=60))
def test_every_size_has_a_row_with_room(sizes: list[int]) -> None:
    rows = pack(sizes, 40)
    assert sorted(number for row in rows for number in row) == list(range(len(sizes)))
    totals = [sum(sizes[number] for number in row) for row in rows]
    assert all(total <= 40 for total in totals)
    assert sum(totals) > 20 * (len(rows) - 1)  # two half-empty rows would have been one


def test_a_row_is_documents_side_by_side() -> None:
    corpus = Corpus(
        np.arange(10, 19), np.array([4, 6, 9]), np.ones(3, int), learned=np.array([0, 0, 1, 1, 1, 1, 0, 1, 0])
    )
    batch = packed_batch(corpus, spans(corpus, 8), [[0, 2], [1]], (3, 7))
    np.testing.assert_array_equal(batch["inputs"], [[10, 11, 12, 16, 17, 0, 0], [14] + [0] * 6, [0] * 7])
    np.testing.assert_array_equal(batch["segment_ids"], [[1, 1, 1, 2, 2, 0, 0], [1] + [0] * 6, [0] * 7])
    n = IGNORED
    np.testing.assert_array_equal(batch["labels"], [[n, 12, 13, 17, n, n, n], [15] + [n] * 6, [n] * 7])


def test_an_epoch_teaches_every_token_once_and_wastes_little() -> None:
    corpus = make_corpus(500)
    found = spans(corpus, 32)
    assert (found.cut, found.empty) == (0, 0)
    stream = PackedBatches(corpus, found, 32, 8, seed=3)
    epochs = []
    for _ in range(2):  # an epoch may have a batch more than another
        first = next(stream)
        epochs.append([first, *itertools.islice(stream, len(stream.order) - 1)])
    starts = set(found.starts.tolist())
    expected = [token for token in np.flatnonzero(corpus.learned) if token not in starts]
    for epoch in (*epochs, list(all_packed(corpus, found, 32, 8))):
        labels = np.concatenate([batch["labels"][batch["labels"] != IGNORED] for batch in epoch])
        np.testing.assert_array_equal(np.sort(labels), expected)
        for batch in epoch:
            real = batch["labels"] != IGNORED
            np.testing.assert_array_equal(batch["labels"][real], batch["inputs"][real] + 1)
    filled = np.mean([np.mean(batch["segment_ids"] > 0) for batch in epochs[0][:-1]])
    assert filled > 0.9
    assert any((one["inputs"] != other["inputs"]).any() for one, other in zip(*epochs, strict=False))


def test_what_does_not_fit_is_cut_and_what_teaches_nothing_is_left_out() -> None:
    learned = np.array([0, 0, 0, 1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 1], bool)
    corpus = Corpus(np.arange(14), np.array([5, 8, 14]), np.ones(3, int), learned=learned)
    found = spans(corpus, 3)
    np.testing.assert_array_equal(found.starts, [0, 5])
    np.testing.assert_array_equal(found.stops, [4, 8])
    assert (found.cut, found.empty) == (1, 1)


def test_any_place_can_be_returned_to_and_processes_share_rows() -> None:
    corpus = make_corpus(100)
    found = spans(corpus, 32)
    stream = PackedBatches(corpus, found, 32, 4, seed=1)
    for _ in range(len(stream.order) + 3):
        next(stream)
    state, expected = json.loads(json.dumps(stream.get_state())), next(stream)
    again = PackedBatches(corpus, found, 32, 4, seed=1)
    again.set_state(state)
    halves = [PackedBatches(corpus, found, 32, 4, seed=1, process=Process(index, 2)) for index in range(2)]
    for half in halves:
        half.set_state(state)
    parts = [next(half) for half in halves]
    for name, values in next(again).items():
        np.testing.assert_array_equal(values, expected[name])
        np.testing.assert_array_equal(np.stack([part[name] for part in parts], axis=1).reshape(values.shape), values)
    with pytest.raises(InputError, match="no place in the data"):
        again.set_state({"epoch": 0, "batch": 10_000})


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_is_what_its_first_line_is(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}]
    for expected, row in [
        ("text", {"text": "a"}),
        ("text", {"text": "a", "messages": messages}),
        ("conversations", {"messages": messages}),
        ("prompts", {"prompt": "a", "completion": "b"}),
        ("text", {"prompt": "a"}),
        ("text", [1]),
    ]:
        assert kind_of(write(tmp_path / "rows.jsonl", row), "text") == expected
    assert kind_of(tmp_path / "missing.jsonl", "text") == "text"
    assert kind_of(write(tmp_path / "rows.txt", {"prompt": "a", "completion": "b"}), "text") == "text"
    assert kind_of(None, "text") == "text"


def test_prompts_keep_their_spaces_and_bad_lines_are_named(tmp_path: Path) -> None:
    good = {"prompt": "2 + 2 =", "completion": " 4\n"}
    path = write(tmp_path / "rows.jsonl", good, {"prompt": "a"}, {"prompt": "a", "completion": " "}, [1], {"prompt": 1})
    said = []
    assert read_prompts(path, skip_bad=True, say=said.append) == [("2 + 2 =", " 4\n")]
    assert said[0].startswith(f"4 bad lines in {path}: line 2: no completion; line 3: an empty completion; line 4: [1]")
    with pytest.raises(InputError, match="--skip-bad goes on without"):
        read_prompts(path, skip_bad=False, say=said.append)


def test_conversations_are_lists_of_messages(tmp_path: Path) -> None:
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(
        tmp_path / "rows.jsonl", {"messages": good}, {"messages": []}, {"messages": [{"content": "a"}]}, {"prompt": "a"}
    )
    rows, bad = read_conversations(path)
    assert rows == [(1, good)]
    assert [number for number, _ in bad] == [2, 3, 4]
    assert "no message with a role" in bad[1][1]
