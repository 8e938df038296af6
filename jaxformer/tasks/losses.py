"""Losses of tasks, and their composition with the structure of a model."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxformer.data.pipeline import IGNORED
from jaxformer.model import Transformer
from jaxformer.ops import Routing, chunked_cross_entropy, cross_entropy, expert_load
from jaxformer.parallel import divided
from jaxformer.tasks.task import Task
from jaxformer.training import BalanceConfig, Loss, LossFunction, Trainable, cast, penalty

MOST_LOGITS = 2**25  # numbers that are in memory at once: 128 MiB of float32, and as much of their gradient


def next_token_loss(
    logits: jax.Array,
    labels: jax.Array,
    *,
    label_smoothing: float = 0.0,
    routing: Mapping[int, Routing] | None = None,
    balance: BalanceConfig | None = None,
) -> tuple[jax.Array, Loss]:
    """Return the number to minimize and the loss to report: every position predicts its label.

    Args:
        logits: [B, T, V].
        labels: int32 [B, T]; positions with the label -100 do not count.
        label_smoothing: Share of the target probability that is spread over all tokens.
        routing: For each layer with experts, by its number, how its tokens were routed.
        balance: Adds losses that keep experts equally busy.
    """
    plain = cross_entropy(logits, labels)
    objective = cross_entropy(logits, labels, label_smoothing=label_smoothing) if label_smoothing else plain
    return with_balance(objective, plain, labels, routing, balance)


def model_loss(
    model: Transformer,
    inputs: jax.Array,
    targets: jax.Array | None = None,
    *,
    labels: jax.Array,
    label_smoothing: float = 0.0,
    balance: BalanceConfig | None = None,
    **arguments: Any,
) -> tuple[jax.Array, Loss]:
    """Return the same of a model that reads `inputs`, and of all logits no more than `MOST_LOGITS` at a time.

    Args:
        model: A model with a head over the vocabulary.
        inputs: Token ids [B, S].
        targets: What the decoder of an encoder-decoder reads, token ids [B, T].
        labels: int32 [B, T]; positions with the label -100 do not count.
        label_smoothing: Share of the target probability that is spread over all tokens.
        balance: Adds losses that keep experts equally busy.
        **arguments: Other arguments of the model.
    """
    body, head = model.split_head()
    output = body(inputs, targets, **arguments, return_intermediates="routing")
    routing = {layer: routes for layer, routes in enumerate(output.decoder.routing) if routes is not None}
    B, T = labels.shape
    chunks = min(T, -(-B * T * model.config.main.embedding.vocab_size // MOST_LOGITS))
    if chunks <= 1 or divided():  # a chunk's gradient would be sent around for each
        return next_token_loss(
            head(output.logits), labels, label_smoothing=label_smoothing, routing=routing, balance=balance
        )
    states = output.logits  # of a model without a head
    objective, plain = chunked_cross_entropy(head, states, labels, chunks=chunks, label_smoothing=label_smoothing)
    return with_balance(objective, plain, labels, routing, balance)


def with_balance(
    objective: jax.Array,
    plain: jax.Array,
    labels: jax.Array,
    routing: Mapping[int, Routing] | None,
    balance: BalanceConfig | None,
) -> tuple[jax.Array, Loss]:
    """Return the number to minimize, with the losses that keep experts busy, and the loss to report, with loads."""
    loads = {}
    for layer, routes in (routing or {}).items():
        tokens = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), routes)  # [B * T, ...]
        loads[layer] = expert_load(tokens.experts, tokens.logits.shape[-1])
        objective += 0.0 if balance is None else penalty(balance, tokens)
    return objective, Loss(plain, jnp.sum(labels != IGNORED), loads)


def loss_function(task: Task[Any], trainable: Trainable) -> LossFunction:
    """Return the loss of a task as a function of the parameters that are trained.

    Args:
        task: Computes the loss, in the type that its settings name.
        trainable: The model. Its frozen parameters are inputs of the compiled step.
    """
    dtype = jnp.dtype(task.settings.dtype)

    def loss(frozen: Any, params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Loss]:
        return task.loss(cast(trainable.assemble(params, frozen), dtype), batch, key)

    return Partial(loss, trainable.frozen)
