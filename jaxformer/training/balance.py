"""Keeping the experts of a mixture equally busy while it learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.variables import parameter_path
from jaxformer.ops import Routing, balance_loss, router_z_loss, update_router_bias
from jaxformer.schema import is_number

Loads = Mapping[int, jax.Array]  # the share of choices that fell on each expert, by the number of the block


@dataclass(frozen=True)
class BalanceConfig:
    """Settings that keep the experts of a mixture equally busy; of no effect on other models."""

    balance_loss: float = 0.0
    """weight of the loss that is least when all experts receive equally many tokens"""
    router_z_loss: float = 0.0
    """weight of the loss that keeps a router's scores small"""
    router_bias_speed: float = 1e-3
    """how far a step moves the bias of routers that have one, as DeepSeek-V3's do, against the load"""

    def __post_init__(self) -> None:
        """Refuse what would make loads uneven."""
        for name in ("balance_loss", "router_z_loss", "router_bias_speed"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0):
                raise InputError(f"{name} must be at least 0 and finite in float32, not {value}")


def penalty(config: BalanceConfig, routing: Routing) -> jax.Array:
    """Return what a layer adds to the loss for its routing of R tokens, [R, E] and [R, k]: a number."""
    total = jnp.float32(0)
    if config.balance_loss:
        total += config.balance_loss * balance_loss(routing.probabilities, routing.experts)
    if config.router_z_loss:
        total += config.router_z_loss * router_z_loss(routing.logits)
    return total


def update_router_biases(params: Any, loads: Loads, speed: float) -> Any:
    """Return the parameters with the biases of the decoder's routers moved against the load of their experts.

    Args:
        params: A module, an `nnx.State` or nested dictionaries, of any or all of a model's variables.
        loads: Share of choices that fell on each expert, float32 [E], by the number of the block.
        speed: How far a bias moves.
    """

    def updated(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        match parameter_path(path):
            case ("decoder", "blocks", int() as layer, "feed_forward", "router_bias"):
                return update_router_bias(leaf, loads[layer], speed)
        return leaf

    return jax.tree_util.tree_map_with_path(updated, params)
