"""Cross-entropy over real tokens, with label smoothing (section 5.4)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxformer.errors import InputError

Head = Callable[[jax.Array], jax.Array]


def token_cross_entropy(
    logits: jax.Array, labels: jax.Array, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> jax.Array:
    """Return the cross-entropy of every token in nats, float32 [...]; 0 where the label is `ignore_index`.

    With smoothing e the target distribution is (1 - e) on the label plus e/V on each of the V entries, so a token costs
    (1 - e) * (log Z - logit[label]) + e * (log Z - mean of its logits), where log Z is the logarithm of the sum of
    exponentials.

    Args:
        logits: Scores [..., V].
        labels: Token ids [...]. A label outside 0..V-1 that is not `ignore_index` gives NaN: it cannot be refused
            under `jax.jit`, and a wrong number would go unseen.
        ignore_index: The label of tokens that do not count.
        label_smoothing: e, from 0 to 1.

    Raises:
        InputError: The shapes do not fit, labels are not integers or smoothing lies outside [0, 1].
    """
    if logits.ndim == 0 or labels.shape != logits.shape[:-1]:
        raise InputError(f"labels {labels.shape} must have the shape of logits {logits.shape} without its last axis")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise InputError(f"labels must be integers, not {labels.dtype}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise InputError(f"label_smoothing must lie between 0 and 1, not {label_smoothing}")
    V = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    # Out of range on either side becomes V, which the gather fills with NaN; a negative index would count from the end.
    index = jnp.where((labels >= 0) & (labels < V), labels, V)
    label_logit = jnp.take_along_axis(logits, index[..., None], axis=-1, mode="fill", fill_value=jnp.nan)[..., 0]
    loss = log_normaliser - label_logit
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_normaliser - jnp.mean(logits, axis=-1))
    return jnp.where(labels == ignore_index, 0.0, loss)


def cross_entropy(
    logits: jax.Array, labels: jax.Array, *, ignore_index: int = -100, label_smoothing: float = 0.0
) -> jax.Array:
    """Return the mean cross-entropy in nats over the labels that are not `ignore_index`: a float32 scalar.

    When every label is ignored the mean is 0 (PyTorch: NaN), so that an empty batch neither moves nor destroys the
    parameters.

    Args:
        logits: Scores [..., V].
        labels: Token ids [...].
        ignore_index: The label of tokens that do not count.
        label_smoothing: As in `token_cross_entropy`, with its errors.
    """
    losses = token_cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=label_smoothing)
    return jnp.sum(losses) / jnp.maximum(jnp.sum(labels != ignore_index), 1)


def chunked_cross_entropy(
    head: Head,
    states: jax.Array,
    labels: jax.Array,
    *,
    chunks: int,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Return the mean cross-entropy in nats of logits of which a part exists at a time: two float32 scalars.

    Logits [B, T, V] of a large vocabulary, and their gradient, can take more memory than all else in a step. Here the
    positions are cut into chunks, one after the other. Each chunk's gradient is made with its loss, in the forward
    pass, so that no logits are kept and none are computed twice.

    Args:
        head: Maps states [B, t, D] to logits [B, t, V]. Arrays that a `jax.tree_util.Partial` binds are differentiated,
            see `Transformer.split_head`; others that it holds are constants.
        states: Hidden states [B, T, D].
        labels: Token ids [B, T].
        chunks: Number of chunks; T is filled up to a multiple of it.
        ignore_index: The label of tokens that do not count.
        label_smoothing: As in `token_cross_entropy`, with its errors.

    Returns:
        The loss to minimize, and the same without label smoothing to report, which has no gradient. Both are 0 where
        every label is ignored.
    """
    B, T, D = states.shape
    if labels.shape != (B, T):
        raise InputError(f"labels {labels.shape} must have the shape of states {states.shape} without its last axis")
    rest = -T % chunks
    states = jnp.pad(states, ((0, 0), (0, rest), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, rest)), constant_values=ignore_index)
    length = (T + rest) // chunks
    parts = (states.reshape(B, chunks, length, D).swapaxes(0, 1), labels.reshape(B, chunks, length).swapaxes(0, 1))
    options = (ignore_index, label_smoothing)
    objective, plain = _summed_chunks(options, head if isinstance(head, Partial) else Partial(head), *parts)
    count = jnp.maximum(jnp.sum(labels != ignore_index), 1)
    return objective / count, jax.lax.stop_gradient(plain) / count


def _chunk_sums(
    options: tuple[int, float], head: Head, states: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the summed loss of a chunk, [B, t, D] and [B, t], with and without label smoothing."""
    ignore_index, smoothing = options
    logits = head(states)
    plain = jnp.sum(token_cross_entropy(logits, labels, ignore_index=ignore_index))
    if not smoothing:
        return plain, plain
    return jnp.sum(token_cross_entropy(logits, labels, ignore_index=ignore_index, label_smoothing=smoothing)), plain


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed_chunks(
    options: tuple[int, float], head: Partial, states: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the summed loss of chunks [C, B, t, D] and [C, B, t]."""

    def add(sums: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, _chunk_sums(options, head, *chunk)), None

    return jax.lax.scan(add, (jnp.float32(0), jnp.float32(0)), (states, labels))[0]


def _summed_chunks_forward(options: tuple[int, float], head: Any, states: Any, labels: Any) -> tuple[Any, Any]:
    """Return the same, and its gradient for the states and for those arrays of the head that are differentiated."""
    found, structure = jax.tree.flatten(head, is_leaf=lambda leaf: hasattr(leaf, "perturbed"))
    wanted = [leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.inexact) for leaf in found]
    trained = [leaf.value for leaf, is_wanted in zip(found, wanted, strict=True) if is_wanted]

    def sums(trained: list[jax.Array], states: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        rest = iter(trained)
        leaves = [next(rest) if is_wanted else leaf.value for leaf, is_wanted in zip(found, wanted, strict=True)]
        return _chunk_sums(options, structure.unflatten(leaves), states, labels)

    def add(carry: Any, chunk: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        (objective, plain), (change, gradient) = jax.value_and_grad(sums, argnums=(0, 1), has_aux=True)(trained, *chunk)
        return jax.tree.map(lambda total, part: total + part, carry, ((objective, plain), change)), gradient

    zero = jnp.float32(0)
    zeros = [jnp.zeros(leaf.shape, jnp.float32) for leaf in trained]  # of 16 bits, sums would lose the small parts
    (totals, changes), gradient = jax.lax.scan(add, ((zero, zero), zeros), (states.value, labels.value))
    rest = iter(change.astype(leaf.dtype) for change, leaf in zip(changes, trained, strict=True))
    heads = structure.unflatten([next(rest) if is_wanted else None for is_wanted in wanted])
    return totals, (heads, gradient)


def _summed_chunks_backward(_: tuple[int, float], saved: Any, cotangents: tuple[jax.Array, Any]) -> tuple[Any, ...]:
    """Return the gradient for head, states and labels, which have none."""
    scale = cotangents[0]
    heads, gradient = jax.tree.map(lambda leaf: (leaf * scale).astype(leaf.dtype), saved)
    return heads, gradient, None


_summed_chunks.defvjp(_summed_chunks_forward, _summed_chunks_backward, symbolic_zeros=True)
