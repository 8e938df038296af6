"""What an attention call says of its scores and masks, checked and brought to one form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.ops.masks import padding_mask, window_mask

Offset = int | jax.Array
Window = tuple[int | None, int | None]


class Rules(NamedTuple):
    """What is known when the program is compiled: the factor on the scores, their cap, and the window around a query.

    A query sees the keys from `left` positions before it to `right` positions after it; None leaves a side open, and
    causality is right = 0.
    """

    scale: float
    softcap: float | None
    left: int | None
    right: int | None


class Structure(NamedTuple):
    """Only `mask` and `bias` may be as large as the scores; the rest tells what is visible without an array.

    query_offset: an integer, or integers [1] or [B]. real_keys: boolean [B|1, S], what the lengths and a mask that is
    the same for all heads and queries say. mask boolean, bias float32: [B|1, N|1, T|1, S]. sinks: float32 [N]. None:
    nothing to say.
    """

    rules: Rules
    query_offset: Offset
    real_keys: jax.Array | None
    mask: jax.Array | None
    bias: jax.Array | None
    sinks: jax.Array | None


def describe(
    query: jax.Array,
    key: jax.Array,
    *,
    mask: jax.Array | None,
    bias: jax.Array | None,
    scale: float | None,
    causal: bool,
    query_offset: Offset,
    key_lengths: jax.Array | None,
    window: Window | None,
    softcap: float | None,
    sinks: jax.Array | None,
) -> Structure:
    """The structure of an attention call; raises InputError where query, key and the keywords do not fit together."""
    _check_heads(query, key)
    B, T, N, H = query.shape
    S = key.shape[1]
    left, right = _check_window(window)
    if softcap is not None and not softcap > 0:
        raise InputError(f"softcap must be positive, not {softcap}")
    if mask is not None:
        if mask.dtype != bool:
            raise InputError(
                f"mask must be boolean, True = visible, not {mask.dtype}; additive masks are passed as bias"
            )
        mask = _four_axes("mask", mask, (B, N, T, S))
    if bias is not None:
        if not jnp.issubdtype(bias.dtype, jnp.floating):
            raise InputError(
                f"bias must hold floating-point numbers, not {bias.dtype}; boolean masks are passed as mask"
            )
        bias = _four_axes("bias", bias, (B, N, T, S)).astype(jnp.float32)
    real_keys = None if key_lengths is None else padding_mask(_one_per_row("key_lengths", key_lengths, B), S)
    if mask is not None and mask.shape[1:3] == (1, 1):
        real_keys, mask = (mask[:, 0, 0] if real_keys is None else mask[:, 0, 0] & real_keys), None
    if not isinstance(query_offset, int):
        query_offset = _one_per_row("query_offset", jnp.atleast_1d(query_offset), B)
    if sinks is not None:
        if sinks.shape != (N,) or not jnp.issubdtype(sinks.dtype, jnp.floating):
            raise InputError(f"sinks must be a number for each of {N} heads, not {sinks.dtype} {list(sinks.shape)}")
        sinks = sinks.astype(jnp.float32)
    rules = Rules(H**-0.5 if scale is None else float(scale), softcap, left, 0 if causal else right)
    return Structure(rules, query_offset, real_keys, mask, bias, sinks)


def check_value(key: jax.Array, value: jax.Array) -> None:
    """Raise InputError unless there is a value for every key."""
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise InputError(f"value {list(value.shape)} must be [B, S, K, Hv] with B, S, K of key {list(key.shape)}")


def first_positions(structure: Structure) -> jax.Array:
    """Where the first query of each row stands: integers [B|1]."""
    return jnp.atleast_1d(jnp.asarray(structure.query_offset))


def visible_keys(structure: Structure, queries: int, keys: int) -> jax.Array | None:
    """Which keys each query sees, by window, real keys and mask together: boolean [B|1, N|1, T|1, S]; None: all."""
    visible = structure.mask
    if structure.real_keys is not None:
        visible = _both(visible, structure.real_keys[:, None, None])
    _, _, left, right = structure.rules
    if left is not None or right is not None:
        positions = first_positions(structure)[:, None] + jnp.arange(queries)[None]
        visible = _both(visible, window_mask(positions, jnp.arange(keys), left, right)[:, None])
    return visible


def _both(visible: jax.Array | None, more: jax.Array) -> jax.Array:
    return more if visible is None else visible & more


def _check_heads(query: jax.Array, key: jax.Array) -> None:
    if query.ndim != 4 or key.ndim != 4:
        raise InputError(f"query {list(query.shape)} and key {list(key.shape)} must be [B, T, N, H] and [B, S, K, H]")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise InputError(f"query {list(query.shape)} and key {list(key.shape)} must agree in batch B and head width H")
    if key.shape[2] == 0 or query.shape[2] % key.shape[2]:
        raise InputError(f"{query.shape[2]} query heads are not a multiple of {key.shape[2]} key heads")


def _check_window(window: Window | None) -> Window:
    if window is None:
        return None, None
    if len(window) != 2 or any(side is not None and side < 0 for side in window):
        raise InputError(f"window must be (left, right), each None or at least 0, not {window}")
    return window


def _one_per_row(name: str, x: jax.Array, rows: int) -> jax.Array:
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 1 or len(x) not in (1, rows):
        raise InputError(f"{name} must be integers, one for each of the {rows} rows, not {x.dtype} {list(x.shape)}")
    return x


def _four_axes(name: str, x: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
    """[T, S] as [1, 1, T, S], and [B|1, N|1, T|1, S] as it is."""
    full = x[None, None] if x.ndim == 2 else x
    fits = full.ndim == 4 and full.shape[3] == shape[3]
    if not fits or any(size not in (1, whole) for size, whole in zip(full.shape, shape, strict=True)):
        B, N, T, S = shape
        raise InputError(f"{name} {list(x.shape)} must be [{B} or 1, {N} or 1, {T} or 1, {S}] or [{T}, {S}]")
    return full
