"""Normalisation over the model width."""

import jax
import jax.numpy as jnp


def layer_norm(x: jax.Array, scale: jax.Array | None, bias: jax.Array | None, *, epsilon: float = 1e-5) -> jax.Array:
    """Normalize each vector of x [..., D] to mean 0 and variance 1, then scale it and add the bias: [..., D].

    Ba et al. (2016), equation 4: (x - mean) / sqrt(variance + epsilon) * scale + bias. In float32 whatever the type of
    x, and with the variance as the mean of squared deviations: the one-pass formula E[x^2] - E[x]^2 loses 3e-4 where
    the mean is 30 times the deviation.

    Args:
        x: Vectors [..., D].
        scale: Factors [D], or of more of the last axes of x. None: all are 1.
        bias: Terms of the same shape. None: all are 0.
        epsilon: A small number below the root.
    """
    deviation = x.astype(jnp.float32)
    deviation -= deviation.mean(axis=-1, keepdims=True)
    variance = jnp.square(deviation).mean(axis=-1, keepdims=True)
    normal = deviation * jax.lax.rsqrt(variance + epsilon)
    normal = normal if scale is None else normal * along_last_axes(scale, x.ndim)
    return (normal if bias is None else normal + along_last_axes(bias, x.ndim)).astype(x.dtype)  # [..., D]


def rms_norm(x: jax.Array, scale: jax.Array, *, epsilon: float = 1e-6, offset: bool = False) -> jax.Array:
    """Normalize each vector to a mean square of 1, then scale it: [..., D].

    Zhang and Sennrich (2019), equation 4: x / sqrt(mean(x^2) + epsilon) * scale. Unlike `layer_norm` it subtracts no
    mean and adds no bias. In float32 whatever the type of x.

    Args:
        x: Vectors [..., D].
        scale: Factors [D], or of more of the last axes of x.
        epsilon: A small number below the root.
        offset: Whether the factor is 1 + scale.
    """
    wide = x.astype(jnp.float32)
    normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(axis=-1, keepdims=True) + epsilon)
    scale = scale.astype(jnp.float32) + 1 if offset else scale
    return (normal * along_last_axes(scale, x.ndim)).astype(x.dtype)  # [..., D]


def along_last_axes(x: jax.Array, axes: int) -> jax.Array:
    """Return an array with axes of size 1 before its own, so that it has `axes` of them."""
    return x.reshape((1,) * (axes - x.ndim) + x.shape)
