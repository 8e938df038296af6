"""Blockwise attention beside the dense form and PyTorch's, forward and backward: time, and memory at a long length."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import torch
import tyro
from common import TORCH_DEVICE, compare, prepare, race, report

from jaxformer import AttentionMask, attention_weights, dot_product_attention
from jaxformer.ops import weighted_values

HEADS, WIDTH = 8, 64
Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclass(frozen=True)
class Arguments:
    """Race causal attention with its gradients, 8 heads of 64, one sequence."""

    length: int = 2048
    """tokens whose time is taken"""
    longest: int = 16_384
    """tokens whose memory is taken"""
    runs: int = 7
    """rounds, in each of which every rival runs once"""
    quick: bool = False
    """short sequences, one round, nothing written"""


def main(arguments: Arguments) -> None:
    """Race, print, and write the table."""
    if arguments.quick:
        arguments = replace(arguments, length=600, longest=700, runs=1)
    length, longest, runs = arguments.length, arguments.longest, arguments.runs
    prepare()
    inputs = jax.random.normal(jax.random.key(0), (3, 1, length, HEADS, WIDTH))
    query, key, value = (torch.tensor(jax.device_get(x), device=TORCH_DEVICE).transpose(1, 2) for x in inputs)
    tensors = [tensor.contiguous().requires_grad_() for tensor in (query, key, value)]

    def theirs() -> None:
        query, key, value = tensors
        output = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        torch.autograd.grad(output.sum(), tensors)

    rivals = {name: compiled(attention, length) for name, attention in (("blockwise", blockwise), ("dense", dense))}
    seconds = race(
        {
            "blockwise": lambda: jax.block_until_ready(rivals["blockwise"](*inputs)),
            "the dense form": lambda: jax.block_until_ready(rivals["dense"](*inputs)),
            "PyTorch's `scaled_dot_product_attention`": theirs,
        },
        runs,
    )
    memory = compiled(blockwise, longest).memory_analysis()
    assert memory is not None
    stored = 4 * HEADS * longest**2
    method = (
        f"Causal attention, {HEADS} heads of {WIDTH}, one sequence of {length} tokens in float32, forward and "
        "backward. Time of the rival / time of jaxformer, compilation not counted: the median of "
        f"{runs} interleaved rounds, and the ratio of the best times.\n\nFor {longest} tokens the compiled forward and "
        f"backward pass has {memory.temp_size_in_bytes / 2**20:.0f} MiB of temporaries; one map of all heads would "
        f"take {stored / 2**30:.0f} GiB."
    )
    print(method)
    file = None if arguments.quick else Path("docs/benchmarks/attention.md")
    report("Attention", file, compare(f"{length} causal tokens", seconds), method)


def blockwise(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention as it is chosen for long sequences."""
    return dot_product_attention(query, key, value, mask=AttentionMask(causal=True))


def dense(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention through its map."""
    return weighted_values(attention_weights(query, key, mask=AttentionMask(causal=True)), value)


def compiled(attention: Attention, length: int) -> jax.stages.Compiled:
    """The gradients of a sum of outputs, compiled for sequences of a length."""

    def total(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(attention(*arrays))

    inputs = [jax.ShapeDtypeStruct((1, length, HEADS, WIDTH), jnp.float32)] * 3
    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2))).lower(*inputs).compile()


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
