"""The training loop in PyTorch, to compare the losses of ours with; and ours, batch by batch."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch

from jaxformer.cli.runs import fresh_state
from jaxformer.tasks import Task, loss_function
from jaxformer.training import OptimizerConfig, learning_rates, make_optimizer, make_train_step

# Token types are never decayed: there are two of them, and texts of one part use the first. T5's bias is none of a map.
NOT_DECAYED = ("token_type", "relative_attention_bias")


def first_batches(task: Task, count: int) -> list[Any]:
    """The first batches of a task."""
    return list(islice(task.batches(), count))


def our_losses(task: Task, batches: list[Any]) -> list[float]:
    """The loss of each step."""
    trainable, state = fresh_state(task, task.config)
    config, steps = task.settings.optimizer, task.settings.steps
    step = make_train_step(loss_function(task, trainable), make_optimizer(config, steps), learning_rates(config, steps))
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return losses


def their_losses(
    model: torch.nn.Module,
    config: OptimizerConfig,
    batches: list[Any],
    loss_of: Callable[[torch.nn.Module, Any, int], torch.Tensor],
    factor_of: Callable[[str], float] = lambda name: 1.0,
) -> list[float]:
    """The loss of each step of the same optimizer: decay of matrices and embeddings alone, clipping, equal rates.

    Args:
        model: The model, in training mode or without dropout.
        config: The optimizer.
        batches: One for each step.
        loss_of: Gives the loss of the model on a batch, and receives the number of the step.
        factor_of: Gives the factor on the learning rate of a parameter, by its name.
    """
    for module in model.modules():  # with it PyTorch would not train the vector of the pad token
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p.ndim > 1 and not any(part in name for part in NOT_DECAYED) for name, p in named]
    groups = [
        {"params": [p], "weight_decay": config.weight_decay if yes else 0.0, "factor": factor_of(name)}
        for (name, p), yes in zip(named, decayed, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, config.beta2), eps=1e-8)
    rates, losses = learning_rates(config, len(batches)), []
    for number, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = group["factor"] * float(rates(number))
        loss = loss_of(model, batch, number)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], config.clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
