"""Keeping the experts of a mixture equally busy while it learns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.ops import Routing, balance_loss, corrected, router_z_loss
from jaxformer.schema import is_number

Loads = Mapping[int, jax.Array]  # the share of choices that fell on each expert, by the number of the block


@dataclass(frozen=True)
class BalanceConfig:
    """What keeps the experts of a mixture equally busy; of no effect on other models."""

    balance_loss: float = 0.0
    """weight of the loss that is least when all experts hear as many tokens"""
    router_z_loss: float = 0.0
    """weight of the loss that keeps a router's scores small"""
    correction_speed: float = 1e-3
    """how far a step moves the correction of routers that have one, as DeepSeek-V3's do, against the load"""

    def __post_init__(self) -> None:
        """Refuse what would make loads uneven."""
        for name in ("balance_loss", "router_z_loss", "correction_speed"):
            value = getattr(self, name)
            if not (is_number(value) and value >= 0):
                raise InputError(f"{name} must be at least 0 and finite in float32, not {value}")


def penalty(config: BalanceConfig, routing: Routing) -> jax.Array:
    """What a layer adds to the loss for how it sent R tokens, [R, E] and [R, k]: a number."""
    total = jnp.float32(0)
    if config.balance_loss:
        total += config.balance_loss * balance_loss(routing.probabilities, routing.experts)
    if config.router_z_loss:
        total += config.router_z_loss * router_z_loss(routing.logits)
    return total


def correct(params: Any, loads: Loads, speed: float) -> Any:
    """The parameters, nested dictionaries, with the corrections of the decoder's routers moved against their loads."""

    def moved(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        match [key.key for key in path]:
            case ["decoder", "blocks", int() as layer, "feed_forward", "correction"]:
                return corrected(leaf, loads[layer], speed)
        return leaf

    return jax.tree_util.tree_map_with_path(moved, params)
