"""Symbols: what can be drawn, read and shown."""

import numpy as np
import pytest

from jaxformer import InputError
from jaxformer.data import BOS, EOS, PAD, Symbols


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
