"""Arrays from callers, checked, and brought to the shapes of compiled programs.

Inside a transformation of JAX, such as `jax.jit`, arrays have shapes and types but no values: those are not checked.
"""

from collections.abc import Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError, shortened
from jaxformer.generation.config import GenerationConfig
from jaxformer.schema import is_integer

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
        raise InputError(f"{name} must be rows of one length: pad the shorter ones with jaxformer.pad") from error
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


def pad(
    rows: Iterable[Any], pad_id: int = 0, *, side: Literal["left", "right"] = "right", multiple_of: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of token ids as one batch int32 [B, T], and which tokens are real, boolean [B, T].

    `generate(model, *pad(prompts, side="left"))` reads prompts of several lengths: decoders want padding on the left.

    Args:
        rows: Lists or arrays of token ids, of any lengths.
        pad_id: What stands at padding; masked, it does not matter.
        side: Where shorter rows are padded: "left" for prompts of decoders, "right" for encoders and for training.
        multiple_of: T is the smallest multiple of this that holds the longest row: with few different lengths, few
            programs are compiled.

    Raises:
        InputError: A row is no list of token ids, or there is none that has a token.
    """
    if not isinstance(rows, Iterable):
        raise InputError(f"rows must be lists of token ids, not {shortened(repr(rows), 60)}")
    arrays = [np.asarray(row) for row in rows]
    for number, row in enumerate(arrays):
        known = row.ndim == 1 and (not row.size or (np.issubdtype(row.dtype, np.integer) and abs(row).max() <= MANY))
        if not known:
            raise InputError(f"row {number} must be a list of token ids, not {shortened(repr(row.tolist()), 60)}")
    if not (is_integer(pad_id) and abs(pad_id) <= MANY):
        raise InputError(f"pad_id must be a token id, not {shortened(repr(pad_id), 60)}")
    if side not in ("left", "right") or not is_integer(multiple_of) or multiple_of < 1:
        raise InputError(f'side must be "left" or "right" and multiple_of at least 1, not {side!r} and {multiple_of!r}')
    longest = max(map(len, arrays), default=0)
    if not longest:
        raise InputError("there is no token to pad: give rows of token ids")
    length = -(-longest // multiple_of) * multiple_of
    batch, mask = np.full((len(arrays), length), pad_id, np.int32), np.zeros((len(arrays), length), bool)
    for index, row in enumerate(arrays):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        batch[index, place], mask[index, place] = row, True
    return batch, mask


def until_end(ids: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """Return the tokens before the first end token."""
    ends = np.flatnonzero(np.isin(ids, config.eos_ids))
    return ids[: ends[0]] if ends.size else ids
