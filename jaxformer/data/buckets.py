"""Batches of pairs of about equal lengths, in few shapes, so that little is padded and few programs are compiled."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxformer.data.pipeline import ALONE, IGNORED, Batch, EpochBatches, Process
from jaxformer.errors import InputError

MOST_SHAPES = 8


class Pair(NamedTuple):
    """The tokens of a pair.

    Attributes:
        source: int32 [S].
        target: int32 [T], with the token that ends it.
    """

    source: np.ndarray
    target: np.ndarray


class Shape(NamedTuple):
    """The shape of a batch.

    Attributes:
        rows: Number of pairs B.
        source: Tokens of the longest source S.
        target: Tokens of the longest target T.
    """

    rows: int
    source: int
    target: int


class Buckets(NamedTuple):
    """Pairs by length.

    Attributes:
        members: int [N] for each shape, the numbers of its pairs.
        shapes: The shapes of batches.
    """

    members: tuple[np.ndarray, ...]
    shapes: tuple[Shape, ...]


def bucket(pairs: Sequence[Pair], *, tokens: int | None, rows: int, multiple: int = 1) -> Buckets:
    """Return pairs divided into at most 8 buckets by the longer side, each with about as many tokens.

    Args:
        pairs: The pairs.
        tokens: Tokens of a batch, of its longer side, with padding. None: batches have `rows` pairs.
        rows: Pairs in a batch, where `tokens` does not say.
        multiple: The number of pairs is a multiple of this.

    Raises:
        InputError: A batch cannot hold the longest pair.
    """
    lengths = np.array([(len(pair.source), len(pair.target)) for pair in pairs])
    longer = lengths.max(axis=1)
    order = np.argsort(longer, kind="stable")
    totals = np.cumsum(longer[order])
    shares = totals[-1] * np.arange(1, MOST_SHAPES + 1) / MOST_SHAPES
    edges = sorted({int(longer[order][np.searchsorted(totals, share)]) for share in shares} | {int(longer.max())})
    members, shapes = [], []
    for below, edge in zip([0, *edges], edges, strict=False):
        chosen = np.flatnonzero((longer > below) & (longer <= edge))
        if len(chosen):
            source, target = lengths[chosen].max(axis=0).tolist()
            count = rows if tokens is None else tokens // max(source, target) // multiple * multiple
            if not count:
                several = "pair" if multiple == 1 else f"{multiple} pairs"
                raise InputError(
                    f"--batch-tokens {tokens} holds no {several} of {max(source, target)} tokens: raise it, or "
                    "lower --max-length or --accumulate"
                )
            count = min(count, -(-len(chosen) // multiple) * multiple)
            members.append(chosen)
            shapes.append(Shape(count, source, target))
    return Buckets(tuple(members), tuple(shapes))


def pair_batch(pairs: Sequence[Pair], shape: Shape, *, start: int, pad: int) -> Batch:
    """Return pairs as arrays for teacher forcing, filled up to a shape with rows that do not count.

    They are "source" [B, S] and "source_mask", True at tokens; "target" [B, T], which the decoder reads: the start
    token, and the target without its last token; and "labels" [B, T], the target, -100 at padding.

    Args:
        pairs: At most B pairs.
        shape: The shape.
        start: The token that the decoder begins with.
        pad: The token at padding.
    """
    rows, S, T = shape
    source, mask = np.full((rows, S), pad, np.int32), np.zeros((rows, S), bool)
    target, labels = np.full((rows, T), pad, np.int32), np.full((rows, T), IGNORED, np.int32)
    target[:, 0] = start
    for row, pair in enumerate(pairs):
        source[row, : len(pair.source)], mask[row, : len(pair.source)] = pair.source, True
        target[row, 1 : len(pair.target)], labels[row, : len(pair.target)] = pair.target[:-1], pair.target
    mask[len(pairs) :, 0] = True  # a row of padding alone has no key to attend to
    return {"source": source, "source_mask": mask, "target": target, "labels": labels}


class PairBatches(EpochBatches[tuple[Shape, np.ndarray]]):
    """An endless iterator over batches of pairs.

    Every epoch contains every pair once, in a new order; rows without a pair fill up the last batch of a bucket.

    Args:
        pairs: The pairs.
        buckets: Their division.
        seed: Seed of the order.
        start: The token that the decoder begins with.
        pad: The token at padding.
        process: Which rows of each batch to read.
    """

    def __init__(
        self, pairs: Sequence[Pair], buckets: Buckets, seed: int, *, start: int, pad: int, process: Process = ALONE
    ) -> None:
        self.pairs, self.buckets, self.process = pairs, buckets, process
        self.start, self.pad = start, pad
        super().__init__(seed)

    def plan(self, rng: np.random.Generator) -> list[tuple[Shape, np.ndarray]]:
        """Return the shapes of the batches of an epoch, and the numbers of their pairs."""
        batches = [
            (shape, part)
            for members, shape in zip(self.buckets.members, self.buckets.shapes, strict=True)
            for part in parts(rng.permutation(members), shape.rows)
        ]
        return [batches[index] for index in rng.permutation(len(batches))]

    def batch(self, planned: tuple[Shape, np.ndarray]) -> Batch:
        """Return the pairs of a batch as arrays."""
        shape, chosen = planned
        pairs = [self.pairs[index] for index in chosen]
        return self.process.part(pair_batch(pairs, shape, start=self.start, pad=self.pad))


def parts(numbers: np.ndarray, size: int) -> list[np.ndarray]:
    """Return numbers in parts of one size, of which the last may be smaller."""
    return [numbers[first : first + size] for first in range(0, len(numbers), size)]


def all_batches(pairs: Sequence[Pair], buckets: Buckets, *, start: int, pad: int) -> Iterator[Batch]:
    """Return the batches of all pairs, each once, in order of length."""
    for members, shape in zip(buckets.members, buckets.shapes, strict=True):
        for chosen in parts(members, shape.rows):
            yield pair_batch([pairs[index] for index in chosen], shape, start=start, pad=pad)
