"""Batches of a task: drawn by index, so that any position in an endless stream can be returned to."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxformer.data.tasks import BOS, EOS, PAD, Task, is_held_out
from jaxformer.extras import require_extra

if TYPE_CHECKING:
    import grain

IGNORED = -100  # the label where there is nothing to say
Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Examples:
    """The training examples of a task as a random-access source: example i depends on the seed and i alone."""

    task: Task
    seed: int

    def __len__(self) -> int:
        """More than any run reads."""
        return 1 << 40

    def __getitem__(self, index: int) -> Batch:
        """Example `index`; held-out sequences are drawn again."""
        rng = np.random.default_rng((self.seed, int(index)))
        source = self.task.text.draw(rng)
        while is_held_out(source):
            source = self.task.text.draw(rng)
        return example(self.task, source)


def example(task: Task, source: np.ndarray) -> Batch:
    """One source as arrays of fixed length, for teacher forcing.

    source: [S] ids, padded. target: [T] what the decoder reads, the answer shifted right by one behind BOS, padded.
    labels: [T] what it should say at each step, the answer and EOS; -100 where it should say nothing.
    """
    answer = task.answer(source)
    slots = task.text.max_length
    return {
        "source": fill(source, slots, PAD),
        "target": fill(np.concatenate([[BOS], answer]), slots + 1, PAD),
        "labels": fill(np.concatenate([answer, [EOS]]), slots + 1, IGNORED),
    }


def fill(ids: np.ndarray, length: int, filler: int) -> np.ndarray:
    """`ids` followed by the filler up to `length`: int32 [length]."""
    return np.concatenate([ids, np.full(length - len(ids), filler)]).astype(np.int32)


def training_batches(task: Task, batch_size: int, seed: int) -> "grain.DatasetIterator":
    """An endless iterator over batches, arrays [batch_size, ...]; `get_state` and `set_state` move it to the sample."""
    return batches_ahead(Examples(task, seed), batch_size)


def batches_ahead(source: Any, batch_size: int, shuffle_seed: int | None = None) -> "grain.DatasetIterator":
    """Batches of a random-access source, made in a thread of their own, a few ahead.

    Without a seed in order, once; with one endlessly, every epoch in an order of its own.
    """
    require_extra("train", "a pipeline of batches")
    import grain  # half a second, which programs that only generate need not wait for

    dataset = grain.MapDataset.source(source)
    if shuffle_seed is not None:
        dataset = dataset.shuffle(seed=shuffle_seed).repeat()
    return iter(dataset.batch(batch_size).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def held_out(task: Task, count: int, seed: int) -> Batch:
    """`count` different held-out examples, arrays [count, ...]; fewer where the task has not as many."""
    rng = np.random.default_rng((seed, 1))
    found: dict[bytes, np.ndarray] = {}
    for _ in range(100 * count):
        source = task.text.draw(rng)
        if is_held_out(source):
            found.setdefault(source.tobytes(), source)
        if len(found) == count:
            break
    return stack(example(task, source) for source in found.values())


def stack(examples: Iterable[Batch]) -> Batch:
    """Examples side by side: arrays [B, ...]."""
    rows = list(examples)
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
