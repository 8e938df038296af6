"""Documents packed into rows: several stand side by side, and none sees another.

A prompt and its answer, or a conversation, is a document of which only some tokens are to be learned. Documents are
short and their lengths differ: alone in rows they would be padding for the most part.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.data.pipeline import ALONE, IGNORED, Batch, EpochBatches, Process
from jaxformer.data.text import Corpus


class Spans(NamedTuple):
    """The documents of a corpus that can be learned from, and what was left out.

    Attributes:
        starts: int [N], the first token of each.
        stops: int [N], the place behind its last one.
        cut: How many are cut.
        empty: How many are left out, because nothing of them is to be learned within the length.
    """

    starts: np.ndarray
    stops: np.ndarray
    cut: int
    empty: int


def spans(corpus: Corpus, length: int) -> Spans:
    """Return the documents of a corpus, cut to what a row holds.

    Args:
        corpus: With `learned`.
        length: Tokens of a row that are read; one more is predicted.
    """
    assert corpus.learned is not None, "a corpus of running text is cut into windows"
    starts = np.concatenate([[0], corpus.ends[:-1]])
    stops = np.minimum(corpus.ends, starts + length + 1)
    before = np.concatenate([[0], np.cumsum(corpus.learned)])  # the first token of a document is not predicted
    some = before[stops] > before[np.minimum(starts + 1, stops)]
    cut = int((stops < corpus.ends)[some].sum())
    return Spans(starts[some], stops[some], cut, int((~some).sum()))


def pack(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Return the numbers of the sizes that share a row: each goes where it leaves the least room (best fit).

    Args:
        sizes: Sizes of at most `room`, in the order in which they are placed.
        room: What the sizes in a row amount to at most.
    """
    rows: list[list[int]] = []
    open_rows: dict[int, list[int]] = {}  # by the room that is left
    rooms: list[int] = []  # the keys, in order
    for number, size in enumerate(sizes):
        place = bisect.bisect_left(rooms, size)
        if place == len(rooms):
            left = room - size
            rows.append([])
            row = len(rows) - 1
        else:
            left = rooms[place] - size
            row = open_rows[rooms[place]].pop()
            if not open_rows[rooms[place]]:
                del open_rows[rooms.pop(place)]
        rows[row].append(number)
        if left and left not in open_rows:
            open_rows[left] = []
            bisect.insort(rooms, left)
        if left:
            open_rows[left].append(row)
    return rows


def packed_batch(corpus: Corpus, found: Spans, rows: Sequence[Sequence[int]], shape: tuple[int, int]) -> Batch:
    """Return documents as arrays, int32 [B, T] each.

    They are "inputs"; "labels", the tokens that follow them, -100 where these are not learned; and "segment_ids", which
    number the documents of a row from 1 on, 0 where there is none.

    Args:
        corpus: The documents.
        found: Their places.
        rows: Numbers of the documents in each row.
        shape: (B, T), where the rows fit in.
    """
    assert corpus.learned is not None, "a corpus of running text is cut into windows"
    inputs, segments, labels = np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, IGNORED, np.int32)
    for row, numbers in enumerate(rows):
        first = 0
        for segment, number in enumerate(numbers, 1):
            here = slice(found.starts[number], found.stops[number])
            tokens, learned = corpus.tokens[here].astype(np.int32), corpus.learned[here]
            there = slice(first, first + len(tokens) - 1)
            inputs[row, there], segments[row, there] = tokens[:-1], segment
            labels[row, there] = np.where(learned[1:], tokens[1:], IGNORED)
            first = there.stop
    return {"inputs": inputs, "labels": labels, "segment_ids": segments}


class PackedBatches(EpochBatches[list[list[int]]]):
    """An endless iterator over batches of packed documents, each once in an epoch, in a new order and new company.

    Args:
        corpus: The documents.
        found: Their places.
        length: Tokens of a row T.
        batch_size: Rows of a batch B; those that the last batch of an epoch lacks are empty.
        seed: Seed of the order.
        process: Which rows of each batch to read.
    """

    def __init__(
        self, corpus: Corpus, found: Spans, length: int, batch_size: int, *, seed: int, process: Process = ALONE
    ) -> None:
        self.corpus, self.found, self.shape, self.process = corpus, found, (batch_size, length), process
        super().__init__(seed)

    def plan(self, rng: np.random.Generator) -> list[list[list[int]]]:
        """Return the numbers of the documents in each row of each batch."""
        order = rng.permutation(len(self.found.starts))
        sizes = (self.found.stops - self.found.starts - 1)[order]
        rows = [[int(order[place]) for place in places] for places in pack(sizes.tolist(), self.shape[1])]
        rows = [rows[index] for index in rng.permutation(len(rows))]
        return [rows[first : first + self.shape[0]] for first in range(0, len(rows), self.shape[0])]

    def batch(self, planned: list[list[int]]) -> Batch:
        """Return the arrays of a batch."""
        return self.process.part(packed_batch(self.corpus, self.found, planned, self.shape))


def all_packed(corpus: Corpus, found: Spans, length: int, batch_size: int) -> Iterator[Batch]:
    """Return batches of all documents, each once, in their order as far as rows are filled in it."""
    rows = pack((found.stops - found.starts - 1).tolist(), length)
    for first in range(0, len(rows), batch_size):
        yield packed_batch(corpus, found, rows[first : first + batch_size], (batch_size, length))
