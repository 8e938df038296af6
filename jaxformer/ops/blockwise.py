"""Attention without a [T, S] array: softmax computed block by block, with its own gradient.

The dense form holds the scores of all queries for all keys, T * S numbers per head, and keeps them for the gradient.
Here a block of queries meets one block of keys after the other and carries along, per query, the largest score so far,
the sum of exponentials and the sum of values under them; both sums are rescaled when a larger score appears (online
softmax: Milakov and Gimelshein 2018). The gradient computes the scores again from the queries, the keys and two numbers
per query, its largest score and its sum of exponentials (after Dao et al. 2022): memory grows linearly with T.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxformer.ops.dropout import dropout
from jaxformer.ops.masks import AttentionMask, segment_mask, window_mask

# Finite, so that the running maximum of a query that has seen nothing can be subtracted from -inf without a NaN.
_LOWEST = float(jnp.finfo(jnp.float32).min)


class Blocks(NamedTuple):
    """Operands in blocks of `size` tokens, with G = N / K query heads for each key head.

    Attributes:
        queries: [T blocks, B, K, G, size, H].
        keys: [S blocks, B, K, size, H].
        values: [S blocks, B, K, size, Hv].
        mask: Mask with offsets [B|1]; its key_valid and segment_ids [B|1, S] are padded to whole blocks.
        sinks: Float32 [K, G], the lowest number where there are none.
        dropout_key: Key for dropout of weights, of which each pair of blocks has its own. None: no dropout.
    """

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    mask: AttentionMask
    sinks: jax.Array
    dropout_key: jax.Array | None = None


class Seen(NamedTuple):
    """Sums of queries over the keys that they have met so far.

    Attributes:
        largest: Largest score of each query, float32 [T blocks, B, K, G, size].
        total: Sum of exponentials of each query, less that score, float32 [T blocks, B, K, G, size].
        mixed: Sum of values under the exponentials, float32 [T blocks, B, K, G, size, Hv].
    """

    largest: jax.Array
    total: jax.Array
    mixed: jax.Array


class Residuals(NamedTuple):
    """Arrays for the gradient.

    Attributes:
        blocks: The operands.
        output: [T blocks, B, K, G, size, Hv].
        largest: As in `Seen`.
        total: As in `Seen`.
    """

    blocks: Blocks
    output: jax.Array
    largest: jax.Array
    total: jax.Array


class Scale(NamedTuple):
    """Static settings of the scores, and of the weights.

    Attributes:
        scale: Factor on the scores.
        softcap: Bound that scaled scores are squashed into. None: not.
        dropout: Rate of dropout of the weights.
    """

    scale: float
    softcap: float | None
    dropout: float = 0.0


def blockwise_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    block: int = 256,
) -> jax.Array:
    """Return softmax(scale Q K^T) V, equation 1 of section 3.2.1, in memory that is linear in T and S.

    Blocks that the window rules out for every row are never computed, in neither direction. Reverse-mode gradients of
    first order only.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        value: [B, S, K, Hv].
        mask: Without an explicit array.
        scale: Factor on the scores.
        softcap: Bound that scores are squashed into. None: not.
        sinks: float32 [N]. None: there are none.
        dropout_rate: Rate of dropout of the weights, which are drawn again for the gradient and never kept.
        dropout_key: Key for dropout. None: no dropout.
        block: Number of queries, and of keys, that are computed at once.

    Returns:
        [B, T, N, Hv] in the type of `value`.
    """
    blocks = in_blocks(query, key, value, mask, sinks, block)._replace(dropout_key=dropout_key)
    return joined(_attend(Scale(scale, softcap, dropout_rate), blocks), query.shape[1])


def in_blocks(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: AttentionMask, sinks: jax.Array | None, block: int
) -> Blocks:
    """Return the operands of `blockwise_attention` in blocks."""
    B, T, N, _ = query.shape
    S, K = key.shape[1:3]
    grouped = query.reshape(B, T, K, N // K, -1)  # [B, T, K, G, H]
    queries = jnp.transpose(_split(grouped, block), (0, 1, 3, 4, 2, 5))  # [T blocks, B, K, G, size, H]
    keys = jnp.swapaxes(_split(key, block), 2, 3)  # [S blocks, B, K, size, H]
    values = jnp.swapaxes(_split(value, block), 2, 3)  # [S blocks, B, K, size, Hv]
    key_valid = jnp.ones((1, S), bool) if mask.key_valid is None else mask.key_valid
    padding = (0, 0), (0, len(keys) * keys.shape[3] - S)
    key_valid = jnp.pad(key_valid, padding)  # what fills the last block is hidden
    segment_ids = None if mask.segment_ids is None else jnp.pad(mask.segment_ids, padding)
    mask = dataclasses.replace(mask, offset=mask.offsets, key_valid=key_valid, segment_ids=segment_ids)
    nowhere = jnp.full(N, _LOWEST) if sinks is None else sinks
    return Blocks(queries, keys, values, mask, nowhere.reshape(K, N // K))


def joined(output: jax.Array, length: int) -> jax.Array:
    """Return blocks [T blocks, B, K, G, size, Hv] as [B, T, N, Hv], of which `length` tokens are there."""
    blocks, B, K, G, size, Hv = output.shape
    return jnp.transpose(output, (1, 0, 4, 2, 3, 5)).reshape(B, blocks * size, K * G, Hv)[:, :length]


def _split(x: jax.Array, block: int) -> jax.Array:
    """Return [B, T, ...] padded with zeros to whole blocks, as blocks [T / size, B, size, ...]; size is at most T."""
    size = min(block, x.shape[1])
    padding = [(0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)]
    return jnp.moveaxis(jnp.pad(x, padding).reshape(len(x), -1, size, *x.shape[2:]), 1, 0)  # [blocks, B, size, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Scale, blocks: Blocks) -> jax.Array:
    """Return the attention of every query block [T blocks, B, K, G, size, Hv]."""
    return _forward(static, blocks)[0]


def _forward(static: Scale, blocks: Blocks) -> tuple[jax.Array, Residuals]:
    """Return the output blocks, and what the gradient needs."""
    seen = meet(static, blocks, nothing_seen(blocks))
    output = (seen.mixed / seen.total[..., None]).astype(blocks.values.dtype)
    return output, Residuals(blocks, output, seen.largest, seen.total)


def nothing_seen(blocks: Blocks) -> Seen:
    """Return the sums before any key.

    A query has seen the sink then: its exponential is 1 beneath its own score, and its value zero. The lowest number
    stands for no sink: nothing is left of it once a key is seen, and a query that sees none gets zeros.
    """
    rows, Hv = blocks.queries.shape[:-1], blocks.values.shape[-1]
    return Seen(jnp.broadcast_to(blocks.sinks[..., None], rows), jnp.ones(rows), jnp.zeros((*rows, Hv), jnp.float32))


def meet(static: Scale, blocks: Blocks, seen: Seen) -> Seen:
    """Return the sums of queries that also meet these keys."""
    queries, keys, values, mask, _, _ = blocks

    def attend_block(_: None, numbered: Any) -> tuple[None, Seen]:
        index, query, seen = numbered

        def visit(at: jax.Array, seen: Seen) -> Seen:
            largest, total, mixed = seen
            _, scores = _scores(static, query, keys[at], _visible(queries, keys, mask, index, at))
            new_largest = jnp.maximum(largest, scores.max(axis=-1))
            shrink = jnp.exp(largest - new_largest)
            weights = jnp.exp(scores - new_largest[..., None])
            total = total * shrink + weights.sum(axis=-1)
            weights = _dropped(static, blocks, weights, index, at)
            mixed = mixed * shrink[..., None] + _dot("BKGTS,BKSH->BKGTH", weights.astype(values.dtype), values[at])
            return Seen(new_largest, total, mixed)

        return None, jax.lax.fori_loop(*_key_range(queries, keys, mask, index), visit, seen)

    return jax.lax.scan(attend_block, None, (jnp.arange(len(queries)), queries, seen))[1]


def _backward(static: Scale, saved: Residuals, d_output: jax.Array) -> tuple[Blocks]:
    """Return the gradients of queries, keys, values and sinks, and None for the mask."""
    blocks = saved.blocks
    d_sum = jnp.sum(d_output.astype(jnp.float32) * saved.output.astype(jnp.float32), axis=-1)
    d_queries, d_keys, d_values = gradients(static, saved, d_output, d_sum)
    typed = (
        d_queries.astype(blocks.queries.dtype),
        d_keys.astype(blocks.keys.dtype),
        d_values.astype(blocks.values.dtype),
    )
    return (Blocks(*typed, None, d_sinks(saved, d_sum)),)  # pyrefly: ignore  # no gradient of a mask


def d_sinks(saved: Residuals, d_sum: jax.Array) -> jax.Array:
    """Return the gradient of the sinks [K, G], whose values are zero."""
    # Their weights, [T blocks, B, K, G, size].
    weights = jnp.exp(saved.blocks.sinks[None, None, ..., None] - saved.largest) / saved.total
    return -jnp.sum(weights * d_sum, axis=(0, 1, 4))


def gradients(
    static: Scale, saved: Residuals, d_output: jax.Array, d_sum: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the gradients of queries, keys and values, float32, as far as these keys go.

    With weights P, dV = P^T dO and dP = dO V^T; through the softmax, dScores = P * (dP - sum of P dP), where the sum
    over keys equals the sum of dO * O over the width and is therefore known beforehand. Dropout multiplies P in dV, and
    dP, by the same factors.

    Args:
        static: Settings of the scores.
        saved: The operands, and the sums of queries over all keys.
        d_output: Gradient of the output, [T blocks, B, K, G, size, Hv].
        d_sum: Sum of d_output times the output, float32 [T blocks, B, K, G, size].
    """
    (queries, keys, values, mask, _, _), _, largest, total = saved

    def gradient_block(d_keys_values: Any, numbered: Any) -> tuple[Any, jax.Array]:
        index, query, d_out, largest, total, d_sum = numbered

        def visit(at: jax.Array, gradients: Any) -> Any:
            d_query, (d_keys, d_values) = gradients
            capped, scores = _scores(static, query, keys[at], _visible(queries, keys, mask, index, at))
            # Not exp(score - log of the sum): that logarithm, added to a large score, would lose its last digits.
            weights = jnp.exp(scores - largest[..., None]) / total[..., None]
            d_weights = _dropped(static, saved.blocks, _dot("BKGTH,BKSH->BKGTS", d_out, values[at]), index, at)
            d_scores = weights * (d_weights - d_sum[..., None]) * static.scale
            if static.softcap is not None:
                d_scores *= 1 - jnp.square(capped / static.softcap)  # the derivative of softcap * tanh(x / softcap)
            d_scores = d_scores.astype(query.dtype)
            d_query += _dot("BKGTS,BKSH->BKGTH", d_scores, keys[at])
            d_keys = d_keys.at[at].add(_dot("BKGTS,BKGTH->BKSH", d_scores, query))
            weights = _dropped(static, saved.blocks, weights, index, at)
            d_values = d_values.at[at].add(_dot("BKGTS,BKGTH->BKSH", weights.astype(d_out.dtype), d_out))
            return d_query, (d_keys, d_values)

        start = jnp.zeros(query.shape, jnp.float32), d_keys_values
        d_query, d_keys_values = jax.lax.fori_loop(*_key_range(queries, keys, mask, index), visit, start)
        return d_keys_values, d_query

    numbered = jnp.arange(len(queries)), queries, d_output, largest, total, d_sum
    zeros = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(values.shape, jnp.float32)
    (d_keys, d_values), d_queries = jax.lax.scan(gradient_block, zeros, numbered)
    return d_queries, d_keys, d_values


_attend.defvjp(_forward, _backward)


def _dropped(static: Scale, blocks: Blocks, weights: jax.Array, index: jax.Array, at: jax.Array) -> jax.Array:
    """Return weights, or their gradient, of query block `index` and key block `at` with dropout where there is any."""
    if blocks.dropout_key is None:
        return weights
    return dropout(weights, static.dropout, jax.random.fold_in(jax.random.fold_in(blocks.dropout_key, index), at))


def _scores(static: Scale, query: jax.Array, key: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the capped scores of one block, float32 [B, K, G, T, S], twice.

    The second array has -inf at keys that are not visible.
    """
    capped = _dot("BKGTH,BKSH->BKGTS", query, key) * static.scale
    if static.softcap is not None:
        capped = static.softcap * jnp.tanh(capped / static.softcap)
    return capped, jnp.where(visible[:, None, None], capped, -jnp.inf)


def _visible(queries: jax.Array, keys: jax.Array, mask: AttentionMask, index: jax.Array, at: jax.Array) -> jax.Array:
    """Return which keys of block `at` the queries of block `index` see: boolean [B|1, T, S]."""
    query_size, key_size = queries.shape[-2], keys.shape[-2]
    query_positions = mask.offsets[:, None] + index * query_size + jnp.arange(query_size)[None]
    key_positions = at * key_size + jnp.arange(key_size)
    assert mask.key_valid is not None, "blockwise_attention fills it in"
    key_valid = jax.lax.dynamic_slice_in_dim(mask.key_valid, at * key_size, key_size, axis=1)  # [B|1, size]
    visible = window_mask(query_positions, key_positions, *mask.bounds) & key_valid[:, None]
    if mask.segment_ids is None:
        return visible
    key_segments = jax.lax.dynamic_slice_in_dim(mask.segment_ids, at * key_size, key_size, axis=1)
    return visible & segment_mask(query_positions, mask.segment_ids, key_segments)


def _key_range(
    queries: jax.Array, keys: jax.Array, mask: AttentionMask, index: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the first key block that any query of block `index` sees through its window, and one past the last."""
    query_size, key_size = queries.shape[-2], keys.shape[-2]
    first, stop = 0, len(keys)
    left, right = mask.bounds
    if left is not None:
        first = (mask.offsets.min() + index * query_size - left) // key_size
    if right is not None:
        stop = (mask.offsets.max() + (index + 1) * query_size - 1 + right) // key_size + 1
    return jnp.clip(first, 0, len(keys)), jnp.clip(stop, 0, len(keys))


def _dot(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)
