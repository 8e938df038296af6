"""Whether a training fits into memory, by arithmetic: a model that cannot be trained is refused before it is built."""

import math
import os
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError
from jaxformer.tasks import Task


def check_memory(state: Any, frozen: Any, task: Task[Any]) -> None:
    """Raise InputError if a training certainly needs more memory than there is.

    Args:
        state: The training state, as arrays or as their shapes and types.
        frozen: The weights that are not trained, likewise. None: there are none.
        task: The model, the size of a batch and the tokens in a row of it.
    """
    limit = available()
    if limit is None:
        return
    trained = bytes_of(state.params)
    kept = bytes_of(state) + trained + bytes_of(frozen)
    if kept > limit:
        parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves((state.params, frozen)))
        raise InputError(
            f"a model of {parameters:.3g} parameters needs {size(kept)} with gradient and optimiser, and this "
            f"machine has {size(limit)}: take a smaller model"
        )
    settings = task.settings
    rows = settings.batch_size // settings.accumulate
    batch = rows * task.row_tokens * numbers_per_token(task.config) * jnp.dtype(settings.dtype).itemsize
    if kept + batch > limit:
        raise InputError(
            f"{rows} rows of {task.row_tokens} tokens need {size(batch)} in this model, and this machine has "
            f"{size(limit)}: give a smaller --batch-size, or a larger --accumulate"
        )


def bytes_of(tree: Any) -> int:
    """Return the bytes that a device has of a tree of arrays, or of their shapes and types."""

    def shape(leaf: Any) -> tuple[int, ...]:
        sharding = getattr(leaf, "sharding", None)
        return leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)

    return sum(math.prod(shape(leaf)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def numbers_per_token(config: TransformerConfig) -> int:
    """Return the fewest numbers that a training step keeps of each token: the inputs of the blocks, and the logits."""
    blocks = [len(stack.blocks) for stack in (config.encoder, config.decoder) if stack is not None]
    return config.dim * max(blocks) + config.main.embedding.vocab_size


def available() -> int | None:
    """Return the memory of the device, or of the machine where the device has none of its own; None if unknown."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def size(number: int) -> str:
    """Return a number of bytes for people."""
    if number < 1e8:
        return f"{number / 1e6:.3g} MB"
    return f"{number / 1e9:,.3g} GB" if number < 1e15 else f"{number / 1e9:.1e} GB"
