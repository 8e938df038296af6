"""The optimiser: AdamW behind a clipped gradient, with a warm-up (section 5.3)."""

from dataclasses import dataclass
from typing import Literal

import jax
import optax

from jaxformer.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up; weight decay reaches matrices only, never biases and norms."""

    learning_rate: float = 2e-3
    """the largest learning rate, reached at the end of the warm-up"""
    warmup_steps: int = 100
    """steps over which the learning rate rises from 0, linearly"""
    schedule: Literal["cosine", "inverse-sqrt"] = "cosine"
    """afterwards: a half cosine down to 0 at the last step, or the paper's 1/sqrt(step)"""
    weight_decay: float = 0.01
    """how much every matrix shrinks per step, times the learning rate"""
    beta2: float = 0.98
    """how much of its past the running square of the gradient keeps per step (the paper: 0.98)"""
    clip_norm: float = 1.0
    """gradients longer than this are scaled down to it"""

    def __post_init__(self) -> None:
        """Refuse values with which nothing can be learned."""
        for name in ("learning_rate", "warmup_steps", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} must be more than 0 and finite, not {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"beta2 must be at least 0 and below 1, not {self.beta2}")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay must be at least 0 and finite, not {self.weight_decay}")


def learning_rates(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of each step of a run of `steps`.

    inverse-sqrt is section 5.3, equation 3, rate ~ min(step^-0.5, step * warmup^-1.5), scaled so that its peak is
    `learning_rate`; the paper's own peak is (d_model * warmup)^-0.5.
    """
    warmup = config.warmup_steps
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, lambda step: config.learning_rate * (warmup / (step + warmup)) ** 0.5], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(learning_rates(config, steps), b2=config.beta2, weight_decay=config.weight_decay, mask=matrices),
    )


def matrices(params: optax.Params) -> optax.Params:
    """True at the leaves that weight decay may shrink: those with the name of a matrix.

    The name decides and not the number of axes, because biases of attention heads have two.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("weight", "table"), params)
