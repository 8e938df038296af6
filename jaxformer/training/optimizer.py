"""The optimiser: AdamW behind a clipped gradient, with a warm-up (section 5.3)."""

import operator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax

from jaxformer.errors import InputError
from jaxformer.layers.variables import is_trained, parameter_path
from jaxformer.schema import check_range, is_number

DECAYED = ("weight", "embedding", "A", "B")  # names of parameters, the latter two of adapters
WARMUP, WARMUP_SHARE = 100, 8  # steps of warm-up unless told otherwise; at most one step in so many


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up; weight decay applies to matrices and embeddings, never to biases and norms."""

    learning_rate: float = 2e-3
    """the largest learning rate, reached at the end of the warm-up"""
    warmup_steps: int | None = None
    """steps over which the learning rate rises from 0, linearly; None is 100, but at most an eighth of all steps"""
    schedule: Literal["cosine", "inverse-sqrt"] = "cosine"
    """afterwards: a half cosine down to 0 at the last step, or the paper's 1/sqrt(step)"""
    weight_decay: float = 0.01
    """share by which matrices and embeddings shrink per step, times the learning rate"""
    beta2: float = 0.98
    """decay per step of the running mean of squared gradients (the paper: 0.98)"""
    clip_norm: float = 1.0
    """gradients longer than this are scaled down to it"""
    warmup_ratio: float | None = None
    """warm-up as a share of all steps, where warmup_steps is None"""
    layer_decay: float = 1.0
    """factor on the learning rate for each layer further down, such as 0.9 to keep what a checkpoint learned there"""

    def __post_init__(self) -> None:
        """Refuse values with which nothing can be learned."""
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0):
                raise InputError(f"{name} must be more than 0 and finite in float32, not {value}")
        if self.warmup_steps is not None:
            check_range("warmup_steps", self.warmup_steps, 1)
        if self.warmup_ratio is not None and not 0 < self.warmup_ratio < 1:
            raise InputError(f"warmup_ratio must be above 0 and below 1, not {self.warmup_ratio}")
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay must be above 0 and at most 1, not {self.layer_decay}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"beta2 must be at least 0 and below 1, not {self.beta2}")
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise InputError(f"weight_decay must be at least 0 and finite in float32, not {self.weight_decay}")

    def warmup(self, steps: int) -> int:
        """Return over how many steps the learning rate of a run of `steps` rises."""
        if self.warmup_steps is not None:
            return self.warmup_steps
        if self.warmup_ratio is not None:
            return max(1, round(self.warmup_ratio * steps))
        return min(WARMUP, max(1, steps // WARMUP_SHARE))


def learning_rates(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate of each step of a run of `steps`.

    inverse-sqrt is section 5.3, equation 3, rate ~ min(step^-0.5, step * warmup^-1.5), scaled so that its peak is
    `learning_rate`; the paper's own peak is (d_model * warmup)^-0.5.
    """
    warmup = config.warmup(steps)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, lambda step: config.learning_rate * (warmup / (step + warmup)) ** 0.5], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return AdamW behind a gradient that is clipped by its global norm.

    Its parameters may be a module or an `nnx.State`, of which only `nnx.Param` are updated, or nested dictionaries.

    Args:
        config: Learning rate, schedule, weight decay and clipping.
        steps: Number of training steps, at the end of which the schedule ends.
    """
    chain = [
        optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(operator.not_, is_trained(params))),
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rates(config, steps), b2=config.beta2, weight_decay=config.weight_decay, mask=decay_mask),
    ]
    if config.layer_decay != 1:
        chain.append(scale_by_layer(config.layer_decay))
    return optax.chain(*chain)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Return the scaling of updates by the depth of their layer: discriminative fine-tuning.

    Howard and Ruder 2018, ULMFiT, section 3.2. What is above the blocks of a stack moves at the full rate, the topmost
    block at `decay` times that, the one below at `decay` squared, and embeddings like one block further down.

    Args:
        decay: The factor.
    """

    def scaled(updates: optax.Updates, state: optax.OptState, params: Any = None) -> tuple[Any, optax.OptState]:
        factors = layer_factors(updates, decay)
        return jax.tree.map(lambda update, factor: update * factor, updates, factors), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), scaled)


def layer_factors(params: optax.Params, decay: float) -> optax.Params:
    """Return a tree with the factor on the learning rate of each parameter, see `scale_by_layer`.

    Args:
        params: A module, an `nnx.State` or nested dictionaries of a model.
        decay: The factor for each layer.
    """
    paths = [parameter_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    depths: dict[Any, int] = {}  # blocks of each stack
    for path in paths:
        if path[1:2] == ("blocks",):
            depths[path[0]] = max(depths.get(path[0], 0), int(path[2]) + 1)

    def factor(path: tuple[Any, ...], _: Any) -> float:
        names = parameter_path(path)
        stack, rest = names[0], names[1:]
        depth = depths.get(stack, max(depths.values(), default=0))
        if rest[:1] == ("blocks",):
            return decay ** (depth - int(rest[1]))
        below = stack in ("embedding", "source_embedding") or rest[:1] in (("positions",), ("embedding_norm",))
        return decay ** (depth + 1) if below else 1.0

    return jax.tree_util.tree_map_with_path(factor, params)


def decay_mask(params: optax.Params) -> optax.Params:
    """Return a tree of booleans: True at the parameters that weight decay shrinks.

    These are trained matrices and embeddings by name, never norms, biases, router biases or token types. The name
    decides and not the number of axes, because biases of attention heads have two.

    Args:
        params: A module, an `nnx.State` or nested dictionaries.
    """

    def decays(path: tuple[Any, ...], _: Any, trained: bool) -> bool:
        return trained and parameter_path(path)[-1] in DECAYED

    return jax.tree_util.tree_map_with_path(decays, params, is_trained(params))
