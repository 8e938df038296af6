"""Measure what one accelerator makes of this library, in at most eight minutes; prints a table and JSON.

    python benchmarks/gpu.py

It needs the package alone. PyTorch takes part where it is installed and sees the accelerator. Each section is tried as
long as time is left, and one that fails, for want of memory or a kernel, says so and lets the others go on.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from jaxformer import AttentionMask, Transformer, attention_weights, decoder_only, dot_product_attention, generate
from jaxformer.backends.gpu import cuda_capability, fused_kernel_applies
from jaxformer.cli.accounting import training_flops
from jaxformer.config import FeedForwardConfig, MoEConfig, TransformerConfig
from jaxformer.layers import FeedForward
from jaxformer.layers.experts import Experts
from jaxformer.ops import weighted_values
from jaxformer.presets import modern_decoder_only
from jaxformer.tasks import losses, model_loss
from jaxformer.training import (
    OptimizerConfig,
    cast,
    init_state,
    learning_rates,
    make_optimizer,
    make_train_step,
    peak_flops,
)

Row = dict[str, Any]
MEMORY = {"H200": 4.8e12, "H100": 3.35e12, "B200": 8e12, "A100": 2.0e12}  # bytes per second, from data sheets
VOCABULARY = 50_257
# Layers, width, heads and rows of a batch: GPT-2 in its four sizes.
MODELS = {
    "GPT-2 124M": (12, 768, 12, 32),
    "GPT-2 350M": (24, 1024, 16, 16),
    "GPT-2 774M": (36, 1280, 20, 8),
    "GPT-2 1.5B": (48, 1600, 25, 8),
}


@dataclass(frozen=True)
class Arguments:
    """Measure training, decoding, experts, attention and its parity on one accelerator, in bfloat16."""

    seconds: float = 450
    """how long to begin further measurements; each section has its share"""
    small: bool = False
    """tiny sizes, as on a CPU"""
    output: Path | None = None
    """where to write the JSON as well"""


def main(arguments: Arguments) -> None:
    """Run all sections, print their rows as they come, then all as JSON."""
    start, given, rows = perf_counter(), 0.0, []
    sections: dict[Callable[[Arguments], Iterator[Callable[[], Row]]], float] = {
        parity: 0.15,
        training: 0.4,
        decoding: 0.25,
        experts: 0.05,
        long_sequences: 0.15,
    }
    for section, share in sections.items():
        given += share * arguments.seconds
        for measurement in section(arguments):
            if perf_counter() - start > given:
                rows.append({"section": section.__name__, "left out": "no time"})
                break
            try:
                row = measurement()
            except Exception as error:  # of a kernel, of memory: the others are measured all the same
                row = {"failed": f"{type(error).__name__}: {str(error)[:200]}"}
            rows.append({"section": section.__name__, **row})
            print("  ".join(f"{name}: {shown(value)}" for name, value in rows[-1].items()), flush=True)
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax", "jaxformer")}
    result = json.dumps({"device": jax.devices()[0].device_kind, "versions": versions, "rows": rows}, indent=1)
    print(result)
    if arguments.output is not None:
        arguments.output.write_text(result + "\n")


def shown(value: Any) -> str:
    """A number for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def seconds_of(run: Callable[[], Any], rounds: int = 5) -> float:
    """The least time of some calls, after one that compiles."""
    jax.block_until_ready(run())
    found = []
    for _ in range(rounds):
        start = perf_counter()
        jax.block_until_ready(run())
        found.append(perf_counter() - start)
    return min(found)


def parity(arguments: Arguments) -> Iterator[Callable[[], Row]]:
    """Compare attention in bfloat16 with the dense form in float32, values and gradients."""
    length = 64 if arguments.small else 1024
    masks = {
        "causal": AttentionMask(causal=True),
        "window": AttentionMask(causal=True, window=(length // 4, 0)),
        "padding": AttentionMask(key_valid=jnp.arange(length)[None] < length - length // 8),
    }
    for name, mask in masks.items():
        for width in (64, 128, 256):
            yield partial(compare_attention, name, mask, length, width)


def compare_attention(name: str, mask: AttentionMask, length: int, width: int) -> Row:
    """The largest errors, and which kernel it was."""
    shape = (2, length, 4, width)
    exact = [jax.random.normal(jax.random.key(n), shape).astype(jnp.bfloat16).astype(jnp.float32) for n in range(4)]
    short = [x.astype(jnp.bfloat16) for x in exact]

    def attended(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return dot_product_attention(query, key, value, mask=mask)

    def dense(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return weighted_values(attention_weights(query, key, mask=mask), value)

    def evaluated(function: Callable[..., jax.Array], inputs: list[jax.Array]) -> list[np.ndarray]:
        *operands, d_output = inputs
        output, pull = jax.vjp(jax.jit(function), *operands)
        return [np.asarray(x, np.float32) for x in (output, *pull(d_output))]

    with jax.default_matmul_precision("highest"):
        expected = evaluated(dense, exact)
    errors = [float(np.abs(a - b).max()) for a, b in zip(evaluated(attended, short), expected, strict=True)]
    query, key, value, _ = short
    fused = fused_kernel_applies(query, key, value, mask, cuda_capability())
    return {"mask": name, "width": width, "fused": fused, "value error": errors[0], "gradient error": max(errors[1:])}


def training(arguments: Arguments) -> Iterator[Callable[[], Row]]:
    """Steps of GPT-2 at 1,024 tokens: all logits at once, in chunks, and PyTorch's compiled model."""
    for name, (layers, dim, heads, rows) in MODELS.items():
        length, vocabulary = 1024, VOCABULARY
        if arguments.small:
            name, layers, dim, heads, rows, length, vocabulary = "tiny", 2, 32, 2, 2, 32, 256
        config = decoder_only(vocabulary, length=length, dim=dim, layers=layers, heads=heads)
        for most in (losses.MOST_LOGITS, 2**40):
            yield partial(train, name, config, rows, length, most)
        yield partial(train_torch, name, config, rows, length)
        if arguments.small:
            return


def train(name: str, config: TransformerConfig, rows: int, length: int, most: int) -> Row:
    """Time of a step, tokens per second, MFU and the memory that the compiler allocates."""
    graphdef, params = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
    optimizer, rates = OptimizerConfig(learning_rate=1e-4), learning_rates(OptimizerConfig(), 1000)
    update = make_optimizer(optimizer, 1000)

    def loss(params: Any, batch: Any, key: jax.Array) -> Any:
        return model_loss(
            cast(nnx.merge(graphdef, params), jnp.dtype("bfloat16")), batch["inputs"], labels=batch["labels"]
        )

    tokens = np.random.default_rng(0).integers(0, config.main.embedding.vocab_size, (rows, length + 1), np.int32)
    batch = {"inputs": jnp.asarray(tokens[:, :-1]), "labels": jnp.asarray(tokens[:, 1:])}
    kept, losses.MOST_LOGITS = losses.MOST_LOGITS, most
    try:
        step, states = make_train_step(loss, update, rates), [init_state(params, update, 0)]
        del params

        def take() -> jax.Array:
            state, metrics = step(states.pop(), batch)
            states.append(state)
            return metrics.loss

        seconds = seconds_of(take)
        memory: Any = step.lower(states[0], batch).compile().memory_analysis()
    finally:
        losses.MOST_LOGITS = kept
    flops, peak = training_flops(config, batch), peak_flops(jnp.dtype("bfloat16"))
    assert flops is not None, "of these names"
    return {
        "model": name,
        "batch": f"{rows} x {length}",
        "logits at once": "all" if most >= 2**40 else most,
        "seconds": seconds,
        "tokens/s": rows * length / seconds,
        "MFU": None if peak is None else flops / seconds / peak,
        "temporaries GB": memory.temp_size_in_bytes / 1e9,
    }


def train_torch(name: str, config: TransformerConfig, rows: int, length: int) -> Row:
    """The same step of transformers under `torch.compile`, autocast to bfloat16, with fused AdamW."""
    torch = torch_there()
    if torch is None:
        return {"model": name, "PyTorch": "not there"}
    from transformers import GPT2Config, GPT2LMHeadModel

    stack = config.main
    settings: dict[str, Any] = {
        "vocab_size": stack.embedding.vocab_size,
        "n_positions": length,
        "n_embd": config.dim,
        "n_layer": len(stack.blocks),
        "n_head": stack.blocks[0].attention.heads,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }
    model: Any = torch.compile(GPT2LMHeadModel(GPT2Config(**settings)).cuda())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(0, stack.embedding.vocab_size, (rows, length + 1), device="cuda")

    def take() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(tokens[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()

    seconds = seconds_of(take)
    return {"model": name, "batch": f"{rows} x {length}", "PyTorch": "compiled", "seconds": seconds}


def torch_there() -> Any:
    """PyTorch where it is installed and sees a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def decoding(arguments: Arguments) -> Iterator[Callable[[], Row]]:
    """Decode greedily with random models; compare a token's time with the time to read their weights once."""
    shapes = {
        "GPT-2 124M": decoder_only(VOCABULARY, length=1024, dim=768, layers=12, heads=12),
        "GPT-2 1.5B": decoder_only(VOCABULARY, length=1024, dim=1600, layers=48, heads=25),
        "8B, shaped as Llama 3": modern_decoder_only(128_256, dim=4096, layers=32, heads=32, kv_heads=8),
    }
    if arguments.small:
        shapes = {"tiny": decoder_only(256, length=64, dim=32, layers=2, heads=2)}
    for name, config in shapes.items():
        for batch in (1, 8, 64):
            yield partial(decode, name, config, batch, 8 if arguments.small else 128)


def decode(name: str, config: TransformerConfig, batch: int, new: int) -> Row:
    """Tokens per second, and the share of the memory's speed that reading the weights takes."""

    def make() -> Transformer:
        return cast(Transformer(config, rngs=nnx.Rngs(0)), jnp.dtype("bfloat16"))

    model = jax.jit(make)()
    prompt = jnp.ones((batch, 16), jnp.int32)

    def run(count: int) -> Any:
        return generate(model, prompt, max_new_tokens=count, eos_token_id=None, do_sample=False).sequences

    step = (seconds_of(partial(run, new), 3) - seconds_of(partial(run, 1), 3)) / (new - 1)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(model))
    kind = jax.devices()[0].device_kind
    speed = next((speed for part, speed in MEMORY.items() if part in kind), None)
    share = None if speed is None else weights / step / speed
    return {"model": name, "batch": batch, "ms/token": step * 1e3, "tokens/s": batch / step, "share of memory": share}


def experts(arguments: Arguments) -> Iterator[Callable[[], Row]]:
    """A mixture of experts by `ragged_dot`, with its gradient, beside a plain network of the same active width."""
    tokens, dim, hidden = (64, 16, 24) if arguments.small else (8192, 2048, 1024)
    for count in (8, 64):
        yield partial(mix, count, tokens, dim, hidden)


def mix(count: int, tokens: int, dim: int, hidden: int) -> Row:
    """Times of both, forward and backward."""
    expert = FeedForwardConfig(hidden, "silu", gated=True, bias=False)
    mixture = Experts(MoEConfig(count, 2, expert), dim, rngs=nnx.Rngs(0))
    plain = FeedForward(replace(expert, d_ff=2 * hidden), dim, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, tokens, dim), jnp.bfloat16)

    def gradient(layer: Any) -> Callable[[], Any]:
        short = cast(layer, jnp.dtype("bfloat16"))
        program = jax.jit(jax.grad(lambda layer, x: layer(x).astype(jnp.float32).sum(), argnums=(0, 1)))
        return lambda: program(short, x)

    mixed, whole = seconds_of(gradient(mixture)), seconds_of(gradient(plain))
    return {"experts": count, "tokens": tokens, "seconds": mixed, "plain": whole, "times as long": mixed / whole}


def long_sequences(arguments: Arguments) -> Iterator[Callable[[], Row]]:
    """Causal attention of long sequences, forward and backward."""
    for length in (512,) if arguments.small else (8192, 32_768, 131_072):
        yield partial(attend_long, length)


def attend_long(length: int) -> Row:
    """Time and FLOP per second of 8 heads of 128; half of the keys are seen."""
    operands = [jax.random.normal(jax.random.key(n), (1, length, 8, 128), jnp.bfloat16) for n in range(3)]
    mask = AttentionMask(causal=True)

    def attended(*operands: jax.Array) -> jax.Array:
        return dot_product_attention(*operands, mask=mask).astype(jnp.float32).sum()

    program = jax.jit(jax.grad(attended, argnums=(0, 1, 2)))
    seconds = seconds_of(lambda: program(*operands), 2)
    return {"tokens": length, "seconds": seconds, "TFLOP/s": 3.5 * 2 * length**2 * 8 * 128 / seconds / 1e12}


if __name__ == "__main__":
    main(tyro.cli(Arguments))
