"""Keywords of the attention operations from the parts of a mask, as tables of cases name them."""

from typing import Any

import jax

from jaxformer.ops import AttentionMask, padding_mask


def options_of(
    keys: int,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    offset: int | jax.Array = 0,
    lengths: jax.Array | None = None,
    segments: jax.Array | None = None,
    mask: jax.Array | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The keywords for so many keys, of which the first `lengths` [B] are real."""
    key_valid = None if lengths is None else padding_mask(lengths, keys)
    return {"mask": AttentionMask(causal, window, offset, key_valid, segments, mask), **options}
