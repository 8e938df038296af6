"""Scaled dot-product attention (section 3.2.1): the output, the map after the softmax, the scores before it."""

import dataclasses
from typing import NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp

from jaxformer.backends.cpu import batched_matmul_transposed
from jaxformer.backends.default import are_numbers
from jaxformer.backends.gpu import cuda_capability, fused_attention, fused_kernel_applies
from jaxformer.errors import InputError
from jaxformer.ops.blockwise import blockwise_attention
from jaxformer.ops.dropout import dropout
from jaxformer.ops.masks import AttentionMask, as_mask, both
from jaxformer.ops.ring import ring_applies, ring_attention


class AttentionOptions(TypedDict, total=False):
    """Keywords of the attention operations.

    Attributes:
        mask: Which keys each query may attend to: an `AttentionMask`, or an array, boolean or integers 0 and 1,
            [B|1, N|1, T|1, S] or [T, S], True = visible. None: all keys are visible.
        bias: Floating-point [B|1, N|1, T|1, S] or [T, S], possibly -inf, added to the scaled and capped scores.
        scale: Factor on the scores. None: 1 / sqrt(H).
        softcap: Squash scaled scores to softcap * tanh(score / softcap). None: not.
        sinks: Float [N], scores of a key that every query sees and whose value is zero: a head may look there instead
            of at any token (Xiao et al. 2023), and its weights on tokens then sum to less than 1.
    """

    mask: AttentionMask | jax.Array | None
    bias: jax.Array | None
    scale: float | None
    softcap: float | None
    sinks: jax.Array | None


class Scoring(NamedTuple):
    """`AttentionOptions`, checked, with defaults in place.

    Attributes:
        mask: Keys that each query may attend to.
        bias: Float32 [B|1, N|1, T|1, S], added to the scaled and capped scores. None: there is none.
        scale: Factor on the scores.
        softcap: Bound that scaled scores are squashed into. None: not.
        sinks: Float32 [N], scores of the sink of each head. None: there are none.
    """

    mask: AttentionMask
    bias: jax.Array | None
    scale: float
    softcap: float | None
    sinks: jax.Array | None


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    **options: Unpack[AttentionOptions],
) -> jax.Array:
    """Return the values averaged by how well keys fit queries: softmax(scale Q K^T) V, equation 1, [B, T, N, Hv].

    The scale is 1/sqrt(H) by default. Without it the scores of random queries and keys, sums of H products of variance
    1, have variance H: for a wide head the softmax saturates, almost all weight falls on one key, and its gradients
    vanish (section 3.2.1 and footnote 4). The softmax is computed in float32 and stays finite for any score, because
    the largest of a row is subtracted first. A query that sees no key gets zeros, and so do the gradients through it.

    The same numbers are computed in one of four ways: by cuDNN's kernel on NVIDIA GPUs (`fused_kernel_applies`); for
    long sequences without an array of T x S, block by block (`blockwise_attention`; gradients of first order only);
    on a mesh that divides positions likewise, in turns (`ring_attention`); or densely. Masks and biases that differ
    per query are dense already, so only the structure of an `AttentionMask`, or a mask [B|1, 1, 1, S], allows the first
    three.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H], where N is a multiple of K: query head n uses key and value head n // (N / K).
        value: [B, S, K, Hv].
        dropout_rate: Rate of dropout of the weights.
        dropout_key: Key for dropout. None: no dropout.
        **options: mask, bias, scale, softcap, sinks: see `AttentionOptions`.

    Returns:
        [B, T, N, Hv] in the type of `value`.

    Raises:
        InputError: Shapes or types do not fit.
    """
    scoring = check_options(query, key, **options)
    if value.ndim != 4 or value.shape[:3] != key.shape[:3]:
        raise InputError(f"value {list(value.shape)} must be [B, S, K, Hv] with B, S, K of key {list(key.shape)}")
    mask, bias, scale, softcap, sinks = scoring
    whole = dropout_key is None or not dropout_rate
    plain = whole and bias is None and softcap is None and sinks is None
    if plain and fused_kernel_applies(query, key, value, mask, cuda_capability()):
        return fused_attention(query, key, value, mask, scale=scale)
    if whole and bias is None and ring_applies(query, key, mask):
        return ring_attention(query, key, value, mask, scale=scale, softcap=softcap, sinks=sinks)
    if bias is None and blockwise_pays(query, key, mask):
        return blockwise_attention(
            query,
            key,
            value,
            mask,
            scale=scale,
            softcap=softcap,
            sinks=sinks,
            dropout_rate=dropout_rate,
            dropout_key=None if whole else dropout_key,
        )
    return weighted_values(dropout(_weights(query, key, scoring), dropout_rate, dropout_key), value)


def attention_weights(query: jax.Array, key: jax.Array, **options: Unpack[AttentionOptions]) -> jax.Array:
    """Return the attention map softmax(scale Q K^T), float32 [B, N, T, S].

    Rows sum to 1; where no key is visible they are 0, and with sinks they sum to less.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H], where N is a multiple of K.
        **options: mask, bias, scale, softcap, sinks: see `AttentionOptions`.

    Raises:
        InputError: Shapes or types do not fit.
    """
    return _weights(query, key, check_options(query, key, **options))


def attention_scores(query: jax.Array, key: jax.Array, **options: Unpack[AttentionOptions]) -> jax.Array:
    """Return the scores before the softmax: scale Q K^T, capped, plus bias, float32 [B, N, T, S].

    They are -inf where a key is not visible.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H], where N is a multiple of K.
        **options: mask, bias, scale, softcap: see `AttentionOptions`.

    Raises:
        InputError: Shapes or types do not fit, or sinks are given.
    """
    if options.get("sinks") is not None:
        raise InputError("sinks have no scores: leave them out, or ask for attention_weights")
    return _scores(query, key, check_options(query, key, **options))


def check_options(query: jax.Array, key: jax.Array, **options: Unpack[AttentionOptions]) -> Scoring:
    """Return the options in one form.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        **options: See `AttentionOptions`.

    Raises:
        InputError: They, query and key do not fit together.
    """
    unknown = options.keys() - AttentionOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"unexpected keyword {min(unknown)!r}: attention takes {', '.join(Scoring._fields)}")
    check_heads(query, key)
    B, T, N, H = query.shape
    shape = (B, N, T, key.shape[1])
    bias, sinks = options.get("bias"), options.get("sinks")
    scale, softcap = options.get("scale"), options.get("softcap")
    if softcap is not None and not softcap > 0:
        raise InputError(f"softcap must be positive, not {softcap}")
    if bias is not None:
        if not jnp.issubdtype(bias.dtype, jnp.floating):
            raise InputError(
                f"bias must hold floating-point numbers, not {bias.dtype}; boolean masks are passed as mask"
            )
        bias = four_axes("bias", bias, shape).astype(jnp.float32)
    if sinks is not None:
        if sinks.shape != (N,) or not jnp.issubdtype(sinks.dtype, jnp.floating):
            raise InputError(f"sinks must be a number for each of {N} heads, not {sinks.dtype} {list(sinks.shape)}")
        sinks = sinks.astype(jnp.float32)
    mask = checked_mask(options.get("mask"), shape)
    return Scoring(mask, bias, H**-0.5 if scale is None else float(scale), softcap, sinks)


def checked_mask(mask: AttentionMask | jax.Array | None, shape: tuple[int, int, int, int]) -> AttentionMask:
    """Return the mask of scores of this shape, with an array as `key_valid` if it is the same for all queries."""
    B, _, _, S = shape
    if not isinstance(mask, AttentionMask):
        mask = AttentionMask(explicit=mask)
    window = mask.window or (None, None)
    if len(window) != 2 or any(side is not None and side < 0 for side in window):
        raise InputError(f"window must be (left, right), each None or at least 0, not {mask.window}")
    offset, explicit, key_valid = mask.offset, mask.explicit, mask.key_valid
    if mask.static_offset is not None:
        offset = mask.static_offset
    else:
        offset = jnp.atleast_1d(offset)
        if not jnp.issubdtype(offset.dtype, jnp.integer) or offset.ndim != 1 or offset.shape[0] not in (1, B):
            raise InputError(
                f"offset must be integers, one for each of the {B} rows, not {offset.dtype} {list(offset.shape)}"
            )
    if key_valid is not None:
        key_valid = as_mask("key_valid", key_valid)
        if key_valid.ndim != 2 or key_valid.shape[0] not in (1, B) or key_valid.shape[1] != S:
            raise InputError(f"key_valid {list(key_valid.shape)} must be [{B} or 1, {S}]")
    segments = mask.segment_ids
    if segments is not None and (segments.shape not in ((B, S), (1, S)) or segments.dtype.kind not in "iu"):
        raise InputError(f"segment_ids {segments.dtype} {list(segments.shape)} must be integers [{B} or 1, {S}]")
    if explicit is not None:
        explicit = four_axes("mask", as_mask("mask", explicit), shape)
        if explicit.shape[1:3] == (1, 1):
            key_valid, explicit = both(key_valid, explicit[:, 0, 0]), None
    return dataclasses.replace(mask, offset=offset, key_valid=key_valid, explicit=explicit)


def check_heads(query: jax.Array, key: jax.Array) -> None:
    """Raise InputError unless query and key have heads of one width, whose numbers fit."""
    if query.ndim != 4 or key.ndim != 4:
        raise InputError(f"query {list(query.shape)} and key {list(key.shape)} must be [B, T, N, H] and [B, S, K, H]")
    if query.shape[0] != key.shape[0] or query.shape[3] != key.shape[3]:
        raise InputError(f"query {list(query.shape)} and key {list(key.shape)} must agree in batch B and head width H")
    if key.shape[2] == 0 or query.shape[2] % key.shape[2]:
        raise InputError(f"{query.shape[2]} query heads are not a multiple of {key.shape[2]} key heads")


def four_axes(name: str, x: jax.Array, shape: tuple[int, int, int, int]) -> jax.Array:
    """Return [T, S] as [1, 1, T, S], and [B|1, N|1, T|1, S] as it is. Raises InputError for other shapes."""
    full = x[None, None] if x.ndim == 2 else x
    fits = full.ndim == 4 and full.shape[3] == shape[3]
    if not fits or any(size not in (1, whole) for size, whole in zip(full.shape, shape, strict=True)):
        B, N, T, S = shape
        raise InputError(f"{name} {list(x.shape)} must be [{B} or 1, {N} or 1, {T} or 1, {S}] or [{T}, {S}]")
    return full


def weighted_values(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Return the values averaged by attention weights, [B, T, N, Hv] in the type of value.

    weights [B, N, T, S], value [B, S, K, Hv]. The second half of `dot_product_attention`, for callers that change the
    weights in between, as dropout does.
    """
    B, N, T, S = weights.shape
    _, _, K, Hv = value.shape
    grouped = weights.astype(value.dtype).reshape(B * K, N // K * T, S)
    mixed = jnp.einsum("XQS,XSH->XQH", grouped, _rows_and_heads(value), preferred_element_type=jnp.float32)
    return _heads_first(mixed.reshape(B, N, T, Hv)).astype(value.dtype)  # [B, T, N, Hv]


def blockwise_pays(query: jax.Array, key: jax.Array, mask: AttentionMask) -> bool:
    """Return whether to attend block by block.

    The dense form writes T * S scores per query head several times over and keeps them for the gradient, where one
    block of 256 x 256 stays in the processor's cache: from four such blocks on, that is most of the memory. On a CPU it
    saves time as well (measured, causal, with the gradient: 1.3 times faster at 512 tokens, 2.3 at 1024, 2.6 at 2048).
    Fewer than 128 queries have no more scores than keys and values have numbers (T <= 2 H at H = 64), so there is
    nothing to save, and a single query must not pay for cutting a cache into blocks.
    """
    T, S = query.shape[1], key.shape[1]
    return mask.explicit is None and are_numbers(T, S) and T >= 128 and T * S >= 512 * 512


def _scores(query: jax.Array, key: jax.Array, scoring: Scoring) -> jax.Array:
    """Return scaled, capped, biased and masked scores, float32 [B, N, T, S]."""
    B, T, N, H = query.shape
    _, S, K, _ = key.shape
    # Plain batched matrix products: up to twice as fast on a CPU as contracting [B, T, N, H].
    queries, keys = _rows_and_heads(query).reshape(B * K, N // K * T, H), _rows_and_heads(key)  # keys [B K, S, H]
    scores = batched_matmul_transposed(queries, keys).reshape(B, N, T, S) * scoring.scale
    if (softcap := scoring.softcap) is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if scoring.bias is not None:
        scores = scores + scoring.bias
    visible = scoring.mask.visible(T, S)
    return scores if visible is None else jnp.where(visible, scores, -jnp.inf)


def _weights(query: jax.Array, key: jax.Array, scoring: Scoring) -> jax.Array:
    """Return the attention map, float32 [B, N, T, S]. Sinks are one more key, whose column is left out."""
    scores = _scores(query, key, scoring)
    if scoring.sinks is None:
        return _softmax(scores)
    sinks = jnp.broadcast_to(scoring.sinks[:, None, None], (*scores.shape[:3], 1))
    return _softmax(jnp.concatenate([scores, sinks], axis=-1))[..., :-1]


def _heads_first(x: jax.Array) -> jax.Array:
    """Swap heads and positions: [B, T, N, H] -> [B, N, T, H], and back."""
    return jnp.swapaxes(x, 1, 2)


def _rows_and_heads(x: jax.Array) -> jax.Array:
    """Merge rows and heads: [B, T, N, H] -> [B N, T, H]."""
    B, T, N, H = x.shape
    return _heads_first(x).reshape(B * N, T, H)


@jax.custom_jvp
def _softmax(scores: jax.Array) -> jax.Array:
    """Return exp(score) / sum of exp over the last axis; zeros where all scores are -inf."""
    largest = jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf)
    exponentials = jnp.exp(scores - jnp.where(jnp.isneginf(largest), 0, largest))
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    return exponentials / jnp.where(total == 0, 1, total)


@_softmax.defjvp
def _softmax_derivative(scores: tuple[jax.Array], d_scores: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return weights P and their derivative P * (dS - sum of P dS): only P is kept for it, and -inf never enters."""
    weights = _softmax(*scores)
    return weights, weights * (d_scores[0] - jnp.sum(weights * d_scores[0], axis=-1, keepdims=True))
