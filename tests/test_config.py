"""Configurations: round trip through JSON, and no field that nothing reads."""

import dataclasses
import functools
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxformer import PRESETS, InputError, Transformer, TransformerConfig, encoder_decoder, from_dict, to_dict
from jaxformer.config import (
    CONFIGS,
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    HeadConfig,
    LayerNormConfig,
    LearnedPositions,
    RMSNormConfig,
    Rope,
    SinusoidalPositions,
    StackConfig,
)

CROSS = AttentionConfig(4, kv_heads=2, head_dim=6, scale=0.3, window=3, softcap=2.0, bias=True, dropout=0.1)
ATTENTION = dataclasses.replace(
    CROSS, output_bias=True, query_key_norm=RMSNormConfig(1e-2), rope=Rope(1000.0, width=4, layout="halves")
)


def stack(cross: AttentionConfig | None, positions: LearnedPositions | SinusoidalPositions) -> StackConfig:
    block = BlockConfig(
        ATTENTION, FeedForwardConfig(13, "gelu", gated=True), cross, LayerNormConfig(1e-3), "pre", dropout=0.2
    )
    embedding = EmbeddingConfig(29, dim=10, scale=True)
    return StackConfig(embedding, (block,), positions, LayerNormConfig(1e-2), RMSNormConfig(1e-2), dropout=0.1)


BASE = TransformerConfig(
    20,
    encoder=stack(None, SinusoidalPositions("interleaved", 1000.0)),
    decoder=stack(CROSS, LearnedPositions(19, offset=2)),
    head=HeadConfig(tied=True, bias=True),
    share_embeddings=True,
)
OTHER = {
    "heads": 2,
    "kv_heads": 1,
    "head_dim": 8,
    "scale": 0.4,
    "window": 2,
    "softcap": 3.0,
    "bias": False,
    "output_bias": False,
    "query_key_norm": None,
    "dropout": 0.4,
    "hidden": 11,
    "activation": "relu",
    "gated": False,
    "width": 2,
    "placement": "post",
    "epsilon": 1e-1,
    "vocab_size": 31,
    "dim": 12,
    "length": 23,
    "offset": 3,
    "base": 7.0,
    "position_index": "slot",
    "tied": False,
    "share_embeddings": False,
    "rope": None,
    "rematerialise": True,
    "embedding_norm": None,
    "final_norm": None,
    "head": None,
}
# Structure rather than values: covered by the models of every shape, or by the fields inside them.
COMPOSED = {"attention", "feed_forward", "cross", "norm", "encoder", "decoder", "embedding", "blocks", "positions"}
OPTIONAL = {"rope", "query_key_norm", "output_bias"}  # perturbed where they are given


def perturbed(config: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every configuration that differs from `config` in one field of one of its parts, with the path to the field."""
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), f"{path}.{field.name}"
        if field.name == "layout":
            yield where, dataclasses.replace(config, layout="halves" if value == "interleaved" else "interleaved")
        elif field.name in OPTIONAL and value is None:
            continue
        elif field.name in OTHER:
            other = not value if isinstance(value, bool) else OTHER[field.name]
            yield where, dataclasses.replace(config, **{field.name: other})
        else:
            assert field.name in COMPOSED, f"give {where} another value in this test"
        inner = value[0] if isinstance(value, tuple) else value
        if dataclasses.is_dataclass(inner):
            for name, changed in perturbed(inner, where):
                part = (changed, *value[1:]) if isinstance(value, tuple) else changed
                if not (path == "" and field.name in ("encoder", "decoder") and name.startswith(f"{where}.embedding.")):
                    yield name, dataclasses.replace(config, **{field.name: part})
    if path == "":
        for name, changed in perturbed(config.encoder.embedding, ".embedding"):
            stacks = (dataclasses.replace(stack, embedding=changed) for stack in (config.encoder, config.decoder))
            encoder, decoder = stacks
            yield name, dataclasses.replace(config, encoder=encoder, decoder=decoder)


@functools.cache
def fingerprint(config: TransformerConfig) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Parameter shapes and rematerialised blocks; outputs in training and evaluation with parameters that only their
    shape decides.
    """
    model = Transformer(config, rngs=nnx.Rngs(0))
    leaves, structure = jax.tree.flatten(model)
    model = jax.tree.unflatten(structure, [0.5 * jax.random.normal(jax.random.key(1), x.shape) for x in leaves])
    source, target = jnp.arange(12).reshape(2, 6) % 29, jnp.arange(10).reshape(2, 5) % 23
    valid = jnp.array([[False, True, True, True, True, True]] * 2)
    marks = {"inputs_valid": valid, "targets_valid": valid[:, 1:] & (jnp.arange(5) > 0)[None]}
    outputs = [model(source, target, dropout_key=key, **marks).ravel() for key in (None, jax.random.key(0))]
    program = str(jax.make_jaxpr(lambda model: model(source, target))(model))
    return [*(x.shape for x in leaves), (program.count("remat"),)], np.concatenate(outputs)


PERTURBED = list(perturbed(BASE))


@pytest.mark.parametrize("changed", [config for _, config in PERTURBED], ids=[name for name, _ in PERTURBED])
def test_no_field_is_dead(changed: TransformerConfig) -> None:
    shapes, outputs = fingerprint(BASE)
    other_shapes, other_outputs = fingerprint(changed)
    assert shapes != other_shapes or np.abs(outputs - other_outputs).max() > 1e-4


def test_every_class_is_perturbed() -> None:
    fields = {(config.__name__, field.name) for config in CONFIGS for field in dataclasses.fields(config)}
    assert {name for _, name in fields} == set(OTHER) | COMPOSED | {"layout"}


@pytest.mark.parametrize("config", [BASE, *(preset() for preset in PRESETS.values())])
def test_json_round_trip(config: TransformerConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert hash(config) == hash(from_dict(to_dict(config)))


def test_unknown_configurations_are_refused() -> None:
    with pytest.raises(InputError, match="unknown configuration type 'Nonsense'"):
        from_dict({"type": "Nonsense"})
    with pytest.raises(InputError, match="cannot build HeadConfig"):
        from_dict({"type": "HeadConfig", "colour": 3})


def test_sharing_needs_equal_vocabularies() -> None:
    config = encoder_decoder(29, source_vocab_size=31, dim=20, layers=1, heads=4)
    with pytest.raises(InputError, match="share_embeddings"):
        dataclasses.replace(config, share_embeddings=True)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (AttentionConfig(4, rope=Rope(width=7)), "pairs of a head's 5 dimensions, not 7"),
        (AttentionConfig(4, rope=Rope()), "pairs of a head's 5 dimensions, not 5"),
    ],
)
def test_rotary_positions_need_pairs(attention: AttentionConfig, message: str) -> None:
    decoder = StackConfig(EmbeddingConfig(29), (BlockConfig(attention),), None)
    with pytest.raises(InputError, match=message):
        TransformerConfig(20, decoder=decoder)


def test_cross_attention_has_no_rotary_positions() -> None:
    with pytest.raises(InputError, match="cross-attention needs rope=None"):
        dataclasses.replace(BASE, decoder=stack(ATTENTION, SinusoidalPositions()))
