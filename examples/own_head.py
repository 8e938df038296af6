"""A head of one's own on a pretrained encoder: scores of texts, such as stars, by regression.

python examples/own_head.py my-bert stars.tsv
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxformer
from jaxformer.data.rows import read_labelled
from jaxformer.layers import Linear


class Scorer(nnx.Module):
    """An encoder whose last states are averaged over the tokens of a text and mapped to one number."""

    def __init__(self, encoder: jaxformer.Transformer, rngs: nnx.Rngs):
        self.encoder = encoder
        self.output = Linear(encoder.config.dim, 1, axes="D_", rngs=rngs)

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Return a score for each text, [B], of token ids and their mask [B, S]."""
        states = self.encoder.encode(tokens, mask=mask)  # [B, S, D]
        weights = mask[..., None] / mask.sum(axis=1)[:, None, None]
        return self.output((states * weights).sum(axis=1))[:, 0]


def main(folder: str, data: str, steps: int = 100, batch_size: int = 16) -> None:
    """Train on the lines "text TAB score" of a file."""
    texts, scores = zip(*read_labelled(Path(data)), strict=True)
    lm = jaxformer.from_pretrained(folder, dtype="float32")
    scorer, wanted = Scorer(lm.model, nnx.Rngs(0)), np.array(scores, np.float32)
    optimizer = nnx.Optimizer(scorer, optax.adamw(5e-4), wrt=nnx.Param)

    @nnx.jit
    def step(scorer, optimizer, tokens, mask, wanted):
        value, gradient = nnx.value_and_grad(lambda scorer: jnp.square(scorer(tokens, mask) - wanted).mean())(scorer)
        optimizer.update(scorer, gradient)
        return value

    rng = np.random.default_rng(0)
    for number in range(steps):
        chosen = rng.integers(0, len(texts), batch_size)
        batch = lm.encode([texts[row] for row in chosen], multiple_of=32)
        error = step(scorer, optimizer, batch["input_ids"], batch["attention_mask"], wanted[chosen])
        if number % 20 == 0:
            print(f"step {number}: squared error {error:.4f}")
    batch = lm.encode(texts[:3])
    print(scorer(batch["input_ids"], jnp.asarray(batch["attention_mask"])), wanted[:3])


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
