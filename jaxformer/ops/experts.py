"""A mixture of experts of which only the chosen ones are computed, and no token is dropped.

Every token of every choice is a row. The rows are sorted by expert and the rows of each expert are padded to whole
blocks, so that a block belongs to one expert. A loop over the blocks in use takes the weights of the block's expert and
applies it: work grows with the rows and not with the number of experts, and where there are few rows, as in decoding,
no weights but those of chosen experts are read. (The layout is that of Gale et al. 2022, MegaBlocks.)
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxformer.backends.default import are_numbers
from jaxformer.ops.routing import TopK
from jaxformer.parallel import current_rules, mesh_axes, partition

Expert = Callable[[Any, jax.Array], jax.Array]
LARGEST_BLOCK = 128  # rows


class DispatchPlan(NamedTuple):
    """Order of the rows of a choice, sorted by expert.

    Attributes:
        rows: Integers [blocks * size], the row k * r + i of token r and its i-th choice at each place; as many as there
            are rows where a place stays empty.
        row_index: Integers [R, k], the place of each row.
        block_expert: Integers [blocks], the expert of each block.
        used: How many blocks have rows; they are the first.
    """

    rows: jax.Array
    row_index: jax.Array
    block_expert: jax.Array
    used: jax.Array


def mix_experts(expert: Expert, weights: Any, x: jax.Array, choice: TopK, *, size: int | None = None) -> jax.Array:
    """Return for each token the sum over its chosen experts of weight * expert(token): [R, D].

    Gradients are of first order only, and compute the inside of the experts a second time rather than keep it.

    Args:
        expert: Function of one expert's weights and rows [n, D]; it must be the same Python object at every call, and
            depend on nothing else.
        weights: Weights of all experts, leaves [E, ...].
        x: Tokens [R, D].
        choice: Experts and weights [R, k]. An expert E is on another device, and adds nothing here.
        size: Rows of a block. None: as many as an expert has on average, as a power of two between 8 and 128.
    """
    R, D = x.shape
    k, E = choice.experts.shape[1], len(jax.tree.leaves(weights)[0])
    if size is None and not are_numbers(R):
        size = LARGEST_BLOCK
    elif size is None:
        # Experts of a single token differ, so that its rows share no block.
        size = 1 if R == 1 else min(max(8, 1 << (R * k // E).bit_length()), LARGEST_BLOCK)
    plan = sort_by_expert(choice.experts, E, size)
    # A place that stays empty reads beyond the tokens, which gives zeros.
    blocks = x.at[plan.rows // k].get(mode="fill", fill_value=0).reshape(-1, size, D)  # [blocks, size, D]
    outputs = _apply(expert, weights, blocks, plan.block_expert, plan.used).reshape(-1, D)
    mixed = outputs.at[plan.row_index].get(mode="fill", fill_value=0)  # [R, k, D]
    return jnp.einsum("RK,RKD->RD", choice.weights.astype(x.dtype), mixed)


def mix_grouped(
    grouped: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, choice: TopK, count: int
) -> jax.Array:
    """Return what `mix_experts` returns, by products of rows that are grouped by expert.

    `jax.lax.ragged_dot` computes these on GPUs and TPUs with as much work as there are rows. On CPUs it would compute
    every expert for every row.

    Args:
        grouped: Function of rows [n, D], sorted by expert, and the number of rows of each expert, int32 [E].
        x: Tokens [R, D].
        choice: Experts and weights [R, k].
        count: Number of experts E.
    """
    k, flat = choice.experts.shape[1], choice.experts.reshape(-1)  # flat: [R k]
    order = jnp.argsort(flat)  # [R k]
    group_sizes = jnp.zeros(count, jnp.int32).at[flat].add(1)
    outputs = grouped(x[order // k], group_sizes)  # [R k, D]
    outputs = jnp.where((flat[order] < count)[:, None], outputs, 0)  # those of experts that are elsewhere
    unsorted = jnp.zeros_like(outputs).at[order].set(outputs).reshape(*choice.experts.shape, -1)  # [R, k, D]
    return jnp.einsum("RK,RKD->RD", choice.weights.astype(x.dtype), unsorted)


Mix = Callable[[Any, jax.Array, TopK], jax.Array]


def mix_over_devices(mix: Mix, weights: Any, x: jax.Array, choice: TopK, count: int) -> jax.Array:
    """Return the mixture of tokens whose experts the current mesh divides: [B, T, D].

    Devices that have other experts and other tokens gather their tokens, each computes its experts for all of them, and
    what the experts add is summed where a token came from. No token is dropped, whatever is chosen; rows sent by
    all-to-all would need room for the case that all choose one device, which is more than all tokens.

    Args:
        mix: (weights, tokens [R, D], choice) -> mixture [R, D] of the experts that are there.
        weights: Weights of all experts, leaves [E, ...].
        x: Tokens [B, T, D].
        choice: Experts and weights [B, T, k].
        count: Number of experts E.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), current_rules()
    sizes = dict(mesh.shape)
    rows = partition("BT_", x.shape, sizes, rules)
    owners = mesh_axes(partition("E", (count,), sizes, rules), 0)
    apart = tuple(axis for axis in owners if axis in mesh_axes(rows, 0))  # along which tokens differ, too
    same = tuple(axis for axis in owners if axis not in apart)
    here = count // math.prod(sizes[axis] for axis in owners)

    def local(weights: Any, x: jax.Array, choice: TopK) -> jax.Array:
        shape = x.shape
        tokens = (x.reshape(-1, shape[-1]), *(part.reshape(-1, part.shape[-1]) for part in choice))
        if apart:
            tokens = jax.lax.all_gather(tokens, apart, tiled=True)
        x, experts, shares = tokens
        first = jax.lax.axis_index(owners) * here if owners else 0
        mine = (experts >= first) & (experts < first + here)
        mixed = mix(weights, x, TopK(jnp.where(mine, experts - first, here), shares))
        if apart:
            mixed = jax.lax.psum_scatter(mixed, apart, tiled=True)
        return (jax.lax.psum(mixed, same) if same else mixed).reshape(shape)

    specs = (PartitionSpec(owners or None), rows, rows)
    divided = jax.shard_map(local, in_specs=specs, out_specs=rows, check_vma=False)
    return divided(weights, x, choice)


def sort_by_expert(experts: jax.Array, count: int, size: int) -> DispatchPlan:
    """Return the plan for chosen experts [R, k], out of `count`, in blocks of `size` rows.

    Rows of an expert `count`, which is elsewhere, have no place.
    """
    rows = experts.size
    flat = experts.reshape(-1)  # [R k]
    order = jnp.argsort(flat)  # stable: rows of an expert keep their order
    per_expert = jnp.zeros(count, jnp.int32).at[flat].add(1)
    blocks_per_expert = -(-per_expert // size)
    last_block = jnp.cumsum(blocks_per_expert)
    first_place = (last_block - blocks_per_expert) * size
    first_sorted = jnp.cumsum(per_expert) - per_expert
    expert_of = flat[order]
    blocks = rows // size + count  # enough, whatever was chosen
    blocks = min(rows, blocks) if are_numbers(rows) else blocks
    row_index = (
        first_place.at[expert_of].get(mode="clip") + jnp.arange(rows) - first_sorted.at[expert_of].get(mode="clip")
    )
    row_index = jnp.where(expert_of < count, row_index, blocks * size)
    return DispatchPlan(
        jnp.full(blocks * size, jnp.int32(rows)).at[row_index].set(order.astype(jnp.int32)),
        jnp.zeros(rows, jnp.int32).at[order].set(row_index.astype(jnp.int32)).reshape(experts.shape),  # [R, k]
        jnp.searchsorted(last_block, jnp.arange(blocks), side="right").clip(0, count - 1),
        last_block[-1],
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(expert: Expert, weights: Any, blocks: jax.Array, block_expert: jax.Array, used: jax.Array) -> jax.Array:
    """Return each block [size, D] through its expert; blocks that are not in use give zeros."""

    def visit(at: jax.Array, outputs: jax.Array) -> jax.Array:
        return outputs.at[at].set(expert(_weights_of(weights, block_expert[at]), blocks[at]))

    return jax.lax.fori_loop(0, used, visit, jnp.zeros_like(blocks))


def _forward(
    expert: Expert, weights: Any, blocks: jax.Array, block_expert: jax.Array, used: jax.Array
) -> tuple[Any, Any]:
    return _apply(expert, weights, blocks, block_expert, used), (weights, blocks, block_expert, used)


def _backward(expert: Expert, saved: Any, d_outputs: jax.Array) -> tuple[Any, jax.Array, None, None]:
    """Return the gradients of weights and blocks.

    Each block adds its share to one gradient of all experts' weights. Integers, of 8-bit weights, have none.
    """
    weights, blocks, block_expert, used = saved
    leaves, structure = jax.tree.flatten(weights)

    def visit(at: jax.Array, gradients: Any) -> Any:
        d_weights, d_blocks = gradients
        _, pull = jax.vjp(expert, _weights_of(weights, block_expert[at]), blocks[at])
        share, d_block = pull(d_outputs[at])
        d_weights = [
            None if total is None else total.at[block_expert[at]].add(part)
            for total, part in zip(d_weights, jax.tree.leaves(share), strict=True)
        ]
        return d_weights, d_blocks.at[at].set(d_block)

    numbers = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    zeros = [jnp.zeros(leaf.shape, jnp.float32) if real else None for leaf, real in zip(leaves, numbers, strict=True)]
    d_weights, d_blocks = jax.lax.fori_loop(0, used, visit, (zeros, jnp.zeros_like(blocks)))
    found = [
        np.zeros(leaf.shape, jax.dtypes.float0) if total is None else total.astype(leaf.dtype)
        for total, leaf in zip(d_weights, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, found), d_blocks, None, None


_apply.defvjp(_forward, _backward)


def _weights_of(weights: Any, expert: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, expert, keepdims=False), weights)
