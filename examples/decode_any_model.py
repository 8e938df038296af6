"""Beam search and sampling for models that are not ours: `jaxformer.decode` needs a step over a cache, no more.

Three of them, from nothing to a model in Flax Linen. Run it: python examples/decode_any_model.py
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen

import jaxformer

VOCABULARY, WIDTH, HEADS, SLOTS = 29, 32, 4, 64


def bigram_step(table: jax.Array, tokens: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
    """A table of what follows what, logits [V, V]: there is nothing to remember."""
    return table[tokens[:, -1]], cache


def moving_average_step(
    weights: dict[str, jax.Array], tokens: jax.Array, average: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A recurrent model in plain functions: the cache [R, D] is an average of embeddings that forgets."""
    for token in jnp.moveaxis(tokens, 1, 0):
        average = 0.8 * average + weights["embedding"][token]
    return average @ weights["output"], average


class LinenGPT(linen.Module):
    """One layer of attention in Flax Linen, with keys and values in its own variables."""

    @linen.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Token ids [R, T] -> logits [R, V] of the token after the last one."""
        R, T = tokens.shape
        x = linen.Embed(VOCABULARY, WIDTH)(tokens)
        # One number per row, like the keys and values: `decode` reorders the rows of all leaves of a cache.
        length = self.variable("cache", "length", jnp.zeros, (R,), jnp.int32)
        keys, values = (
            self.variable("cache", name, jnp.zeros, (R, SLOTS, HEADS, WIDTH // HEADS)) for name in ("keys", "values")
        )
        start = length.value[0]
        x += linen.Embed(SLOTS, WIDTH)(start + jnp.arange(T))[None]
        query, key, value = (linen.DenseGeneral((HEADS, WIDTH // HEADS), name=name)(x) for name in "qkv")
        keys.value = jax.lax.dynamic_update_slice_in_dim(keys.value, key, start, axis=1)
        values.value = jax.lax.dynamic_update_slice_in_dim(values.value, value, start, axis=1)
        length.value += T
        mask = jaxformer.AttentionMask(causal=True, offset=start)
        mixed = jaxformer.dot_product_attention(query, keys.value, values.value, mask=mask)
        x += linen.DenseGeneral(WIDTH, axis=(-2, -1))(mixed)
        return linen.Dense(VOCABULARY)(x[:, -1])


def linen_step(params: Any, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    """A step of it: Linen's variables are pure data, so its cache goes in and out."""
    logits, changed = LinenGPT().apply({"params": params, "cache": cache}, tokens, mutable=["cache"])
    return logits, changed["cache"]


def models(rows: int = 2) -> dict[str, tuple[jax.tree_util.Partial, Any]]:
    """Each model as a step with its weights, and an empty cache for so many rows.

    Weights are arguments of the compiled program: bound by `Partial`, a pytree, and never closed over.
    """
    table_key, embedding_key, output_key, linen_key = jax.random.split(jax.random.key(0), 4)
    table = 3 * jax.random.normal(table_key, (VOCABULARY, VOCABULARY))
    weights = {
        "embedding": jax.random.normal(embedding_key, (VOCABULARY, WIDTH)),
        "output": 0.5 * jax.random.normal(output_key, (WIDTH, VOCABULARY)),
    }
    variables = LinenGPT().init(linen_key, jnp.zeros((rows, 1), int))
    empty = jax.tree.map(jnp.zeros_like, variables["cache"])
    return {
        "a table of bigrams": (jax.tree_util.Partial(bigram_step, table), ()),
        "a moving average": (jax.tree_util.Partial(moving_average_step, weights), jnp.zeros((rows, WIDTH))),
        "a model in Flax Linen": (jax.tree_util.Partial(linen_step, variables["params"]), empty),
    }


def main() -> None:
    """Continue two prompts with each model: greedily, with four beams, and by sampling."""
    prompts = [[3, 1, 4], [1, 5, 9]]
    ways = {"greedy": {}, "beam 4": {"num_beams": 4}, "sampled": {"do_sample": True, "top_p": 0.9, "seed": 7}}
    for name, (step, cache) in models().items():
        print(name)
        for way, settings in ways.items():
            found = jaxformer.decode(step, cache, prompts, max_new_tokens=12, eos_token_id=0, **settings)
            for row, score in zip(found.sequences.tolist(), found.sequences_scores, strict=True):
                print(f"  {way:8} {' '.join(map(str, row)):44} score {score:.3f}")


if __name__ == "__main__":
    main()
