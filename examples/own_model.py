"""A model of one's own from the layers: it attends to the last 4 tokens and to all, learns to count, and generates."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxformer
from jaxformer.config import AttentionConfig, EmbeddingConfig, FeedForwardConfig, Rope
from jaxformer.layers import Attention, Embedding, FeedForward, Linear

V, D, LENGTH = 12, 32, 16


class NearAndFar(nnx.Module):
    """An embedding, a layer with two attentions, a feed-forward network, and an output projection."""

    def __init__(self, rngs: nnx.Rngs):
        self.embedding = Embedding(EmbeddingConfig(V), D, rngs=rngs)
        near, far = AttentionConfig(2, window=4, rope=Rope()), AttentionConfig(2, rope=Rope())
        self.near, self.far = Attention(near, D, rngs=rngs), Attention(far, D, rngs=rngs)
        self.feed_forward = FeedForward(FeedForwardConfig(64, "silu", gated=True), D, rngs=rngs)
        self.output = Linear(D, V, axes="DV", rngs=rngs)

    def init_cache(self, batch: int) -> tuple:
        """Return the number of tokens read, and a cache for each attention."""
        return 0, self.near.init_cache(batch, LENGTH), self.far.init_cache(batch, LENGTH)

    def __call__(self, tokens: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
        """Return the logits [B, T, V] after the next tokens [B, T], and the cache with them."""
        read, near, far = cache
        x, mask = self.embedding(tokens), jaxformer.AttentionMask(causal=True, offset=read)  # [B, T, D]
        near, far = self.near(x, mask=mask, cache=near), self.far(x, mask=mask, cache=far)
        x += near.states + far.states
        return self.output(x + self.feed_forward(x)), (read + tokens.shape[1], near.cache, far.cache)


def step(model: NearAndFar, tokens: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
    """Return the logits [B, V] of the next token, as `jaxformer.decode` asks of any model."""
    logits, cache = model(tokens, cache)
    return logits[:, -1], cache


@jax.jit
def loss(model: NearAndFar, starts: jax.Array) -> jax.Array:
    """Return the loss of counting upwards from numbers [B], modulo V."""
    counted = (starts[:, None] + jnp.arange(LENGTH)[None]) % V  # [B, LENGTH]
    return jaxformer.cross_entropy(model(counted[:, :-1], model.init_cache(len(starts)))[0], counted[:, 1:])


if __name__ == "__main__":
    model, optimizer = NearAndFar(nnx.Rngs(0)), optax.adamw(3e-3)
    state, gradient = optimizer.init(model), jax.jit(jax.grad(loss))
    for number in range(200):
        change = gradient(model, jax.random.randint(jax.random.key(number), (8,), 0, V))
        updates, state = optimizer.update(change, state, model)
        model = optax.apply_updates(model, updates)
    counting = jax.tree_util.Partial(step, model)
    print(jaxformer.decode(counting, model.init_cache(2), [[3, 4], [10, 11]], max_new_tokens=8).sequences)
