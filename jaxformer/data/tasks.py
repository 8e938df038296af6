"""Sequence tasks: what to learn when the data can be made without end.

A task is one class: what its sequences are written in (`text`), and the answer to a source. To add one, write the class
and name it in `TASKS`; training, generating and the command line then know it.
"""

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from jaxformer.errors import InputError
from jaxformer.schema import INT32_MAX, check_range

PAD, BOS, EOS = 0, 1, 2
SPECIAL_NAMES = ("<pad>", "<bos>", "<eos>")
SPECIAL = len(SPECIAL_NAMES)  # ids below it are not symbols
HELD_OUT_SHARE = 10  # one sequence in ten is never trained on
DIGITS = 20  # of a number that people write
FEWEST = 100  # different sequences that a task needs, so that some are held out and some are not


@dataclass(frozen=True)
class Symbols:
    """Random sequences of symbols, which people read and write as the numbers 0, 1, 2 ... with spaces between."""

    symbols: int = 32
    """how many different symbols there are"""
    min_length: int = 1
    """length of the shortest sequence"""
    max_length: int = 16
    """length of the longest sequence"""

    def __post_init__(self) -> None:
        """Refuse sequences that cannot be drawn."""
        for name in ("symbols", "min_length", "max_length"):
            check_range(f"--{name.replace('_', '-')}", getattr(self, name), -INT32_MAX)
        if self.symbols < 2:
            raise InputError(f"--symbols must be at least 2, not {self.symbols}: one symbol has nothing to tell")
        if not 1 <= self.min_length <= self.max_length:
            raise InputError(
                f"lengths must satisfy 1 <= min_length <= max_length: {self.min_length}, {self.max_length}"
            )
        few = range(self.min_length, self.max_length + 1)[:7]  # two symbols alone make enough sequences of length 7
        if sum(self.symbols ** min(length, 7) for length in few) < FEWEST:
            raise InputError(f"fewer than {FEWEST} different sequences: raise --symbols or --max-length")

    @property
    def vocab_size(self) -> int:
        """Symbols and special tokens together."""
        return SPECIAL + self.symbols

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A sequence of token ids, int32 [length]: every length, then every symbol, equally likely."""
        length = rng.integers(self.min_length, self.max_length + 1)
        return rng.integers(SPECIAL, self.vocab_size, length, dtype=np.int32)

    def read(self, text: str) -> np.ndarray:
        """The token ids of "3 1 4": int32 [length]. Raises InputError for what is no symbol, and for a wrong length."""
        words = text.split()
        for word in words:
            known = word.isascii() and word.isdecimal() and len(word) < DIGITS and int(word) < self.symbols
            if not known:
                raise InputError(
                    f"{word[:60]!r} is no symbol: write numbers from 0 to {self.symbols - 1} with spaces between"
                )
        if not 1 <= len(words) <= self.max_length:
            raise InputError(f"{len(words)} symbols given: this model reads from 1 to {self.max_length}")
        return np.array([SPECIAL + int(word) for word in words], np.int32)

    def show(self, ids: np.ndarray) -> str:
        """Token ids as people read them, up to the end of the sequence; special tokens inside it are named."""
        tokens = ids.tolist()
        tokens = tokens[1:] if tokens[:1] == [BOS] else tokens
        tokens = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        return " ".join(SPECIAL_NAMES[token] if token < SPECIAL else str(token - SPECIAL) for token in tokens)


class Task(Protocol):
    """What a task must have to be trained, evaluated and used."""

    @property
    def text(self) -> Symbols:
        """How sources are drawn, read and shown."""
        ...

    def answer(self, source: np.ndarray) -> np.ndarray:
        """The right target of a source, both int32 [length]."""
        ...


@dataclass(frozen=True)
class Copy:
    """Say the source again."""

    text: Symbols = Symbols()

    def answer(self, source: np.ndarray) -> np.ndarray:
        """The source itself."""
        return source


@dataclass(frozen=True)
class Reverse:
    """Say the source backwards."""

    text: Symbols = Symbols()

    def answer(self, source: np.ndarray) -> np.ndarray:
        """The source from its end."""
        return source[::-1]


@dataclass(frozen=True)
class Sort:
    """Say the symbols of the source in order of size."""

    text: Symbols = Symbols()

    def answer(self, source: np.ndarray) -> np.ndarray:
        """The source, smallest symbol first."""
        return np.sort(source)


TASKS: dict[str, type[Copy] | type[Reverse] | type[Sort]] = {"copy": Copy, "reverse": Reverse, "sort": Sort}


def is_held_out(source: np.ndarray) -> bool:
    """Whether a sequence is kept for evaluation. Its own hash decides, so that no draw can put it into training."""
    return zlib.crc32(source.astype("<i4").tobytes()) % HELD_OUT_SHARE == 0
