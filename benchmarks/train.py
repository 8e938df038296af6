"""How fast jaxformer trains: one optimiser step against `torch.nn.Transformer` and against Marian of transformers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from common import PAD, TORCH_DEVICE, Row, compare, prepare_training, race, random_marian, report
from flax import nnx
from torch.nn import functional

from jaxformer import Transformer, cross_entropy
from jaxformer.training import Loss, OptimizerConfig, init_state, learning_rates, make_optimizer, make_train_step

IGNORED = -100
STEPS = 10**6  # of the imagined run, so that the learning rate hardly moves
OPTIMIZER = OptimizerConfig()

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arguments:
    """Race training steps: forward, backward, clipping and AdamW, in float32."""

    runs: int = 5
    """rounds, in each of which every rival trains for some steps"""
    output: Path = Path("docs/benchmarks/train.md")
    """where the table is written"""
    quick: bool = False
    """a tiny shape and one round: shows that all works, measures and writes nothing"""


class Shape(NamedTuple):
    """Sizes of an encoder-decoder and of its batches; steps: how many make one measurement."""

    layers: int
    dim: int
    heads: int
    vocab_size: int
    batch: int
    length: int
    steps: int

    def __str__(self) -> str:
        """The sizes as the table shows them."""
        return f"{self.layers}+{self.layers} x {self.dim}, batch {self.batch} x {self.length}"


SHAPES = (Shape(2, 128, 4, 35, 64, 17, 10), Shape(3, 256, 4, 8000, 16, 64, 2))
QUICK = (Shape(1, 8, 2, 11, 3, 5, 2),)


def main(arguments: Arguments) -> None:
    """Race, print, and write the table."""
    if arguments.quick:
        arguments = Arguments(runs=1, quick=True)
    prepare_training()
    rows: list[Row] = []
    for shape in QUICK if arguments.quick else SHAPES:
        for dropout in (0.0, 0.1):
            rows += race_steps(shape, dropout, arguments.runs)
    method = (
        "One training step, forward, backward, clipping by the global norm and AdamW, in float32; post-LN, ReLU, inner "
        "width four times the model's, one table for both embeddings and the output, sinusoidal positions, padded "
        "sources and targets. PyTorch is eager, with its fused AdamW. `torch.nn.Transformer` has two norms more, and "
        "its dropout inside the feed-forward network is off, as nobody else has it. Time of the rival / time of "
        f"jaxformer, compilation not counted: the median of {arguments.runs} interleaved rounds, "
        "and the ratio of the best times of all rounds."
    )
    report("Training steps", None if arguments.quick else arguments.output, rows, method)


def race_steps(shape: Shape, dropout: float, runs: int) -> list[Row]:
    """Training steps of the three at one shape, from equal weights in two of them: their first losses must be equal."""
    batch = draw_batch(shape)
    marian, model = random_marian(
        shape.vocab_size, dim=shape.dim, layers=shape.layers, heads=shape.heads, dropout=dropout
    )
    rivals = {
        "jaxformer": our_steps(model, batch),
        "torch.nn.Transformer": torch_steps(TorchTransformer(shape, dropout), batch),
        "transformers, Marian": torch_steps(marian, batch),
    }
    first = {name: next(steps) for name, steps in rivals.items()}
    if not dropout:
        np.testing.assert_allclose(first["jaxformer"], first["transformers, Marian"], rtol=1e-5)
    contenders = {name: partial(train_for, steps, shape.steps) for name, steps in rivals.items()}
    return compare(f"{shape}, dropout {dropout:g}", race(contenders, runs))


def train_for(steps: Iterator[float], count: int) -> None:
    """Take `count` steps."""
    for _ in range(count):
        next(steps)


def draw_batch(shape: Shape) -> Batch:
    """Sources and answers of random lengths; `target` is what the decoder reads: the answer, shifted right by one."""
    rng = np.random.default_rng(0)
    size = (shape.batch, shape.length)
    real = np.arange(shape.length) < rng.integers(shape.length // 2, shape.length + 1, shape.batch)[:, None]
    source, answer = (np.where(real, rng.integers(2, shape.vocab_size, size), PAD) for _ in range(2))
    target = np.pad(answer[:, :-1], ((0, 0), (1, 0)), constant_values=PAD)
    return {"source": source, "valid": real, "target": target, "labels": np.where(real, answer, IGNORED)}


def our_steps(model: Transformer, batch: Batch) -> Iterator[float]:
    """The loss of each training step by jaxformer."""
    graphdef, variables = nnx.split(model)

    def loss(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, Loss]:
        model = nnx.merge(graphdef, params)
        logits = model(batch["source"], batch["target"], inputs_mask=batch["valid"], dropout_key=key)
        value = cross_entropy(logits, batch["labels"])
        return value, Loss(value, jnp.sum(batch["labels"] != IGNORED))

    optimizer = make_optimizer(OPTIMIZER, STEPS)
    step = make_train_step(loss, optimizer, learning_rates(OPTIMIZER, STEPS))
    state = init_state(nnx.to_pure_dict(variables), optimizer, seed=0)
    while True:
        state, metrics = step(state, batch)
        yield float(metrics.loss)


def torch_steps(model: torch.nn.Module, batch: Batch) -> Iterator[float]:
    """The loss of each training step by PyTorch."""
    model = model.to(TORCH_DEVICE).train()
    tensors = {name: torch.tensor(array, device=TORCH_DEVICE) for name, array in batch.items()}
    optimizer = torch.optim.AdamW(
        model.parameters(), OPTIMIZER.learning_rate, betas=(0.9, 0.98), weight_decay=OPTIMIZER.weight_decay, fused=True
    )
    while True:
        output = model(
            input_ids=tensors["source"], attention_mask=tensors["valid"], decoder_input_ids=tensors["target"]
        )
        loss = functional.cross_entropy(output["logits"].flatten(0, 1), tensors["labels"].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip_norm)
        optimizer.step()
        yield loss.item()


class TorchTransformer(torch.nn.Module):
    """`torch.nn.Transformer` between a shared embedding with sinusoids and the output projection tied to it."""

    def __init__(self, shape: Shape, dropout: float):
        super().__init__()
        self.embedding = torch.nn.Embedding(shape.vocab_size, shape.dim)
        self.core = torch.nn.Transformer(
            shape.dim, shape.heads, shape.layers, shape.layers, 4 * shape.dim, dropout, batch_first=True
        )
        for layer in (*self.core.encoder.layers, *self.core.decoder.layers):
            layer.dropout = torch.nn.Identity()  # the one inside the feed-forward network
        self.dropout = dropout
        angles = torch.arange(shape.length)[:, None] / 10000 ** (torch.arange(0, shape.dim, 2) / shape.dim)
        self.register_buffer("positions", torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1))
        hidden = torch.ones(shape.length, shape.length, dtype=torch.bool).triu(1)
        self.register_buffer("hidden", hidden)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, decoder_input_ids: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Logits [B, T, V], under the names that transformers uses."""
        padding = ~attention_mask
        states = self.core(
            self.embed(input_ids),
            self.embed(decoder_input_ids),
            tgt_mask=self.hidden,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return {"logits": functional.linear(states, self.embedding.weight)}

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embedded tokens with their positions, [B, T, D]."""
        x = self.embedding(tokens) * self.embedding.embedding_dim**0.5 + self.positions
        return functional.dropout(x, self.dropout, self.training)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
