"""What NVIDIA GPUs want: the fused attention kernel of cuDNN, where it applies."""

from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp


class Mask(Protocol):
    """Arguments of the kernel for an `AttentionMask`."""

    @property
    def offset(self) -> Any:
        """Position of the first query."""
        ...

    @property
    def key_valid(self) -> jax.Array | None:
        """Which keys are real, boolean [B|1, S]. None: all are."""
        ...

    @property
    def segment_ids(self) -> jax.Array | None:
        """Which sequence each key belongs to. None: a row is one sequence."""
        ...

    @property
    def explicit(self) -> jax.Array | None:
        """A mask per query. None: there is none."""
        ...

    @property
    def bounds(self) -> tuple[int | None, int | None]:
        """How far a query sees to the left and to the right."""
        ...

    def visible(self, queries: int, keys: int) -> jax.Array | None:
        """Return the mask as an array. None: nothing is hidden."""
        ...


def cuda_capability() -> float:
    """Return the compute capability of the default device, for example 9.0; 0 where that is no NVIDIA GPU."""
    device = jax.devices()[0]
    is_cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    return float(device.compute_capability) if is_cuda else 0.0


def fused_kernel_applies(query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask, capability: float) -> bool:
    """Return whether cuDNN's kernel can compute this call on a GPU of this compute capability (8.0 is the first).

    It takes 16-bit numbers, one head width that is a multiple of 8 up to 128, queries that start at position 0 and
    look back at most (no right window), and no cap, bias, packed sequences or mask per query. A mask of real keys
    reaches it as a bias, whose gradient needs even lengths, and the lengths must allow every query of a left window
    a key.
    """
    T, S, H = query.shape[1], key.shape[1], query.shape[3]
    left, right = mask.bounds
    whole = left is None and right is None
    starts_at_zero = isinstance(mask.offset, int) and mask.offset == 0
    return (
        capability >= 8.0
        and query.dtype in (jnp.float16, jnp.bfloat16)
        and query.dtype == key.dtype == value.dtype
        and value.shape[3] == H <= 128
        and H % 8 == 0
        and mask.explicit is None
        and mask.segment_ids is None
        and (whole or (starts_at_zero and right == 0))
        and (left is None or T <= S)
        and (mask.key_valid is None or (T % 2 == 0 and S % 2 == 0))
    )


def fused_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask,
    *,
    scale: float,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """Return softmax(scale Q K^T) V by one kernel, [B, T, N, Hv], for calls that `fused_kernel_applies` accepts.

    The kernel averages all values where a query sees no real key; those rows are set to zero here, and so is their
    gradient.
    """
    T, S = query.shape[1], key.shape[1]
    left, right = mask.bounds
    key_valid = mask.key_valid
    output = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if key_valid is None else jnp.broadcast_to(key_valid[:, None, None], (len(key_valid), 1, T, S)),
        scale=scale,
        is_causal=right == 0,
        local_window_size=None if left is None else (left, 0),
        implementation=implementation,
    )
    visible = mask.visible(T, S)
    if key_valid is None or visible is None:  # then every query sees a key
        return output
    sees_a_key = visible.any(axis=-1)  # [B|1, 1, T]
    return jnp.where(jnp.swapaxes(sees_a_key, 1, 2)[..., None], output, 0)  # [B, T, N, Hv] where [B|1, T, 1, 1]
