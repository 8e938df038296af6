"""A mixture of experts: sorted, with every expert for every token, and a plain network of the same active size."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from common import compare, prepare, race, report
from flax import nnx

from jaxformer.config import FeedForwardConfig, MoEConfig
from jaxformer.layers.experts import Experts
from jaxformer.layers.feed_forward import FeedForward

Layer = Callable[[Any, jax.Array], jax.Array]
SORTED, DENSE, PLAIN = "sorted", "every expert for every token", "a plain network of the active size"


@dataclass(frozen=True)
class Arguments:
    """Compare how a mixture of experts, each a gated network, can be computed."""

    tokens: int = 2048
    """tokens at once"""
    dim: int = 256
    """model width D"""
    hidden: int = 512
    """inner width of an expert"""
    chosen: int = 2
    """experts that a token goes through"""
    experts: tuple[int, ...] = (8, 32, 64)
    """numbers of experts to measure"""
    rounds: int = 7
    """how often each takes its turn"""
    quick: bool = False
    """tiny sizes, nothing written"""


def main(arguments: Arguments) -> None:
    """Race forward alone, forward and backward, and a single token; print, and write the table."""
    prepare()
    if arguments.quick:
        arguments = replace(arguments, tokens=64, dim=16, hidden=24, experts=(4,), rounds=2)
    rows, rng = [], np.random.default_rng(0)
    for count in arguments.experts:
        layers, parameters = rivals(arguments, count)
        for tokens, backward in ((arguments.tokens, False), (arguments.tokens, True), (1, False)):
            x = jnp.asarray(rng.normal(size=(1, tokens, arguments.dim)), jnp.float32)
            programs = {name: compiled(layer, parameters[name], x, backward) for name, layer in layers.items()}
            agree(programs[SORTED](), programs[DENSE]())
            what = "a token" if tokens == 1 else f"{tokens:,} tokens, {'and backward' if backward else 'forward'}"
            seconds = race(programs, arguments.rounds)
            rows += compare(f"{arguments.chosen} of {count} experts, {what}", seconds)
    method = (
        f"Time of the other / time of the sorted computation: medians of interleaved rounds. Model width "
        f"{arguments.dim}, gated experts of inner width {arguments.hidden}, random weights and tokens, float32. "
        f"The plain network is {arguments.chosen} experts wide: as many multiplications as the mixture needs without "
        "its router. Before anything is timed, sorted and dense results are compared, gradients too."
    )
    report("A mixture of experts", None if arguments.quick else Path("docs/benchmarks/moe.md"), rows, method)


def rivals(arguments: Arguments, count: int) -> tuple[dict[str, Layer], dict[str, Any]]:
    """The layers, and their parameters: those of the mixture for both ways to compute it."""
    expert = FeedForwardConfig(arguments.hidden, "silu", gated=True, bias=False)
    mixture = Experts(MoEConfig(count, arguments.chosen, expert), arguments.dim, rngs=nnx.Rngs(0))
    plain = replace(expert, d_ff=arguments.chosen * arguments.hidden)
    layers: dict[str, Layer] = {SORTED: Experts.__call__, DENSE: dense, PLAIN: FeedForward.__call__}
    return layers, {SORTED: mixture, DENSE: mixture, PLAIN: FeedForward(plain, arguments.dim, rngs=nnx.Rngs(0))}


def dense(mixture: Experts, x: jax.Array) -> jax.Array:
    """Every expert for every token, and then those that were chosen by their weights."""
    rows = x.reshape(-1, x.shape[-1])
    choice = mixture.choose(mixture.logits(rows))
    everything = jax.vmap(FeedForward.__call__, in_axes=(0, None))(mixture.experts, rows)
    places = jnp.arange(len(rows))[:, None]
    share = jnp.zeros((len(rows), len(everything))).at[places, choice.experts].add(choice.weights)
    return jnp.einsum("RE,ERD->RD", share, everything).reshape(x.shape)


def compiled(layer: Layer, parameters: Any, x: jax.Array, backward: bool) -> Callable[[], Any]:
    """A call that computes the output, or the gradient of a sum over it, and waits for it."""

    def total(parameters: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(layer(parameters, x)))

    program = jax.jit(jax.grad(total, (0, 1)) if backward else layer)
    return lambda: jax.block_until_ready(program(parameters, x))


def agree(ours: Any, theirs: Any) -> None:
    """Raise unless both are equal within 1e-5 of the largest entry."""
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * max(1.0, float(jnp.abs(their).max())))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
