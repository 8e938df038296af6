"""Data: tasks that make their own sequences, and the pipelines that batch them."""

from jaxformer.data.pipeline import Batch, example, held_out, stack, training_batches
from jaxformer.data.tasks import BOS, EOS, PAD, TASKS, Symbols, Task, is_held_out

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "TASKS",
    "Batch",
    "Symbols",
    "Task",
    "example",
    "held_out",
    "is_held_out",
    "stack",
    "training_batches",
]
