"""Attention over sequences that are divided among devices: keys and values go around a ring.

Each device has the queries, keys and values of its part of the positions. It meets the keys that it has, passes them on
to its neighbor and receives those of the other one, until all have been around (Liu et al. 2023, Ring Attention). The
online softmax of `jaxformer.ops.blockwise` joins what the parts give, so that no device ever holds a whole sequence; in
the backward pass the gradients of keys and values travel with them and come home.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxformer.ops.blockwise import (
    Blocks,
    Residuals,
    Scale,
    d_sinks,
    gradients,
    in_blocks,
    joined,
    meet,
    nothing_seen,
)
from jaxformer.ops.masks import AttentionMask
from jaxformer.parallel import current_rules, divided_by, partition

AXIS = "context"


class Ring(NamedTuple):
    """Static settings of the ring.

    Attributes:
        scale: Those of the scores.
        length: Number of positions on each device.
    """

    scale: Scale
    length: int


def ring_applies(query: jax.Array, key: jax.Array, mask: AttentionMask) -> bool:
    """Return whether the current mesh divides positions, and these queries and keys are the same positions.

    Args:
        query: [B, T, N, H].
        key: [B, S, K, H].
        mask: Which keys the queries see.
    """
    devices = divided_by(AXIS)
    same = query.shape[1] == key.shape[1] and mask.static_offset == 0
    plain = mask.segment_ids is None and mask.explicit is None
    return devices > 1 and same and plain and query.shape[1] % devices == 0


def ring_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: AttentionMask,
    *,
    scale: float,
    softcap: float | None = None,
    sinks: jax.Array | None = None,
    block: int = 256,
) -> jax.Array:
    """Return what `blockwise_attention` returns, of sequences that the current mesh divides along "context".

    Args:
        query: [B, T, N, H].
        key: [B, T, K, H].
        value: [B, T, K, Hv].
        mask: Causal or not, with a window or not, with padding or not; its offset is 0.
        scale: Factor on the scores.
        softcap: Bound that scores are squashed into. None: not.
        sinks: float32 [N]. None: there are none.
        block: Number of queries, and of keys, that a device computes at once.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), current_rules()
    sizes = dict(mesh.shape)
    rows, _, heads, _ = partition("BTK_", key.shape, sizes, rules)
    operand = PartitionSpec(rows, AXIS, heads, None)
    key_valid = jnp.ones(key.shape[:2], bool) if mask.key_valid is None else mask.key_valid
    key_valid = jnp.broadcast_to(key_valid, key.shape[:2])
    sinks = jnp.full(query.shape[2], jnp.finfo(jnp.float32).min) if sinks is None else sinks

    def local(query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array, sinks: jax.Array) -> jax.Array:
        part = dataclasses.replace(mask, key_valid=valid, offset=0)
        blocks = in_blocks(query, key, value, part, sinks, block)
        return joined(_around(Ring(Scale(scale, softcap), query.shape[1]), blocks), query.shape[1])

    specs = (operand, operand, operand, PartitionSpec(rows, AXIS), PartitionSpec(heads))
    divided = jax.shard_map(local, in_specs=specs, out_specs=operand, check_vma=False)
    return divided(query, key, value, key_valid, sinks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _around(static: Ring, blocks: Blocks) -> jax.Array:
    """Return the attention of this device's query blocks [T blocks, B, K, G, size, Hv] to all keys."""
    return _forward(static, blocks)[0]


def _forward(static: Ring, blocks: Blocks) -> tuple[jax.Array, Residuals]:
    """Return the output blocks, and what the gradient needs."""

    def visit(step: jax.Array, carried: Any) -> Any:
        seen, arrived = carried
        return meet(static.scale, shifted(static, arrived, step), seen), passed_on(arrived)

    seen, _ = lax.fori_loop(0, lax.axis_size(AXIS), visit, (nothing_seen(blocks), blocks))
    output = (seen.mixed / seen.total[..., None]).astype(blocks.values.dtype)
    return output, Residuals(blocks, output, seen.largest, seen.total)


def _backward(static: Ring, saved: Residuals, d_output: jax.Array) -> tuple[Blocks]:
    """Return the gradients of queries, keys, values and sinks, and None for the mask."""
    blocks = saved.blocks
    d_sum = jnp.sum(d_output.astype(jnp.float32) * saved.output.astype(jnp.float32), axis=-1)

    def visit(step: jax.Array, carried: Any) -> Any:
        d_queries, d_keys, d_values, arrived = carried
        here = saved._replace(blocks=shifted(static, arrived, step))
        more_queries, more_keys, more_values = gradients(static.scale, here, d_output, d_sum)
        d_keys, d_values = to_neighbor((d_keys + more_keys, d_values + more_values))
        return d_queries + more_queries, d_keys, d_values, passed_on(arrived)

    operands = blocks.queries, blocks.keys, blocks.values
    zeros = [jnp.zeros(operand.shape, jnp.float32) for operand in operands]
    *found, _ = lax.fori_loop(0, lax.axis_size(AXIS), visit, (*zeros, blocks))
    typed = [gradient.astype(operand.dtype) for gradient, operand in zip(found, operands, strict=True)]
    return (Blocks(*typed, None, d_sinks(saved, d_sum)),)  # pyrefly: ignore  # no gradient of a mask


_around.defvjp(_forward, _backward)


def shifted(static: Ring, blocks: Blocks, step: jax.Array) -> Blocks:
    """Return the blocks after some steps around the ring: their keys are those of the device so many places before."""
    devices, here = lax.axis_size(AXIS), lax.axis_index(AXIS)
    owner = (here - step) % devices
    offset = (here - owner) * static.length
    return blocks._replace(mask=dataclasses.replace(blocks.mask, offset=jnp.reshape(offset, (1,))))


def passed_on(blocks: Blocks) -> Blocks:
    """Return the blocks with the keys, values and padding of the neighbor before this device."""
    keys, values, valid = to_neighbor((blocks.keys, blocks.values, blocks.mask.key_valid))
    return blocks._replace(keys=keys, values=values, mask=dataclasses.replace(blocks.mask, key_valid=valid))


def to_neighbor(tree: Any) -> Any:
    """Send arrays to the next device of the ring, and return those that arrive."""
    devices = lax.axis_size(AXIS)
    return lax.ppermute(tree, AXIS, [(device, (device + 1) % devices) for device in range(devices)])
