"""A mixture of experts in place of a feed-forward network (Shazeer et al. 2017, section 2)."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer import backends
from jaxformer.config import FeedForwardConfig, MoEConfig, SigmoidRouter, SoftmaxRouter
from jaxformer.layers.feed_forward import FeedForward
from jaxformer.layers.linear import Linear
from jaxformer.layers.variables import RouterBias
from jaxformer.ops import Routing, TopK, mix_experts, mix_grouped, mix_over_devices, sigmoid_router, softmax_router
from jaxformer.parallel import divided


class Experts(nnx.Module):
    """Mixture of experts with top-k routing and an optional shared expert.

    On CPUs a loop over blocks of tokens reads the weights of chosen experts only (`mix_experts`); elsewhere grouped
    products do (`mix_grouped`).
    """

    def __init__(self, config: MoEConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        match config.router:
            case SoftmaxRouter(bias=bias):
                self.router, self.router_bias = Linear(dim, config.experts, axes="DE", bias=bias, rngs=rngs), None
            case SigmoidRouter():
                self.router = Linear(dim, config.experts, axes="DE", bias=False, rngs=rngs)
                self.router_bias = RouterBias(jnp.zeros(config.experts), axes="E")
        keys = jax.random.split(rngs.params(), config.experts)
        # One network whose weights have the number of the expert as their first axis.
        self.experts = jax.vmap(lambda key: FeedForward(config.expert, dim, rngs=nnx.Rngs(key)))(keys)
        for variable in jax.tree.leaves(self.experts, is_leaf=lambda x: isinstance(x, nnx.Variable)):
            variable.set_metadata(axes="E" + variable.axes)
        self.shared = FeedForward(config.shared, dim, rngs=rngs) if config.shared else None
        self.shared_gate = Linear(dim, 1, axes="D_", bias=False, rngs=rngs) if config.shared_gate else None

    @jax.named_scope("experts")
    def __call__(self, x: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return the mixture of x [B, T, D]: [B, T, D]."""
        rows = x.reshape(-1, x.shape[-1])  # [R, D]
        choice = self.choose(self.logits(rows))
        if divided():
            each = jax.tree.map(lambda part: part.reshape(*x.shape[:-1], -1), choice)  # [B, T, k]
            mixed = mix_over_devices(mix, self.experts, x, each, self.config.experts)
        else:
            mixed = mix(self.experts, rows, choice).reshape(x.shape)  # [B, T, D]
        if self.shared is None:
            return mixed
        shared = self.shared(x, dropout_key=dropout_key)
        return mixed + (shared if self.shared_gate is None else jax.nn.sigmoid(self.shared_gate(x)) * shared)

    def routing(self, x: jax.Array) -> Routing:
        """Return where a call sends the tokens x [B, T, D]. Under `jax.jit` the compiler merges what both compute."""
        logits = self.logits(x.reshape(-1, x.shape[-1]))  # [R, E]
        if self.router_bias is None:
            probabilities = jax.nn.softmax(logits, axis=-1)
        else:
            scores = jax.nn.sigmoid(logits)
            probabilities = scores / jnp.sum(scores, axis=-1, keepdims=True)
        found = Routing(logits, probabilities, self.choose(logits).experts)
        return jax.tree.map(lambda leaf: leaf.reshape(*x.shape[:-1], -1), found)  # [B, T, E], experts [B, T, k]

    def logits(self, rows: jax.Array) -> jax.Array:
        """Return the router's scores [R, E] of the experts for tokens [R, D].

        They are float32, because small differences decide.
        """
        return self.router(rows.astype(jnp.float32))

    def choose(self, logits: jax.Array) -> TopK:
        """Return the experts of each token, by their scores [R, E]."""
        router = self.config.router
        settings = {
            "renormalize": router.renormalize,
            "groups": router.groups,
            "top_k_groups": router.top_k_groups,
            "scale": router.scale,
        }
        if self.router_bias is None:
            return softmax_router(logits, self.config.top_k, **settings)
        return sigmoid_router(logits, self.router_bias[...].astype(jnp.float32), self.config.top_k, **settings)


def mix(experts: FeedForward, rows: jax.Array, choice: TopK) -> jax.Array:
    """Return the mixture [R, D] of tokens [R, D] by experts whose weights are [E, ...]."""
    if backends.is_cpu() or not isinstance(experts.up, Linear):  # where grouped products would expand
        return mix_experts(FeedForward.__call__, experts, rows, choice)
    return mix_grouped(experts.grouped, rows, choice, len(jax.tree.leaves(experts)[0]))


def make_feed_forward(config: FeedForwardConfig | MoEConfig, dim: int, *, rngs: nnx.Rngs) -> FeedForward | Experts:
    """Return the feed-forward network or the mixture of experts that `config` describes."""
    match config:
        case FeedForwardConfig():
            return FeedForward(config, dim, rngs=rngs)
        case MoEConfig():
            return Experts(config, dim, rngs=rngs)
