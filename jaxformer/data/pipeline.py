"""Batches drawn by index, so that any position in an endless stream can be returned to."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from jaxformer.data.symbols import BOS, EOS, PAD, SPECIAL, is_held_out
from jaxformer.errors import InputError
from jaxformer.extras import require_extra
from jaxformer.schema import is_integer

if TYPE_CHECKING:
    import grain

IGNORED = -100  # the label where there is nothing to say
Batch = dict[str, np.ndarray]
P = TypeVar("P")  # what is known of a batch before its arrays are made


class Process(NamedTuple):
    """One of several processes that share the rows of every batch: rows index, index + count, index + 2 count ...

    Attributes:
        index: Number of this process, from 0 to count - 1.
        count: Number of processes.
    """

    index: int = 0
    count: int = 1

    def rows_of(self, batch_size: int) -> int:
        """Return the number of rows of a batch that this process reads. Raises InputError if they do not divide."""
        if not 0 <= self.index < self.count or batch_size % self.count:
            raise InputError(f"process {self.index} of {self.count} cannot share batches of {batch_size} rows")
        return batch_size // self.count

    def part(self, batch: Batch) -> Batch:
        """Return the rows of a batch that this process reads."""
        self.rows_of(len(next(iter(batch.values()))))
        return {name: rows[self.index :: self.count] for name, rows in batch.items()}


ALONE = Process()


class SequencePairs(Protocol):
    """Sources that can be drawn, and their answers."""

    @property
    def vocab_size(self) -> int:
        """Symbols and special tokens together."""
        ...

    @property
    def max_source_length(self) -> int:
        """Length of the longest source."""
        ...

    @property
    def max_answer_length(self) -> int:
        """Length of the longest answer, without EOS."""
        ...

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random source, int32 [length]."""
        ...

    def answer(self, source: np.ndarray) -> np.ndarray:
        """Return the right answer to a source, both int32 [length]."""
        ...


@dataclass(frozen=True)
class Examples:
    """The training examples of a task as a random-access source: example i depends on the seed and i alone.

    Attributes:
        task: Draws sources, and answers them.
        seed: Seed of the draws.
    """

    task: SequencePairs
    seed: int

    def __len__(self) -> int:
        """Return a number of examples that no run reaches."""
        return 1 << 40

    def __getitem__(self, index: int) -> Batch:
        """Return example `index`; held-out sequences are drawn again."""
        rng = np.random.default_rng((self.seed, int(index)))
        source = self.task.draw(rng)
        while is_held_out(source):
            source = self.task.draw(rng)
        return example(self.task, source)


def example(task: SequencePairs, source: np.ndarray) -> Batch:
    """Return one source as arrays of fixed length, for teacher forcing.

    They are "source", ids [S], padded; "target", ids [T] that the decoder reads: the answer shifted right by one behind
    BOS, padded; "labels" [T], the answer and EOS, -100 where nothing is to be predicted.

    Args:
        task: A task of sequences.
        source: Token ids of a source.
    """
    answer = checked_answer(task, source)
    slots = task.max_answer_length + 1  # and BOS, or EOS
    return {
        "source": fill(source, task.max_source_length, PAD),
        "target": fill(np.concatenate([[BOS], answer]), slots, PAD),
        "labels": fill(np.concatenate([answer, [EOS]]), slots, IGNORED),
    }


def checked_answer(task: SequencePairs, source: np.ndarray) -> np.ndarray:
    """Return the answer to a source. Raises InputError if no model of the task could generate it."""
    answer = np.asarray(task.answer(source))
    if answer.ndim != 1 or len(answer) > task.max_answer_length:
        raise InputError(
            f"the answer to a source of length {len(source)} has shape {answer.shape}, longer than "
            f"max_answer_length = {task.max_answer_length}: raise that"
        )
    strange = answer[(answer < SPECIAL) | (answer >= task.vocab_size)]
    if strange.size:
        raise InputError(
            f"the answer to a source of length {len(source)} holds {strange[0]}: symbols have the ids from {SPECIAL} "
            f"to {task.vocab_size - 1}"
        )
    return answer


def fill(ids: np.ndarray, length: int, filler: int) -> np.ndarray:
    """Return `ids` followed by the filler up to `length`: int32 [length]."""
    return np.concatenate([ids, np.full(length - len(ids), filler)]).astype(np.int32)


def training_batches(
    task: SequencePairs, batch_size: int, seed: int, process: Process = ALONE
) -> "grain.DatasetIterator":
    """Return an endless iterator over batches, arrays [batch_size, ...].

    `get_state` and `set_state` move it to the sample.
    """
    return batches_ahead(Examples(task, seed), batch_size, process=process)


def batches_ahead(
    source: Any, batch_size: int, shuffle_seed: int | None = None, process: Process = ALONE
) -> "grain.DatasetIterator":
    """Return the batches of a random-access source, made in a thread of their own, a few ahead.

    Args:
        source: Has a length, and examples by index: pytrees of arrays.
        batch_size: Examples in a batch of all processes together.
        shuffle_seed: None: in order, once. A number: endlessly, every epoch in another order.
        process: Which rows of each batch to read.
    """
    require_extra("train", "a pipeline of batches")
    import grain  # half a second, which programs that only generate need not wait for

    dataset, rows = grain.MapDataset.source(source), process.rows_of(batch_size)
    if shuffle_seed is not None:
        dataset = dataset.shuffle(seed=shuffle_seed).repeat()
    if process.count > 1:
        dataset = dataset[process.index :: process.count]
    return iter(dataset.batch(rows).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


class EpochBatches(Iterator[Batch], Generic[P]):
    """An endless iterator over batches that are planned anew for every epoch; derived classes plan and make them.

    `get_state` and `set_state` move to a batch: the plan of an epoch depends on the seed and its number alone.

    Args:
        seed: Seed of the plans.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._begin(0)

    @abstractmethod
    def plan(self, rng: np.random.Generator) -> list[P]:
        """Return what the batches of an epoch consist of."""

    @abstractmethod
    def batch(self, planned: P) -> Batch:
        """Return the arrays of a batch."""

    def __next__(self) -> Batch:
        """Return the next batch."""
        if self.taken == len(self.order):
            self._begin(self.epoch + 1)
        self.taken += 1
        return self.batch(self.order[self.taken - 1])

    def get_state(self) -> dict[str, Any]:
        """Return the place in the data, as JSON can hold it."""
        return {"epoch": self.epoch, "batch": self.taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a place in the data. Raises InputError for what is none."""
        epoch, batch = state["epoch"], state["batch"]
        if is_integer(epoch) and is_integer(batch) and min(epoch, batch) >= 0:
            self._begin(epoch)  # the plans of epochs may differ in length
            if batch <= len(self.order):
                self.taken = batch
                return
        raise InputError("this is no place in the data")

    def _begin(self, epoch: int) -> None:
        self.epoch, self.taken = epoch, 0
        self.order = self.plan(np.random.default_rng((self.seed, epoch)))


def held_out(task: SequencePairs, count: int, seed: int) -> Batch:
    """Return `count` different held-out examples, arrays [count, ...]; fewer where the task has not as many."""
    rng = np.random.default_rng((seed, 1))
    found: dict[bytes, np.ndarray] = {}
    for _ in range(100 * count):
        source = task.draw(rng)
        if is_held_out(source):
            found.setdefault(source.tobytes(), source)
        if len(found) == count:
            break
    return stack(example(task, source) for source in found.values())


def stack(examples: Iterable[Batch]) -> Batch:
    """Return examples side by side: arrays [B, ...]."""
    rows = list(examples)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
