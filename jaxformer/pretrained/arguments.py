"""Arguments of a checkpoint's forward pass, checked against its model."""

from typing import Any

import numpy as np

from jaxformer.config import AlibiPositions, EndOfText, LearnedPositions, NonPadPositions, RelativePositions
from jaxformer.errors import InputError, shortened
from jaxformer.generation.arrays import integer_array, mask_array, token_array
from jaxformer.model import Transformer


def token_types(model: Transformer, types: Any, ids: np.ndarray) -> np.ndarray:
    """Return token types of the shape of the ids, checked against the kinds that the model knows."""
    array, known = integer_array("token_type_ids", types, "type"), model.config.main.embedding.types or 1
    if array.shape != ids.shape:
        raise InputError(f"token_type_ids has shape {array.shape}, but the token ids have {ids.shape}")
    outside = array[(array < 0) | (array >= known)]
    if outside.size:
        raise InputError(f"token_type_ids has {outside[0]}, outside the {known} types that the model knows")
    return array


def positions(model: Transformer, position_ids: Any, ids: np.ndarray) -> np.ndarray:
    """Return positions [1|B, S] as the model counts them, checked against those that it has."""
    stack, array = model.config.main, integer_array("position_ids", position_ids, "position")
    if array.shape not in (ids.shape, (1, ids.shape[1])):
        raise InputError(f"position_ids has shape {array.shape}, but the token ids have {ids.shape}")
    if isinstance(stack.positions, RelativePositions | AlibiPositions):
        raise InputError("the model has no position_ids: it sees distances between tokens, which follow their order")
    if not isinstance(stack.positions, LearnedPositions):
        return array
    # RoBERTa's checkpoints count the reserved rows before the first position.
    first = stack.positions.offset if isinstance(stack.position_ids_from, NonPadPositions) else 0
    outside = array[(array < 0) | (array >= first + stack.positions.length)]
    if outside.size:
        known = first + stack.positions.length
        raise InputError(f"position_ids has {outside[0]}, outside the {known} positions of the model")
    return array - first


def checked_ids(model: Transformer, name: str, ids: Any, source: bool) -> np.ndarray:
    """Return token ids, checked against the vocabulary and the positions of the stack that reads them."""
    array = token_array(name, ids, model.vocab_sizes[0 if source else 1])
    limit = model.max_source_length if source else model.max_length
    if limit is not None and array.shape[1] > limit:
        raise InputError(f"{name} has {array.shape[1]} tokens, more than the {limit} positions of the model")
    return array


def optional_mask(name: str, mask: Any, ids: np.ndarray) -> np.ndarray | None:
    """Return a mask as booleans of the shape of the ids; None: all are real."""
    return None if mask is None else mask_array(name, mask, ids)


def check_ends(model: Transformer, ids: np.ndarray, mask: np.ndarray | None) -> None:
    """Raise InputError for a row without the token whose state a classifier reads."""
    for number, row in enumerate(ids):
        real = row if mask is None else row[mask[number]]
        if (token := lacks_end(model, real)) is not None:
            raise InputError(f"row {number} of input_ids has no token {token}, which ends a text: add it")


def lacks_end(model: Transformer, row: Any) -> int | None:
    """Return the token that token ids lack although a classifier reads its state; None: they lack none."""
    pooled = getattr(model.config.head, "pooled", None)
    return pooled.eos_id if isinstance(pooled, EndOfText) and pooled.eos_id not in row else None


def flag(name: str, value: Any) -> bool:
    """Return whether something is asked for. Raises InputError unless the value says yes or no."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{name} must be True or False, not {shortened(repr(value), 60)}")
    return bool(value)
