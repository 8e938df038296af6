"""How evenly a router spreads tokens over experts, and what makes it more even.

R tokens, E experts of which each token goes to k. With the share f_i of all choices that fell on expert i, times E, and
its mean probability P_i, even loads are f_i = 1. The counts f have no gradient: what moves is P.
"""

import jax
import jax.numpy as jnp


def expert_load(experts: jax.Array, count: int) -> jax.Array:
    """Return the share of choices [R, k] that fell on each of `count` experts: float32 [E], sums to 1, even at 1/E."""
    return jnp.zeros(count, jnp.float32).at[experts.reshape(-1)].add(1) / experts.size  # [E]


def balance_loss(probabilities: jax.Array, experts: jax.Array) -> jax.Array:
    """Return the sum of f_i P_i: 1 when loads are even, up to E / k when all tokens go the same way.

    With one expert per token this is the loss of Switch Transformers (Fedus et al. 2021, equation 4), with more
    DeepSeek-V2's expert-level loss (equations 23 to 25). A weight of 1e-2 is large.

    Args:
        probabilities: Router probabilities [R, E].
        experts: The chosen experts, integers [R, k].
    """
    _, E = probabilities.shape
    return jnp.sum(E * expert_load(experts, E) * jnp.mean(probabilities, axis=0))


def device_balance_loss(probabilities: jax.Array, experts: jax.Array, devices: int) -> jax.Array:
    """Return the sum, over devices, of the mean f_i of a device's experts times the sum of their P_i.

    It is 1 when the loads of devices are even (DeepSeek-V2, equations 26 to 28).

    Args:
        probabilities: Router probabilities [R, E].
        experts: The chosen experts, integers [R, k].
        devices: Number of devices; each has E / devices neighbouring experts.
    """
    _, E = probabilities.shape
    loads = jnp.mean((E * expert_load(experts, E)).reshape(devices, -1), axis=-1)  # [devices]
    return jnp.sum(loads * jnp.sum(jnp.mean(probabilities, axis=0).reshape(devices, -1), axis=-1))  # sum of [devices]


def communication_loss(probabilities: jax.Array, experts: jax.Array, devices: int, kept: int) -> jax.Array:
    """Return the sum, over devices, of f''_i P''_i: 1 when each device receives as many tokens.

    f''_i is devices / (kept R) times the number of tokens that go to device i, P''_i the sum of the mean probabilities
    of its experts (DeepSeek-V2, equations 29 to 31).

    Args:
        probabilities: Router probabilities [R, E].
        experts: The chosen experts, integers [R, k].
        devices: Number of devices; each has E / devices neighbouring experts.
        kept: The most devices that a token goes to.
    """
    R, E = probabilities.shape
    receives = jnp.zeros((R, devices)).at[jnp.arange(R)[:, None], experts // (E // devices)].set(1)
    load = devices / kept * jnp.mean(receives, axis=0)  # [devices]
    return jnp.sum(load * jnp.sum(jnp.mean(probabilities, axis=0).reshape(devices, -1), axis=-1))  # sum of [devices]


def router_z_loss(logits: jax.Array) -> jax.Array:
    """Return the mean square of log sum exp of logits [R, E].

    It keeps them small (Zoph et al. 2022, ST-MoE, equation 5).
    """
    return jnp.mean(jnp.square(jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)))


def update_router_bias(bias: jax.Array, load: jax.Array, speed: float) -> jax.Array:
    """Return the bias [E] of a `sigmoid_router` after a step in which experts had the `load` [E].

    Experts with less than the mean load are preferred by `speed` more, those with more by as much less. This balances
    loads without a loss, whose gradient would compete with that of the task (DeepSeek-AI 2024, DeepSeek-V3, section
    2.1.2; Wang et al. 2024).
    """
    return bias + speed * jnp.sign(jnp.mean(load) - load)
