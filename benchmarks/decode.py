"""How fast jaxformer generates: against itself without a cache, and against `generate()` of transformers."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from common import EOS, PAD, TORCH_DEVICE, Row, compare, prepare, race, random_marian, report
from jax import lax

from jaxformer import PRESETS, Transformer, generate

SOURCE = 30  # tokens of each source


@dataclass(frozen=True)
class Arguments:
    """Race jaxformer's generation against its naive form and Hugging Face, with equal weights and equal tokens."""

    shape: Literal["paper-base", "paper-big", "symbols"] = "paper-base"
    """the preset whose widths and depths are taken"""
    vocab_size: int = 32000
    """tokens of the vocabulary"""
    new_tokens: int = 100
    """tokens generated in each run; no sequence ends earlier"""
    runs: int = 5
    """rounds, in each of which every rival runs once"""
    output: Path = Path("docs/benchmarks/decode.md")
    """where the table is written"""
    quick: bool = False
    """a tiny shape, few tokens, one round: shows that all works, measures and writes nothing"""


def main(arguments: Arguments) -> None:
    """Race, print, and write the table."""
    if arguments.quick:
        arguments = Arguments("symbols", vocab_size=101, new_tokens=7, runs=1, quick=True)
    prepare()
    shape = PRESETS[arguments.shape](arguments.vocab_size)
    blocks = shape.main.blocks
    theirs, ours = random_marian(
        arguments.vocab_size, dim=shape.dim, layers=len(blocks), heads=blocks[0].attention.heads
    )
    theirs.eval()
    rows = race_naive(ours, arguments)
    for what, batch, beams in (("greedy, batch 1", 1, 1), ("greedy, batch 8", 8, 1), ("beam 4, batch 1", 1, 4)):
        rows += race_transformers(what, ours, theirs, batch, beams, arguments)
    method = (
        f"{arguments.new_tokens} new tokens from sources of {SOURCE}; the shape `{arguments.shape}` with a vocabulary "
        f"of {arguments.vocab_size}, random weights, float32; all tokens were equal. Time of the rival / time of "
        f"jaxformer, encoding included and compilation not: the median of {arguments.runs} interleaved rounds, "
        "and the ratio of the best times of all rounds."
    )
    report("Generation", None if arguments.quick else arguments.output, rows, method)


def race_naive(model: Transformer, arguments: Arguments) -> list[Row]:
    """Greedy decoding with a cache against reading the whole prefix again for every token."""
    source = sources(1, arguments.vocab_size)
    cached = partial(ours_generated, model, source, 1, arguments.new_tokens)
    naive = partial(naively_generated, model, source, arguments.new_tokens)
    np.testing.assert_array_equal(cached(), naive())
    return compare(
        "greedy, batch 1", race({"cached": cached, "no cache: every token reads all again": naive}, arguments.runs)
    )


def race_transformers(
    what: str, ours: Transformer, theirs: Any, batch: int, beams: int, arguments: Arguments
) -> list[Row]:
    """Generation by both libraries with the same settings."""
    source = sources(batch, arguments.vocab_size)
    mine = partial(ours_generated, ours, source, beams, arguments.new_tokens)
    other = partial(theirs_generated, theirs, source, beams, arguments.new_tokens)
    np.testing.assert_array_equal(mine(), other())
    return compare(what, race({"jaxformer": mine, "transformers `generate()`, eager PyTorch": other}, arguments.runs))


def sources(batch: int, vocab_size: int) -> np.ndarray:
    """Random token ids [B, SOURCE]."""
    return np.random.default_rng(batch).integers(2, vocab_size, (batch, SOURCE))


def ours_generated(model: Transformer, source: np.ndarray, beams: int, new_tokens: int) -> np.ndarray:
    """The sequences [B, 1 + new_tokens] by jaxformer."""
    settings = settings_of(beams, new_tokens)
    return generate(model, source, eos_token_id=EOS, decoder_start_token_id=PAD, **settings).sequences


def theirs_generated(model: Any, source: np.ndarray, beams: int, new_tokens: int) -> np.ndarray:
    """The sequences [B, 1 + new_tokens] by transformers."""
    inputs = torch.tensor(source, device=TORCH_DEVICE)
    with torch.no_grad():
        return model.generate(inputs, do_sample=False, **settings_of(beams, new_tokens)).cpu().numpy()


def settings_of(beams: int, new_tokens: int) -> dict[str, Any]:
    """What both are asked for: as many tokens as allowed, and no end before."""
    return {"num_beams": beams, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}


def naively_generated(model: Transformer, source: np.ndarray, new_tokens: int) -> np.ndarray:
    """The sequences [B, 1 + new_tokens] by greedy decoding without a cache."""
    return np.asarray(naive_compiled(model, jnp.asarray(source), new_tokens))


@partial(jax.jit, static_argnames="new_tokens")
def naive_compiled(model: Transformer, source: jax.Array, new_tokens: int) -> jax.Array:
    """The decoder reads the whole sequence, padded to its final length, once for each new token.

    All else is as quick as with a cache: one compiled loop, the source encoded once, logits of one position alone.
    """
    encoded = model.encode(source)

    def lengthen(position: int, tokens: jax.Array) -> jax.Array:
        cache = model.empty_cache(*tokens.shape, encoded=encoded)
        hidden, _ = model.extend(tokens, cache)
        logits = model.logits(lax.dynamic_index_in_dim(hidden, position, axis=1, keepdims=False))
        best = jnp.argmax(logits.at[:, EOS].set(-jnp.inf), axis=1).astype(tokens.dtype)
        return lax.dynamic_update_slice_in_dim(tokens, best[:, None], position + 1, axis=1)

    return lax.fori_loop(0, new_tokens, lengthen, jnp.full((source.shape[0], 1 + new_tokens), PAD))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
