"""The preset `deepseek-tiny` beside a dense GPT that has as many parameters as it uses for a token: losses and time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import jax
import tyro
from common import conditions, prepare

from jaxformer import TransformerConfig, decoder_only
from jaxformer.cli.accounting import abstract_model, idle_parameters
from jaxformer.presets import deepseek_tiny
from jaxformer.tasks import LanguageModelSettings, LanguageSettings, LanguageTask, TextSettings, loss_function
from jaxformer.tasks.language import has_experts
from jaxformer.training import init_state, learning_rates, make_optimizer, make_train_step, update_router_biases

DIM, LAYERS, HEADS = 176, 4, 4  # of the dense model


@dataclass(frozen=True)
class Arguments:
    """Train both on the same windows of the same text, with the same optimiser, and compare held-out losses."""

    data: str | None = None
    """text to train on (default: the language reference that comes with Python)"""
    validation: str | None = None
    """text to evaluate on (default: the last tenth)"""
    steps: int = 1000
    """training steps of 32 windows of 128 characters"""
    evaluate_every: int = 250
    """steps between two looks at the held-out text"""
    quick: bool = False
    """a few steps, nothing written"""


def main(arguments: Arguments) -> None:
    """Train one after the other, print, and write the table."""
    prepare()
    if arguments.quick:
        arguments = replace(arguments, steps=4, evaluate_every=2)
    settings = LanguageSettings(
        text=TextSettings(arguments.data, validation=arguments.validation),
        model=LanguageModelSettings("deepseek-tiny"),
        steps=arguments.steps,
        evaluate_batches=4 if arguments.quick else 10**6,
    )
    task = LanguageTask(settings)
    vocabulary = task.tokenizer.vocab_size
    sparse = deepseek_tiny(vocabulary)
    dense = decoder_only(vocabulary, length=settings.model.length, dim=DIM, layers=LAYERS, heads=HEADS)
    looks = [list(train(config, task, arguments.evaluate_every)) for config in (sparse, dense)]
    (all_of_it, used), (dense_size, _) = sizes(sparse), sizes(dense)
    header = f"| step | `deepseek-tiny`, {all_of_it:,} parameters, {used:,} for a token | dense GPT, {dense_size:,} |"
    lines = [header, "| ---: | ---: | ---: |"]
    lines += [f"| {step} | {ours:.4f} | {theirs:.4f} |" for (step, ours, _), (_, theirs, _) in zip(*looks, strict=True)]
    seconds = [median(second for *_, some in each for second in some) for each in looks]
    lines.append(f"| time of a step, relative | 1 | {seconds[1] / seconds[0]:.2f} |")
    print("\n".join(lines))
    if not arguments.quick:
        method = (
            "Held-out loss in nats per character, on the same windows (32 x 128 characters a step), with the same "
            f"optimiser. The dense model has {LAYERS} layers of width {DIM} with plain attention. One seed; the models "
            "were trained one after the other, so that times drift with the machine."
        )
        parts = ["# A small DeepSeek beside a GPT", "\n".join(lines), method, conditions()]
        Path("docs/benchmarks/mixture.md").write_text("\n\n".join(parts) + "\n")


def sizes(config: TransformerConfig) -> tuple[int, int]:
    """How many parameters there are, and how many a token goes through."""
    model = abstract_model(config)
    whole = sum(leaf.size for leaf in jax.tree.leaves(model))
    return whole, whole - idle_parameters(model)


def train(config: TransformerConfig, task: LanguageTask, every: int) -> Iterator[tuple[int, float, list[float]]]:
    """Steps taken, the loss on the held-out text, and the seconds of the steps since the look before."""
    settings = task.settings
    trainable = task.trainable(config)
    optimizer = make_optimizer(settings.optimizer, settings.steps)
    adjust = partial(update_router_biases, speed=settings.balance.router_bias_speed) if has_experts(config) else None
    step = make_train_step(
        loss_function(task, trainable), optimizer, learning_rates(settings.optimizer, settings.steps), adjust=adjust
    )
    state: Any = init_state(trainable.params, optimizer, settings.seed)
    batches = task.batches("train")
    for taken in range(0, settings.steps, every):
        seconds = []
        for batch in islice(batches, every):
            start = perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            seconds.append(perf_counter() - start)
        loss = task.validation_loss(trainable.assemble(state.params, trainable.frozen)).loss
        print(f"step {taken + every}: {loss:.4f}", flush=True)
        yield taken + every, loss, seconds


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
