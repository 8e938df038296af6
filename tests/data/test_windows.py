"""Windows over a corpus: every token is predicted once, in an order of each epoch, which resumes where it stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.data import Corpus, open_corpus, text_batches, train_tokenizer, windows
from jaxformer.data.pipeline import IGNORED

LINES = "A word, or two.\r\nÉ and \N{GRINNING FACE}!\n\n"


def numbers(count: int) -> Corpus:
    """A corpus of one document whose tokens are their own places."""
    return Corpus(np.arange(count, dtype=np.uint16), np.array([count]), np.array([count]))


def test_labels_are_the_tokens_behind() -> None:
    batches = text_batches(numbers(101), length=7, batch_size=3, seed=0)
    for _ in range(20):
        batch = next(batches)
        assert {name: (values.shape, values.dtype) for name, values in batch.items()} == {
            "inputs": ((3, 7), np.int32),
            "labels": ((3, 7), np.int32),
        }
        np.testing.assert_array_equal(batch["labels"], batch["inputs"] + 1)
        np.testing.assert_array_equal(batch["inputs"] - batch["inputs"][:, :1], np.tile(np.arange(7), (3, 1)))


@pytest.mark.parametrize("count", [1 + 7 * 30, 7 * 31])
def test_an_epoch_has_every_window_once_in_an_order_of_its_own(count: int) -> None:
    batches = text_batches(numbers(count), length=7, batch_size=5, seed=3)
    epochs = [np.concatenate([next(batches)["inputs"] for _ in range(6)]) for _ in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.arange(210))
    orders = {tuple(epoch[:, 0]) for epoch in epochs}
    assert len(orders) == 3
    assert tuple(range(0, 210, 7)) not in orders


def test_batches_may_be_larger_than_an_epoch() -> None:
    batch = next(text_batches(numbers(1 + 7 * 3), length=7, batch_size=11, seed=0))
    assert np.bincount(batch["inputs"][:9, 0]).tolist() == [3, *[0] * 6, 3, *[0] * 6, 3]


def test_a_stream_of_text_resumes_at_the_very_batch() -> None:
    def start(seed: int):
        return text_batches(numbers(500), length=11, batch_size=4, seed=seed)

    batches = start(1)
    for _ in range(17):  # into the second epoch
        next(batches)
    position = json.loads(json.dumps(batches.get_state()))
    expected = [next(batches)["inputs"] for _ in range(30)]
    resumed, other = start(1), start(2)
    resumed.set_state(position)
    other.set_state(position)
    for inputs in expected:
        np.testing.assert_array_equal(next(resumed)["inputs"], inputs)
    assert (next(other)["inputs"] != expected[0]).any()
    np.testing.assert_array_equal(next(start(5))["labels"], next(start(5))["labels"])


@pytest.mark.parametrize("count", [8, 9, 14, 15, 16, 22, 36, 37, 100])
def test_every_token_but_the_first_is_predicted_once(count: int) -> None:
    batches = list(windows(numbers(count), length=7, batch_size=5))
    assert all(values.shape == (5, 7) and values.dtype == np.int32 for batch in batches for values in batch.values())
    inputs, labels = (np.concatenate([batch[name] for batch in batches]).ravel() for name in ("inputs", "labels"))
    np.testing.assert_array_equal(labels[labels != IGNORED], np.arange(1, count))
    np.testing.assert_array_equal(inputs[labels != IGNORED], np.arange(count - 1))
    assert len(batches) == -(-(count - 1) // 35)


@pytest.mark.parametrize("use", [windows, lambda *sizes: text_batches(*sizes, seed=0)])
def test_a_text_shorter_than_the_context_is_refused(use: Callable[..., object]) -> None:
    with pytest.raises(InputError, match="7 tokens, too few for a context of 7"):
        use(numbers(7), 7, 2)
    use(numbers(8), 7, 2)


def test_windows_of_a_file_are_its_text(tmp_path: Path) -> None:
    source, text = tmp_path / "text.txt", LINES * 3
    source.write_bytes(text.encode())
    tokenizer = train_tokenizer("char", [text], 300)
    corpus = open_corpus(source, tokenizer, tmp_path / "cache")
    batch = next(iter(windows(corpus, 19, 2)))
    assert tokenizer.decode(batch["inputs"].ravel()) == text[:38]
    rows = next(text_batches(corpus, 19, 3, seed=0))
    whole = tokenizer.decode(corpus.tokens)
    assert all(tokenizer.decode(row) in whole for row in rows["labels"])
