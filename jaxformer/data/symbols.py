"""Random sequences of symbols: data that can be made without end."""

import zlib
from dataclasses import dataclass

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
        """Return a sequence of token ids, int32 [length]: every length, then every symbol, equally likely."""
        length = rng.integers(self.min_length, self.max_length + 1)
        return rng.integers(SPECIAL, self.vocab_size, length, dtype=np.int32)

    def read(self, text: str) -> np.ndarray:
        """Return the token ids of "3 1 4": int32 [length].

        Raises InputError for what is no symbol, and for a wrong length.
        """
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
        """Return token ids as readable text, up to the end of the sequence; special tokens inside it are named."""
        tokens = ids.tolist()
        tokens = tokens[1:] if tokens[:1] == [BOS] else tokens
        tokens = tokens[: tokens.index(EOS)] if EOS in tokens else tokens
        return " ".join(SPECIAL_NAMES[token] if token < SPECIAL else str(token - SPECIAL) for token in tokens)


def is_held_out(source: np.ndarray) -> bool:
    """Return whether a sequence is kept for evaluation.

    Its own hash decides, so that no draw can put it into training.
    """
    return zlib.crc32(source.astype("<i4").tobytes()) % HELD_OUT_SHARE == 0
