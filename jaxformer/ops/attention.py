"""Scaled dot-product attention (section 3.2.1): the output, the map after the softmax, the scores before it."""

import jax
import jax.numpy as jnp

from jaxformer.ops.blockwise import blockwise_attention
from jaxformer.ops.fused import cuda_capability, fused_attention, fused_kernel_applies
from jaxformer.ops.matmul import batched_matmul_transposed
from jaxformer.ops.structure import Offset, Structure, Window, check_value, describe, first_positions, visible_keys


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    causal: bool = False,
    query_offset: Offset = 0,
    key_lengths: jax.Array | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """The values averaged for each query by how well their keys fit it: softmax(scale Q K^T) V, equation 1.

    query [B, T, N, H], key [B, S, K, H], value [B, S, K, Hv]; the result is [B, T, N, Hv] in the type of value. N is a
    multiple of K: query head n uses key and value head n // (N / K).

    scale is 1/sqrt(H) by default. Without it the scores of random queries and keys, sums of H products of variance 1,
    have variance H: for a wide head the softmax saturates, almost all weight falls on one key, and its gradients
    vanish (section 3.2.1 and footnote 4).

    Which keys a query sees is said by any of these together, all of them applied before the softmax:
      causal        keys at or before the query; query i stands at position query_offset + i, and key j at j.
                    query_offset is an integer, a traced scalar or one number per row [B]
      window        (left, right): keys up to `left` before and `right` after the query; None leaves a side open
      key_lengths   integers [B]: the first so many keys of each row are real
      mask          boolean, True = visible: [B|1, N|1, T|1, S] or [T, S]
    softcap squashes scaled scores to softcap * tanh(score / softcap); then bias, floating-point in the shapes of mask
    and possibly -inf, is added. The softmax is computed in float32 and stays finite for any score, because the largest
    of a row is subtracted first. A query that sees no key gets zeros, and so do the gradients through it.
    sinks, one number per query head [N], are scores of a key that every query sees and whose value is zero: a head may
    look there instead of at any token (Xiao et al. 2023), and its weights on tokens then sum to less than 1.

    The same numbers are computed in one of three ways: by cuDNN's kernel on NVIDIA GPUs (`fused_kernel_applies`); for
    long sequences without an array of T x S, block by block (`blockwise_attention`; gradients of first order only); or
    densely. Masks and biases that differ per query are dense already, so only the structure in the other arguments,
    or a mask [B|1, 1, 1, S], allows the first two.

    Raises InputError when shapes or types do not fit.
    """
    structure = describe(
        query, key, mask=mask, bias=bias, scale=scale, causal=causal, query_offset=query_offset,
        key_lengths=key_lengths, window=window, softcap=softcap, sinks=sinks,
    )  # fmt: skip
    check_value(key, value)
    if fused_kernel_applies(query, key, value, structure, cuda_capability()):
        return fused_attention(query, key, value, structure)
    if _blockwise_pays(query, key, structure):
        real_keys = jnp.ones((1, key.shape[1]), bool) if structure.real_keys is None else structure.real_keys
        offsets = first_positions(structure)
        return blockwise_attention(
            query, key, value, structure.rules, offsets=offsets, real_keys=real_keys, sinks=structure.sinks
        )
    return weighted_values(_weights(query, key, structure), value)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    causal: bool = False,
    query_offset: Offset = 0,
    key_lengths: jax.Array | None = None,
    window: Window | None = None,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
) -> jax.Array:
    """The attention map, softmax(scale Q K^T): float32 [B, N, T, S], rows sum to 1 or, where no key is visible, are 0.

    With sinks they sum to less, by what the sinks have. The arguments are those of `dot_product_attention`.
    """
    structure = describe(
        query, key, mask=mask, bias=bias, scale=scale, causal=causal, query_offset=query_offset,
        key_lengths=key_lengths, window=window, softcap=softcap, sinks=sinks,
    )  # fmt: skip
    return _weights(query, key, structure)


def attention_scores(
    query: jax.Array,
    key: jax.Array,
    *,
    mask: jax.Array | None = None,
    bias: jax.Array | None = None,
    scale: float | None = None,
    causal: bool = False,
    query_offset: Offset = 0,
    key_lengths: jax.Array | None = None,
    window: Window | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """What precedes the softmax: scale Q K^T, capped, plus bias; float32 [B, N, T, S], -inf where a key is not visible.

    The arguments are those of `dot_product_attention`, without sinks.
    """
    structure = describe(
        query, key, mask=mask, bias=bias, scale=scale, causal=causal, query_offset=query_offset,
        key_lengths=key_lengths, window=window, softcap=softcap, sinks=None,
    )  # fmt: skip
    return _scores(query, key, structure)


def weighted_values(weights: jax.Array, value: jax.Array) -> jax.Array:
    """The values averaged by attention weights, [B, T, N, Hv] in the type of value.

    weights [B, N, T, S], value [B, S, K, Hv]. The second half of `dot_product_attention`, for callers that change the
    weights in between, as dropout does.
    """
    B, N, T, S = weights.shape
    _, _, K, Hv = value.shape
    grouped = weights.astype(value.dtype).reshape(B * K, N // K * T, S)
    mixed = jnp.einsum("XQS,XSH->XQH", grouped, _rows_and_heads(value), preferred_element_type=jnp.float32)
    return _heads_first(mixed.reshape(B, N, T, Hv)).astype(value.dtype)


def _blockwise_pays(query: jax.Array, key: jax.Array, structure: Structure) -> bool:
    """Whether to attend block by block.

    The dense form writes T * S scores per query head several times over and keeps them for the gradient, where one
    block of 256 x 256 stays in the processor's cache: from four such blocks on, that is most of the memory. On a CPU it
    saves time as well (measured, causal, with the gradient: 1.3 times faster at 512 tokens, 2.3 at 1024, 2.6 at 2048).
    Fewer than 128 queries have no more scores than keys and values have numbers (T <= 2 H at H = 64), so there is
    nothing to save, and a single query must not pay for cutting a cache into blocks.
    """
    T, S = query.shape[1], key.shape[1]
    return structure.mask is None and structure.bias is None and T >= 128 and T * S >= 512 * 512


def _scores(query: jax.Array, key: jax.Array, structure: Structure) -> jax.Array:
    """Scaled, capped, biased and masked scores, float32 [B, N, T, S]."""
    B, T, N, H = query.shape
    _, S, K, _ = key.shape
    # Plain batched matrix products: up to twice as fast on a CPU as contracting [B, T, N, H].
    queries, keys = _rows_and_heads(query).reshape(B * K, N // K * T, H), _rows_and_heads(key)
    scores = batched_matmul_transposed(queries, keys).reshape(B, N, T, S) * structure.rules.scale
    if (softcap := structure.rules.softcap) is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if structure.bias is not None:
        scores = scores + structure.bias
    visible = visible_keys(structure, T, S)
    return scores if visible is None else jnp.where(visible, scores, -jnp.inf)


def _weights(query: jax.Array, key: jax.Array, structure: Structure) -> jax.Array:
    """The attention map, float32 [B, N, T, S]. Sinks are one more key, whose column is left out."""
    scores = _scores(query, key, structure)
    if structure.sinks is None:
        return _softmax(scores)
    sinks = jnp.broadcast_to(structure.sinks[:, None, None], (*scores.shape[:3], 1))
    return _softmax(jnp.concatenate([scores, sinks], axis=-1))[..., :-1]


def _heads_first(x: jax.Array) -> jax.Array:
    """[B, T, N, H] -> [B, N, T, H], and back."""
    return jnp.swapaxes(x, 1, 2)


def _rows_and_heads(x: jax.Array) -> jax.Array:
    """[B, T, N, H] -> [B N, T, H]."""
    B, T, N, H = x.shape
    return _heads_first(x).reshape(B * N, T, H)


@jax.custom_jvp
def _softmax(scores: jax.Array) -> jax.Array:
    """exp(score) / sum of exp over the last axis; zeros where all scores are -inf."""
    largest = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    exponentials = jnp.exp(scores - jnp.where(jnp.isneginf(largest), 0, largest))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials / jnp.where(total == 0, 1, total)


@_softmax.defjvp
def _softmax_derivative(scores: tuple[jax.Array], d_scores: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Weights P and their derivative P * (dS - sum of P dS): for the gradient only P is kept, and -inf never enters."""
    weights = _softmax(*scores)
    return weights, weights * (d_scores[0] - jnp.sum(weights * d_scores[0], axis=-1, keepdims=True))
