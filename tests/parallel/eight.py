"""Measurements on eight virtual devices, in a process of its own: takes a name and arguments, prints JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/parallel/eight.py equality gpt fsdp=8
"""

import json
import re
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxformer import (
    GenerationConfig,
    Transformer,
    cross_entropy,
    decoder_only,
    encoder_decoder,
    encoder_only,
    generate,
    lora,
    parallel,
)
from jaxformer.config import TransformerConfig
from jaxformer.layers import freeze
from jaxformer.model import abstract_model
from jaxformer.ops import AttentionMask, dot_product_attention
from jaxformer.presets import deepseek_tiny, modern_decoder_only
from jaxformer.pretrained import as_pretrained, from_pretrained
from jaxformer.training import Loss, init_state, make_train_step

VOCABULARY = 48


def two_layers(config: TransformerConfig) -> TransformerConfig:
    """A decoder's first two layers."""
    return replace(config, decoder=replace(config.decoder, blocks=config.decoder.blocks[:2]))


CONFIGS: dict[str, TransformerConfig] = {
    "gpt": decoder_only(VOCABULARY, length=32, dim=32, layers=2, heads=4),
    "modern": modern_decoder_only(VOCABULARY, dim=32, layers=2, heads=4, kv_heads=2),
    "bert": encoder_only(VOCABULARY, length=32, dim=32, layers=2, heads=4),
    "paper": encoder_decoder(VOCABULARY, dim=32, layers=2, heads=4, dropout=0.0),
    "t5": encoder_decoder(VOCABULARY, dim=32, layers=2, heads=4, dropout=0.0, positions="relative"),
    "deepseek": two_layers(deepseek_tiny(VOCABULARY)),
}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
Batch = dict[str, np.ndarray]


def make_batch(config: TransformerConfig) -> Batch:
    """Eight rows of sixteen tokens, some of them padding."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(1, VOCABULARY, (8, 16)).astype(np.int32)  # noqa: E731
    valid = np.arange(16)[None] < rng.integers(5, 17, 8)[:, None]
    batch = {"source": draw(), "mask": valid, "labels": np.where(valid, draw(), -100)}
    return batch | ({"target": draw()} if config.encoder and config.decoder else {})


def loss(model: Transformer, batch: Batch) -> jax.Array:
    """Mean cross-entropy."""
    return cross_entropy(model(batch["source"], batch.get("target"), inputs_mask=batch["mask"]), batch["labels"])


def model_of(name: str) -> tuple[Transformer, Batch]:
    """A model of random weights and a batch."""
    return Transformer(CONFIGS[name], rngs=nnx.Rngs(0)), make_batch(CONFIGS[name])


def collectives(text: str) -> dict[str, int]:
    """How often a compiled program lets devices talk, by kind."""
    found = Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", text))
    return dict(sorted(found.items()))


def equality(name: str, *specs: str) -> dict[str, Any]:
    """Distances of loss and gradient from those of one device, the collectives, the largest share that is whole."""
    model, batch = model_of(name)
    function = jax.jit(jax.value_and_grad(loss))
    expected, gradient = function(model, batch)
    found = {}
    for spec in specs:
        mesh = parallel.make_mesh(spec)
        divided = parallel.shard(model, mesh)
        with parallel.using(mesh):
            ours, ours_gradient = function(divided, parallel.shard_batch(batch))
            text = function.lower(divided, parallel.shard_batch(batch)).compile().as_text()
        difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), gradient, ours_gradient)
        found[spec] = {
            "loss": abs(float(ours) / float(expected) - 1),
            "gradient": float(optax.tree.norm(difference) / optax.tree.norm(gradient)),
            "collectives": collectives(text),
            "whole": share_of_a_device(divided),
        }
    return found


def share_of_a_device(model: Transformer) -> float:
    """The share of all parameters that the first device holds."""
    leaves = jax.tree.leaves(model)
    return sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)


def generation(name: str, *specs: str) -> dict[str, Any]:
    """Whether greedy search and beam search find the tokens of one device, with and without a context."""
    model, batch = model_of(name)
    source = batch["source"][:, :6]
    settings = [
        GenerationConfig(max_new_tokens=9, num_beams=beams, eos_token_id=2, pad_token_id=0, decoder_start_token_id=1)
        for beams in (1, 3)
    ]
    expected = [np.asarray(generate(model, source, each).sequences) for each in settings]
    found = {}
    for spec in specs:
        divided = parallel.shard(model, parallel.make_mesh(spec))
        same = [
            np.array_equal(np.asarray(generate(divided, source, each).sequences), want)
            for each, want in zip(settings, expected, strict=True)
        ]
        with parallel.using(parallel.make_mesh(spec)):
            same.append(np.array_equal(np.asarray(generate(divided, source, settings[0]).sequences), expected[0]))
        found[spec] = same
    return found


def training(name: str, spec: str, kind: str = "all") -> dict[str, Any]:
    """Losses of four AdamW steps on one device and divided, of all parameters, an adapter or one block."""
    config = lora.LoraConfig(rank=2, alpha=4.0)

    def losses(mesh: Any) -> list[float]:
        model, batch = model_of(name)
        made = model if mesh is None else parallel.shard(model, mesh)
        optimizer = optax.adamw(1e-2)
        if kind == "lora":
            adapter = lora.init(as_pretrained(model), config, key=jax.random.key(0))
            params, call = adapter, lambda params, batch: loss(lora.apply(made, params), batch)
        else:
            frozen = freeze(made, lambda path: kind == "frozen" and path[:3] == ("decoder", "blocks", 0))
            graph, params, rest = nnx.split(frozen, nnx.Param, ...)
            call = lambda params, batch: loss(nnx.merge(graph, params, rest), batch)  # noqa: E731
        state = init_state(params, optimizer, 0)
        step = make_train_step(
            lambda params, batch, key: (found := call(params, batch), Loss(found, jnp.float32(1))),
            optimizer,
            optax.constant_schedule(1e-2),
        )
        found = []
        with parallel.using(mesh):
            for _ in range(4):
                state, metrics = step(state, parallel.shard_batch(batch))
                found.append(float(metrics.loss))
        return found

    return {"one": losses(None), "divided": losses(parallel.make_mesh(spec))}


def opening(folder: str, spec: str) -> dict[str, Any]:
    """The share of a checkpoint that a device holds, and the distance of its logits from those of one device."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (8, 12))
    expected = np.asarray(from_pretrained(folder)(tokens).logits)
    lm = from_pretrained(folder, mesh=parallel.make_mesh(spec))
    return {
        "whole": share_of_a_device(lm.model),
        "logits": float(np.abs(np.asarray(lm(tokens).logits) - expected).max()),
        "generated": np.asarray(lm.generate(tokens, max_new_tokens=4).sequences).tolist(),
        "expected": np.asarray(from_pretrained(folder).generate(tokens, max_new_tokens=4).sequences).tolist(),
    }


def ring(*specs: str) -> dict[str, Any]:
    """Distances of ring attention, its output and gradients, from blockwise attention on one device."""
    rng = np.random.default_rng(0)
    q, k, v, d = (jnp.asarray(rng.normal(size=(2, 88, heads, 8)), jnp.float32) for heads in (4, 2, 2, 4))
    valid = jnp.asarray(np.arange(88)[None] < np.array([[88], [61]]))
    sinks = jnp.asarray(rng.normal(size=4), jnp.float32)
    masks = {
        "causal": AttentionMask(causal=True),
        "window": AttentionMask(causal=True, window=(13, 0), key_valid=valid),
        "both ways": AttentionMask(key_valid=valid),
    }

    def attend(mask: AttentionMask, *operands: jax.Array) -> jax.Array:
        q, k, v, sinks = operands
        return (dot_product_attention(q, k, v, mask=mask, sinks=sinks, softcap=20.0) * d).sum()

    found = {}
    for spec in specs:
        for name, mask in masks.items():
            operands, function = (q, k, v, sinks), jax.jit(jax.value_and_grad(partial(attend, mask), (0, 1, 2, 3)))
            expected = function(*operands)
            with parallel.using(parallel.make_mesh(spec)):
                ours = function(*operands)
                text = function.lower(*operands).compile().as_text()
            assert "collective-permute" in text
            pairs = zip(jax.tree.leaves(expected), jax.tree.leaves(ours), strict=True)
            found[f"{spec} {name}"] = max(
                float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(1.0, np.abs(np.asarray(a)).max()))
                for a, b in pairs
            )
    return found


def placed(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape of an array that lies somewhere."""
    return leaf.update(sharding=sharding)


def long_sequence(length: str) -> dict[str, int]:
    """Bytes of temporaries on each device of a loss and its gradient, of a sequence on one and on more devices."""
    model = two_layers(modern_decoder_only(VOCABULARY, dim=64, layers=2, heads=4, kv_heads=2))
    abstract = abstract_model(model)
    tokens = jax.ShapeDtypeStruct((1, int(length)), jnp.int32)
    found = {}
    for devices in (1, 2, 8):
        mesh = parallel.make_mesh(f"context={devices}", jax.devices()[:devices])
        whole = NamedSharding(mesh, PartitionSpec())
        weights = jax.tree.map(partial(placed, sharding=whole), abstract)
        with parallel.using(mesh):
            function = jax.jit(jax.grad(lambda model, tokens: cross_entropy(model(tokens), tokens)))
            compiled: Any = function.lower(weights, placed(tokens, whole)).compile()
        found[str(devices)] = compiled.memory_analysis().temp_size_in_bytes
    return found


if __name__ == "__main__":
    measurement, *arguments = sys.argv[1:]
    print(json.dumps(globals()[measurement](*arguments)))
