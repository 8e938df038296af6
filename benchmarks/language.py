"""A language model of ours beside the same GPT in PyTorch: equal weights, equal batches, losses and time compared."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from common import TORCH_DEVICE, conditions, prepare_training
from flax import nnx
from torch.nn import functional

from jaxformer import Transformer, cross_entropy, decoder_only
from jaxformer.data import Corpus, documents, open_corpus, text_batches, train_tokenizer, windows
from jaxformer.layers.embedding import LearnedPositionEmbedding
from jaxformer.training import Loss, OptimizerConfig, cast, init_state, learning_rates, make_optimizer, make_train_step

OPTIMIZER = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.99)


@dataclass(frozen=True)
class Arguments:
    """Train a model of characters, shaped as GPT-2, in both libraries, without dropout, and compare them on the way.

    The defaults are the preset `small`. nanoGPT's recipe for a CPU is --layers 4 --dim 128 --heads 4 --length 64
    --batch 12 --steps 2000.
    """

    train: Path
    """text to train on"""
    held_out: Path
    """text to evaluate on"""
    cache: Path = Path("build/corpora")
    """where the tokenised text is kept"""
    layers: int = 6
    """blocks"""
    dim: int = 384
    """width"""
    heads: int = 6
    """attention heads"""
    length: int = 256
    """characters of a window"""
    batch: int = 16
    """windows of a step"""
    steps: int = 1000
    """training steps"""
    evaluate_every: int = 250
    """steps between two looks at the held-out text"""
    evaluate_batches: int = 20
    """batches of it that a look takes in"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type to compute in; weights are float32 in both"""
    output: Path = Path("docs/benchmarks/language.md")
    """where the table is written"""
    state: Path = Path("build/language-race.pt")
    """where the race is kept at every look and every 50 steps: a call that finds it goes on from there"""


class Look(NamedTuple):
    """Held-out losses after a step, and the median seconds of the steps since the look before."""

    step: int
    ours: float
    theirs: float
    our_seconds: float
    their_seconds: float


def main(arguments: Arguments) -> None:
    """Train both, step by step, print every look, and write the table."""
    prepare_training()
    tokenizer = train_tokenizer("char", documents(arguments.train), 4096)
    training, held_out = (
        open_corpus(path, tokenizer, arguments.cache) for path in (arguments.train, arguments.held_out)
    )
    sizes = {"length": arguments.length, "dim": arguments.dim, "layers": arguments.layers, "heads": arguments.heads}
    model = Transformer(decoder_only(tokenizer.vocab_size, **sizes), rngs=nnx.Rngs(0))
    ours, theirs = Ours(model, arguments), Theirs(model, arguments)
    looks = race(ours, theirs, training, held_out, arguments)
    write(arguments, looks)
    arguments.state.unlink(missing_ok=True)


def race(ours: "Ours", theirs: "Theirs", training: Corpus, held_out: Corpus, arguments: Arguments) -> list[Look]:
    """Both take every step on the same batch, one after the other."""
    batches = text_batches(training, arguments.length, arguments.batch, seed=0)
    samples = list(islice(windows(held_out, arguments.length, arguments.batch), arguments.evaluate_batches))
    taken, seconds = 0, ([], [])
    looks = [Look(0, ours.evaluate(samples), theirs.evaluate(samples), 0.0, 0.0)]
    if arguments.state.exists():
        kept = torch.load(arguments.state, weights_only=False)
        if kept["settings"] != settings_of(arguments):
            raise SystemExit(f"{arguments.state} is of another race: remove it, or give another --state")
        taken, seconds, looks = kept["taken"], kept["seconds"], kept["looks"]
        ours.restore(kept["ours"])
        theirs.restore(kept["theirs"])
    for look in looks:
        print(*row(look), sep="\t", flush=True)
    for number, batch in enumerate(islice(batches, taken, arguments.steps), start=taken + 1):
        for index, step in enumerate((ours.step, theirs.step)):
            start = perf_counter()
            step(batch)
            if number > taken + 1:  # the first compiles
                seconds[index].append(perf_counter() - start)
        if number % arguments.evaluate_every == 0:
            looks.append(Look(number, ours.evaluate(samples), theirs.evaluate(samples), *map(median, seconds)))
            print(*row(looks[-1]), sep="\t", flush=True)
            seconds = ([], [])
        if number % 50 == 0 or number % arguments.evaluate_every == 0:
            keep(arguments, {"taken": number, "seconds": seconds, "looks": looks}, ours, theirs)
    return looks


def settings_of(arguments: Arguments) -> dict[str, Any]:
    """The settings that an interrupted race and the one that continues it must share."""
    names = ("layers", "dim", "heads", "length", "batch", "steps", "dtype")
    return {name: getattr(arguments, name) for name in names}


def keep(arguments: Arguments, progress: dict[str, Any], ours: "Ours", theirs: "Theirs") -> None:
    """Write all that the race needs to go on, whole or not at all."""
    arguments.state.parent.mkdir(parents=True, exist_ok=True)
    unfinished = arguments.state.with_suffix(".unfinished")
    torch.save(
        {"settings": settings_of(arguments), **progress, "ours": ours.kept(), "theirs": theirs.kept()}, unfinished
    )
    unfinished.replace(arguments.state)


class Ours:
    """Our model in training."""

    def __init__(self, model: Transformer, arguments: Arguments):
        graphdef, params = nnx.split(model)
        params = jax.tree.map(jnp.array, nnx.to_pure_dict(params))  # a copy: steps give their state's memory away
        optimizer = make_optimizer(OPTIMIZER, arguments.steps)

        def logits(params: Any, batch: Any) -> jax.Array:
            return nnx.merge(graphdef, cast(params, jnp.dtype(arguments.dtype)))(batch["inputs"])

        def loss(params: Any, batch: Any, _: jax.Array) -> tuple[jax.Array, Loss]:
            mean = cross_entropy(logits(params, batch), batch["labels"])
            return mean, Loss(mean, jnp.int32(batch["labels"].size))

        self.state = init_state(params, optimizer, 0)
        self.take = make_train_step(loss, optimizer, learning_rates(OPTIMIZER, arguments.steps))
        self.loss = jax.jit(lambda params, batch: cross_entropy(logits(params, batch), batch["labels"]))

    def step(self, batch: Any) -> None:
        """Train on a batch."""
        self.state, metrics = self.take(self.state, batch)
        metrics.loss.block_until_ready()

    def evaluate(self, batches: list[Any]) -> float:
        """The mean loss of the batches."""
        return float(np.mean([self.loss(self.state.params, batch) for batch in batches]))

    def kept(self) -> list[np.ndarray]:
        """All that training changed."""
        return [np.asarray(leaf) for leaf in jax.tree.leaves(self.state)]

    def restore(self, kept: list[np.ndarray]) -> None:
        """Go on from what was kept."""
        self.state = jax.tree.unflatten(jax.tree.structure(self.state), [jnp.array(leaf) for leaf in kept])


class Theirs:
    """The PyTorch model in training."""

    def __init__(self, model: Transformer, arguments: Arguments):
        self.module = Gpt(model).to(TORCH_DEVICE)
        matrices, others = [], []
        for parameter in self.module.parameters():
            (matrices if parameter.ndim > 1 else others).append(parameter)
        groups = [{"params": matrices, "weight_decay": OPTIMIZER.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, OPTIMIZER.beta2), fused=True)
        self.rates = learning_rates(OPTIMIZER, arguments.steps)
        self.taken = 0
        self.autocast = torch.autocast(TORCH_DEVICE, torch.bfloat16, enabled=arguments.dtype == "bfloat16")

    def step(self, batch: Any) -> None:
        """Train on a batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = np.asarray(self.rates(self.taken)).item()
        self.optimizer.zero_grad()
        self.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), OPTIMIZER.clip_norm)
        self.optimizer.step()
        self.taken += 1

    def loss(self, batch: Any) -> torch.Tensor:
        """The mean loss of a batch."""
        inputs, labels = (torch.tensor(batch[name], device=TORCH_DEVICE).long() for name in ("inputs", "labels"))
        with self.autocast:
            logits = self.module(inputs)
        return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())

    def evaluate(self, batches: list[Any]) -> float:
        """The mean loss of the batches."""
        with torch.no_grad():
            return float(np.mean([self.loss(batch).item() for batch in batches]))

    def kept(self) -> tuple[Any, Any, int]:
        """All that training changed."""
        return self.module.state_dict(), self.optimizer.state_dict(), self.taken

    def restore(self, kept: tuple[Any, Any, int]) -> None:
        """Go on from what was kept."""
        parameters, moments, self.taken = kept
        self.module.load_state_dict(parameters)
        self.optimizer.load_state_dict(moments)


class Gpt(torch.nn.Module):
    """GPT-2 as one would write it in PyTorch, with the weights of a model of ours."""

    def __init__(self, model: Transformer):
        super().__init__()
        assert model.decoder is not None
        assert isinstance(model.decoder.positions, LearnedPositionEmbedding)
        self.tokens = torch.nn.Embedding.from_pretrained(tensor(model.embedding.embedding), freeze=False)
        self.positions = torch.nn.Embedding.from_pretrained(tensor(model.decoder.positions.embedding), freeze=False)
        self.blocks = torch.nn.ModuleList(GptBlock(block) for block in model.decoder.blocks)
        self.norm = norm(model.decoder.final_norm)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids [B, T] -> logits [B, T, V]."""
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.tokens.weight)


class GptBlock(torch.nn.Module):
    """Pre-LN attention and feed-forward network."""

    def __init__(self, block: Any):
        super().__init__()
        attention, feed_forward = block.attention, block.feed_forward
        self.heads = attention.config.heads
        self.attention_norm, self.feed_forward_norm = norm(block.attention_norm), norm(block.feed_forward_norm)
        self.query_key_value = linear(attention.query, attention.key, attention.value)
        self.output = linear(attention.output)
        self.up, self.down = linear(feed_forward.up), linear(feed_forward.down)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] -> [B, T, D]."""
        B, T, D = x.shape
        heads = self.query_key_value(self.attention_norm(x)).reshape(B, T, 3, self.heads, D // self.heads)
        mixed = functional.scaled_dot_product_attention(*heads.permute(2, 0, 3, 1, 4), is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(B, T, D))
        return x + self.down(functional.gelu(self.up(self.feed_forward_norm(x))))


def tensor(parameter: Any) -> torch.Tensor:
    """A parameter of ours as a tensor of its own."""
    return torch.tensor(np.asarray(parameter[...]))


def linear(*maps: Any) -> torch.nn.Linear:
    """Linear maps of ours that read the same input, as one of torch's."""
    inputs = int(np.prod(maps[0].inputs))
    weights = [tensor(each.weight).reshape(inputs, -1).T for each in maps]
    module = torch.nn.Linear(inputs, sum(len(weight) for weight in weights))
    module.weight.data = torch.cat(weights).contiguous()
    module.bias.data = torch.cat([tensor(each.bias).flatten() for each in maps])
    return module


def norm(ours: Any) -> torch.nn.LayerNorm:
    """A layer norm of ours as one of torch's."""
    scale, shift = tensor(ours.scale), tensor(ours.bias)
    module = torch.nn.LayerNorm(len(scale), eps=ours.epsilon)
    module.weight.data, module.bias.data = scale, shift
    return module


def row(look: Look) -> tuple[str, ...]:
    """The cells of a look."""
    ratio = look.their_seconds / look.our_seconds if look.our_seconds else float("nan")
    return (
        str(look.step),
        f"{look.ours:.4f}",
        f"{look.theirs:.4f}",
        f"{abs(look.ours - look.theirs):.4f}",
        f"{ratio:.2f}" if look.our_seconds else "",
    )


def write(arguments: Arguments, looks: list[Look]) -> None:
    """The table as Markdown."""
    head = ("step", "jaxformer", "PyTorch", "difference", "times faster")
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *map(row, looks))]
    lines.insert(1, "|" + " ---: |" * len(head))
    method = (
        f"Held-out loss in nats per character of a GPT of {arguments.layers} layers of width {arguments.dim}, and of "
        f"the same GPT in eager PyTorch (`scaled_dot_product_attention`, fused AdamW): equal initial weights, equal "
        f"batches of {arguments.batch} x {arguments.length} characters, no dropout, {arguments.dtype}. Median time of "
        "a step, PyTorch / jaxformer, since the last line."
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(["# A language model beside PyTorch", "\n".join(lines), method, conditions()])
    arguments.output.write_text(text + "\n")
    print(f"written to {arguments.output}")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
