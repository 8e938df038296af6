"""Cross-entropy over real tokens, with label smoothing (section 5.4)."""

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError


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
