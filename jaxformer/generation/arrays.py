"""Arrays from callers, checked, and brought to the shapes of compiled programs.

Inside a transformation of JAX, such as `jax.jit`, arrays have shapes and types but no values: those are not checked.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError, shortened
from jaxformer.generation.config import GenerationConfig

MANY = 2**31 - 1  # more than any vocabulary or sequence has


def is_traced(*trees: Any) -> bool:
    """Return whether a transformation of JAX is under way, of which any leaf of the trees may be a part."""
    leaves = [*jax.tree.leaves(trees), jnp.zeros(())]  # under `jax.jit` new arrays are traced whatever the arguments
    return any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)


def as_array(name: str, value: Any) -> Any:
    """Return `value` as an array. Raises InputError for rows of several lengths and what is no array at all."""
    if isinstance(value, jax.core.Tracer):
        return value
    try:
        return np.asarray(value)
    except ValueError as error:
        raise InputError(f"{name} must be rows of one length: pad the shorter ones") from error
    except Exception as error:  # whatever its type makes of it
        raise InputError(f"{name} cannot be read as an array: {shortened(repr(value), 60)}") from error


def integer_array(name: str, value: Any, item: str) -> Any:
    """Return `value` as an array int32 [B, T] of what one `item` is. Raises InputError unless it is one, not empty."""
    array = as_array(name, value)
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} must be {item}s [batch, length] and not empty, but has shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be whole numbers, not {shortened(str(array.dtype), 60)}")
    if isinstance(array, jax.core.Tracer):
        return array.astype(jnp.int32)
    beyond = array[(array < -MANY) | (array > MANY)]
    if beyond.size:
        raise InputError(f"{name} has {item} {beyond[0]}, which is beyond 32 bits")
    return array.astype(np.int32)


def token_array(name: str, ids: Any, vocabulary: int | None = None) -> Any:
    """Return token ids int32 [B, T]. Raises InputError for anything else, and outside of a known vocabulary."""
    array = integer_array(name, ids, "token id")
    if vocabulary is not None:
        check_range(name, array, vocabulary)
    return array


def mask_array(name: str, mask: Any, tokens: Any) -> Any:
    """Return a mask as booleans of the shape of `tokens`; None is all True.

    Raises InputError for another shape, and for anything but truth values, 0 and 1.
    """
    if mask is None:
        return np.ones(tokens.shape, bool)
    array = as_array(name, mask)
    if array.shape != tokens.shape:
        raise InputError(f"{name} has shape {array.shape}, but the tokens have {tokens.shape}")
    if array.dtype == bool:
        return array
    if isinstance(array, jax.core.Tracer):
        return array != 0
    other = [each for each in array.ravel().tolist() if not (isinstance(each, int | float) and each in (0, 1))]
    if other:
        value = shortened(repr(other[0]), 60)
        raise InputError(f"{name} has {value}: give 1 for real tokens and 0 for padding, or True and False")
    return array.astype(bool)


def check_range(name: str, tokens: Any, vocabulary: int | None) -> None:
    """Raise InputError unless all tokens are in a vocabulary of that size."""
    if isinstance(tokens, jax.core.Tracer):
        return  # an embedding gives NaN for what is outside
    outside = tokens[(tokens < 0) | (tokens >= (vocabulary or 0))]
    if outside.size:
        raise InputError(f"{name} has token {outside[0]}, outside the vocabulary of {vocabulary} tokens")


def fill_right(array: Any, width: int, value: int) -> Any:
    """Return the array [B, T] with `value` to its right, [B, width]."""
    pad = jnp.pad if isinstance(array, jax.core.Tracer) else np.pad
    return pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)


def round_up(length: int, multiple: int, limit: int | None = None) -> int:
    """Return the next multiple of `multiple` that is no less than `length`, but no more than `limit`."""
    rounded = -(-length // multiple) * multiple
    return rounded if limit is None else min(rounded, limit)


def padded(rows: list[np.ndarray], padding: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids as one batch [B, T], the shorter ones padded on one side, and which are real [B, T]."""
    longest = max(map(len, rows))
    batch, mask = np.full((len(rows), longest), padding, np.int32), np.zeros((len(rows), longest), bool)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        batch[index, place], mask[index, place] = row, True
    return batch, mask


def until_end(ids: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """Return the tokens before the first end token."""
    ends = np.flatnonzero(np.isin(ids, config.eos_ids))
    return ids[: ends[0]] if ends.size else ids
