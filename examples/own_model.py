"""A model of one's own from the layers: two streams of attention, one near and one far, trained and decoded.

Each layer can be used alone. This one attends twice side by side, to the last 4 tokens and to all of them, which no
configuration describes. It learns to count, and `jaxformer.decode` generates with it from a cache.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxformer
from jaxformer.config import AttentionConfig, EmbeddingConfig, FeedForwardConfig, RMSNormConfig, Rope
from jaxformer.layers import Attention, Embedding, FeedForward, Linear, RMSNorm

V, D, LENGTH = 12, 32, 16


class NearAndFar(nnx.Module):
    """An embedding, a layer with two attentions, a feed-forward network, and an output projection."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = Embedding(EmbeddingConfig(V), D, rngs=rngs)
        self.near = Attention(AttentionConfig(2, window=4, rope=Rope()), D, rngs=rngs)
        self.far = Attention(AttentionConfig(2, rope=Rope()), D, rngs=rngs)
        self.feed_forward = FeedForward(FeedForwardConfig(64, "silu", gated=True), D, rngs=rngs)
        self.norms = nnx.List([RMSNorm(RMSNormConfig(), D) for _ in range(3)])
        self.output = Linear(D, V, axes="DV", rngs=rngs)

    def init_cache(self, batch: int) -> tuple:
        """Return the number of tokens read, and a cache for each attention."""
        return 0, self.near.init_cache(batch, LENGTH), self.far.init_cache(batch, LENGTH)

    def __call__(self, tokens: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
        """Return the logits [B, T, V] after the next tokens [B, T], and the cache with them."""
        read, near, far = cache
        mask = jaxformer.AttentionMask(causal=True, offset=read)
        x = self.embedding(tokens)  # [B, T, D]
        near = self.near(self.norms[0](x), mask=mask, cache=near)
        far = self.far(self.norms[0](x), mask=mask, cache=far)
        x += near.states + far.states
        x += self.feed_forward(self.norms[1](x))
        return self.output(self.norms[2](x)), (read + tokens.shape[1], near.cache, far.cache)


def step(model: NearAndFar, tokens: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
    """Return the logits [B, V] of the next token, as `jaxformer.decode` asks of any model."""
    logits, cache = model(tokens, cache)
    return logits[:, -1], cache


def reorder(cache: tuple, rows: jax.Array) -> tuple:
    """Return the cache of the batch rows `rows`."""
    read, *caches = cache
    return read, *(each.reorder(rows) for each in caches)


def train(steps: int = 200) -> NearAndFar:
    """Teach the model to count upwards from any number, modulo V."""
    model = NearAndFar(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)

    @nnx.jit
    def update(model: NearAndFar, optimizer: nnx.Optimizer, starts: jax.Array) -> jax.Array:
        counted = (starts[:, None] + jnp.arange(LENGTH)[None]) % V  # [B, LENGTH]

        def loss(model: NearAndFar) -> jax.Array:
            logits, _ = model(counted[:, :-1], model.init_cache(len(starts)))
            return jaxformer.cross_entropy(logits, counted[:, 1:])

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    for number in range(steps):
        value = update(model, optimizer, jax.random.randint(jax.random.key(number), (8,), 0, V))
    print(f"loss {value:.4f}")
    return model


def main() -> None:
    """Train, then count on from two numbers."""
    model = train()
    counting = jax.tree_util.Partial(step, model)
    prompts = [[3, 4], [10, 11]]
    found = jaxformer.decode(counting, model.init_cache(2), prompts, reorder=reorder, num_beams=2, max_new_tokens=8)
    print(found.sequences)


if __name__ == "__main__":
    main()
