"""A mixture of experts in place of a feed-forward network (Shazeer et al. 2017, section 2)."""

import jax
from flax import nnx

from jaxformer.config import FeedForwardConfig, MoEConfig
from jaxformer.layers.feed_forward import FeedForward
from jaxformer.layers.linear import Linear
from jaxformer.ops import mix_experts, softmax_router


class Experts(nnx.Module):
    """A router sends each token to a few of many feed-forward networks; a shared one, if there is any, hears all."""

    def __init__(self, config: MoEConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        self.router = Linear(dim, config.experts, bias=config.router.bias, rngs=rngs)
        keys = jax.random.split(rngs.params(), config.experts)
        # One network whose weights have the number of the expert as their first axis.
        self.experts = jax.vmap(lambda key: FeedForward(config.expert, dim, rngs=nnx.Rngs(key)))(keys)
        self.shared = FeedForward(config.shared, dim, rngs=rngs) if config.shared else None

    def __call__(self, x: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D]."""
        rows = x.reshape(-1, x.shape[-1])
        choice = softmax_router(self.router(rows), self.config.chosen, renormalise=self.config.router.renormalise)
        mixed = mix_experts(FeedForward.__call__, self.experts, rows, choice).reshape(x.shape)
        return mixed if self.shared is None else mixed + self.shared(x, dropout_key=dropout_key)


def make_feed_forward(config: FeedForwardConfig | MoEConfig, dim: int, *, rngs: nnx.Rngs) -> FeedForward | Experts:
    """The feed-forward network or the mixture of experts that `config` describes."""
    match config:
        case FeedForwardConfig():
            return FeedForward(config, dim, rngs=rngs)
        case MoEConfig():
            return Experts(config, dim, rngs=rngs)
