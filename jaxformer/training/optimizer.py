"""The optimizer: AdamW, Adafactor or Muon behind a clipped gradient, with a warm-up (section 5.3)."""

import operator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxformer.errors import InputError
from jaxformer.layers.variables import is_trained, parameter_path
from jaxformer.schema import check_range, is_number

DECAYED = ("weight", "embedding", "A", "B")  # names of parameters, the latter two of adapters
WARMUP, WARMUP_SHARE = 100, 8  # steps of warm-up unless told otherwise; at most one step in so many
DECAY_SHARE = 5  # of the schedule wsd, one step in so many, the last ones, is of its decay
MUON_RMS = 0.2  # root mean square of an update of Muon before the learning rate: that of AdamW


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer with warm-up; weight decay applies to matrices and embeddings, never to biases and norms."""

    learning_rate: float = 2e-3
    """the largest learning rate, reached at the end of the warm-up"""
    warmup_steps: int | None = None
    """steps over which the learning rate rises from 0, linearly; None is 100, but at most an eighth of all steps"""
    schedule: Literal["cosine", "inverse-sqrt", "wsd"] = "cosine"
    """afterwards: a half cosine down to 0 at the last step; the paper's 1/sqrt(step); or wsd, the largest rate until
    four fifths of the steps are taken, then down to 0"""
    weight_decay: float = 0.01
    """share by which matrices and embeddings shrink per step, times the learning rate"""
    beta2: float = 0.98
    """decay per step of the running mean of squared gradients (the paper: 0.98)"""
    clip_norm: float = 1.0
    """gradients longer than this are scaled down to it"""
    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    """adamw; adafactor, which keeps two vectors for each matrix in place of two matrices; or muon, which makes the
    updates of matrices orthogonal, with adamw for all else"""
    warmup_ratio: float | None = None
    """warm-up as a share of all steps, where warmup_steps is None"""
    layer_decay: float = 1.0
    """factor on the learning rate for each layer further down, such as 0.9 to keep what a checkpoint learned there"""
    ema: float = 0.0
    """decay per step of a running mean of the weights, such as 0.999, which is evaluated and written in their place"""

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
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must be at least 0 and below 1, not {self.ema}")
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
    `learning_rate`; the paper's own peak is (d_model * warmup)^-0.5. wsd is warm-up, stable, decay (Hu et al. 2024,
    MiniCPM, section 4; linear over the last fifth, Haegele et al. 2024).
    """
    warmup = config.warmup(steps)
    if config.schedule == "wsd":
        start = max(warmup, steps - max(1, steps // DECAY_SHARE))
        rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
        fall = optax.linear_schedule(config.learning_rate, 0.0, max(steps - start, 1))
        return optax.join_schedules([rise, fall], [start])
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, max(steps, warmup + 1))
    rise = optax.linear_schedule(0.0, config.learning_rate, warmup)
    return optax.join_schedules([rise, lambda step: config.learning_rate * (warmup / (step + warmup)) ** 0.5], [warmup])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return the optimizer behind a gradient that is clipped by its global norm.

    Its parameters may be a module or an `nnx.State`, of which only `nnx.Param` are updated, or nested dictionaries.

    Args:
        config: Kind, learning rate, schedule, weight decay and clipping.
        steps: Number of training steps, at the end of which the schedule ends.
    """
    chain = [
        optax.masked(optax.set_to_zero(), lambda params: jax.tree.map(operator.not_, is_trained(params))),
        optax.clip_by_global_norm(config.clip_norm),
        optax.chain(
            direction(config),
            optax.add_decayed_weights(config.weight_decay, decay_mask),
            optax.scale_by_learning_rate(learning_rates(config, steps)),
        ),
    ]
    if config.layer_decay != 1:
        chain.append(scale_by_layer(config.layer_decay))
    if config.ema:
        chain.append(running_mean(config.ema))
    return optax.chain(*chain)


def direction(config: OptimizerConfig) -> optax.GradientTransformation:
    """Return the part of an optimizer that turns gradients into updates of about the size of Adam's.

    Adafactor is Shazeer and Stern 2018, without momentum, its updates scaled by the size of their parameter. Muon
    (Jordan 2024) is scaled as Liu et al. 2025 do, section 2.2, so that rates and weight decay suit it that suit AdamW;
    embeddings, heads, norms and biases are updated by Adam with Nesterov's momentum.
    """
    match config.optimizer:
        case "adamw":
            return optax.scale_by_adam(b2=config.beta2)
        case "adafactor":
            return optax.chain(
                optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms()
            )
        case "muon":
            muon = contrib.muon(
                1.0, adam_b2=config.beta2, muon_weight_dimension_numbers=matrices, consistent_rms=MUON_RMS
            )
            return optax.chain(muon, optax.scale(-1.0))  # learning rate and sign follow


def matrices(params: optax.Params) -> optax.Params:
    """Return a tree that says of each weight inside the blocks which axes are its inputs and outputs; else None.

    Heads of queries, keys and values are columns of one matrix, those that the output projection reads are its rows;
    experts are a matrix each.

    Args:
        params: A module, an `nnx.State` or nested dictionaries of a model.
    """

    def axes(path: tuple[Any, ...], leaf: Any) -> contrib.MuonDimensionNumbers | None:
        names = parameter_path(path)
        if names[-1] != "weight" or "blocks" not in names or leaf.ndim < 2:
            return None
        first = int("experts" in names)  # an axis before those of the matrix
        count = leaf.ndim - first
        inputs = count - 1 if names[-2] == "output" else 1
        places = tuple(range(first, leaf.ndim))
        return contrib.MuonDimensionNumbers(reduction_axis=places[:inputs], output_axis=places[inputs:])

    return jax.tree_util.tree_map_with_path(axes, params)


class RunningMean(NamedTuple):
    """State of `running_mean`.

    Attributes:
        mean: The mean of the parameters.
        count: Number of updates so far, int32 scalar.
    """

    mean: optax.Params
    count: jax.Array


def running_mean(decay: float) -> optax.GradientTransformation:
    """Return a transformation that changes no update and keeps a running mean of the parameters, see `averaged`.

    A step has the weight 1 - min(decay, (1 + n) / (10 + n)) after n steps, so that a short run forgets its start.

    Args:
        decay: The weight of the mean before each step.
    """

    def update(updates: optax.Updates, state: Any, params: Any = None) -> tuple[Any, RunningMean]:
        kept = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        mean = jax.tree.map(
            lambda mean, old, update: (kept * mean + (1 - kept) * (old + update)).astype(mean.dtype),
            state.mean,
            params,
            updates,
        )
        return updates, RunningMean(mean, state.count + 1)

    return optax.GradientTransformation(
        lambda params: RunningMean(jax.tree.map(jnp.copy, params), jnp.zeros((), jnp.int32)), update
    )


def averaged(params: optax.Params, state: optax.OptState) -> optax.Params:
    """Return the running mean of the parameters where the optimizer keeps one, else the parameters.

    Args:
        params: The parameters.
        state: The state of an optimizer that `make_optimizer` made.
    """
    means = [part.mean for part in state if isinstance(part, RunningMean)] if isinstance(state, tuple) else []
    return means[0] if means else params


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
