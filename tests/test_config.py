"""Configurations: round trip through JSON, and no field that nothing reads."""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from config_cases import ATTENTION, BASES, BOTH, HEADS, stack

from jaxformer import PRESETS, InputError, TransformerConfig, encoder_decoder, from_dict, to_dict
from jaxformer.config import (
    CONFIGS,
    AnyAttentionConfig,
    AttentionConfig,
    BlockConfig,
    EmbeddingConfig,
    EndOfText,
    LastToken,
    LatentAttentionConfig,
    LearnedPositions,
    LongRopeScaling,
    Rope,
    SinusoidalPositions,
    StackConfig,
)
from jaxformer.model import abstract_model

# One worker makes all comparisons, with what it has compiled for the first of them.
pytestmark = pytest.mark.xdist_group("configurations")

OTHER = {
    "heads": 6,
    "kv_heads": 1,
    "qk_nope_head_dim": 12,
    "head_dim": 12,
    "scale": 0.4,
    "window": 2,
    "softcap": 3.0,
    "bias": False,
    "output_bias": False,
    "query_key_norm": None,
    "dropout": 0.4,
    "final_dropout": 0.3,
    "d_ff": 11,
    "gated": False,
    "width": 6,
    "epsilon": 1e-1,
    "vocab_size": 31,
    "dim": 12,
    "offset": 3,
    "base": 7.0,
    "tied": False,
    "share_embeddings": False,
    "rope": None,
    "rematerialize": True,
    "parallel": True,
    "types": 3,
    "buckets": 6,
    "max_distance": 9,
    "pad_id": 4,
    "factor": 5.0,
    "low": 0.2,
    "high": 2.5,
    "beta_fast": 1.5,
    "beta_slow": 0.3,
    "truncate": True,
    "attention_factor": 1.5,
    "short": (1.6, 1.2, 1.3, 1.4, 1.5),
    "long": (2.6, 2.1, 2.2, 2.3, 2.4),
    "transform": None,
    "scaling": None,
    "classes": 4,
    "embedding_norm": None,
    "final_norm": None,
    "head": None,
    "sinks": False,
    "limit": 0.2,
    "experts": 16,
    "groups": 3,
    "top_k_groups": 2,
    "top_k": 3,
    "renormalize": True,
    "shared": None,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 3,
    "clip_qkv": 0.3,
    "rotate_first": True,
    "shared_norm": False,
    "residual_multiplier": 0.3,
    "multiplier": 1.7,
    "attention_norm": False,
    "shared_gate": True,
    "score_positions": None,
    "order": None,
    "hidden_bias": False,
    "eos_id": 4,
    "start": 9,
    "targets_from": None,
}
# Of these, one that is not there already.
CHOICES = {
    "activation": ("relu", "silu"),
    "norm_order": ("pre", "post_sublayer"),
    "position_ids_from": ("slot", "mask"),
    "normed": ("each head", "separate heads"),
    "layout": ("halves", "interleaved"),
    "pooled": ("first", "mean_logits", LastToken()),
    "project": ("tokens", "sum"),
}
# Structure rather than values: covered by the models of every shape, or by the fields inside them.
COMPOSED = {"attention", "feed_forward", "expert", "router", "cross", "norm", "encoder", "decoder", "embedding"}
COMPOSED |= {"blocks", "positions"}
# Perturbed where they are given.
OPTIONAL = {
    "shared",
    "limit",
    "rope",
    "query_key_norm",
    "output_bias",
    "transform",
    "scaling",
    "embedding_norm",
    "final_norm",
    "head",
    "score_positions",
    "order",
    "start",
    "targets_from",
}


def changes(config: object, name: str, value: object) -> list[object]:
    """What else could stand in a field: one thing, or none where the model as it is cannot depend on it."""
    if name == "position_ids_from" and not isinstance(config.positions, LearnedPositions | SinusoidalPositions):
        return []  # distances are what they are
    if name == "parallel" and (config.norm_order == "post" or config.cross):
        return []  # refused
    if name == "gated" and config.limit is not None:
        return []  # refused
    if name == "shared_norm" and not (config.parallel and config.norm_order == "pre"):
        return []  # refused
    if name in ("parallel", "norm_order") and config.shared_norm:
        return []  # refused
    if (name == "shared_gate" and config.shared is None) or (
        name == "shared" and getattr(config, "shared_gate", False)
    ):
        return []  # refused
    if name == "attention_norm" and (config.norm_order != "pre" or config.shared_norm):
        return []  # refused
    if name == "norm_order" and not config.attention_norm:
        return []  # refused
    if name == "rotate_first" and not (config.query_key_norm and config.rope):
        return []  # the order of one thing
    if name == "pad_id" and getattr(config, "start", None) is not None:
        return []  # the first token is given
    if name == "hidden_bias" and config.activation is None:
        return []  # there is no such layer
    if name == "targets_from" or isinstance(value, EndOfText):
        return []  # the decoder then needs something to read
    if name == "share_embeddings" and not value:
        return []  # one stack, or two vocabularies
    if name == "width" and isinstance(config.scaling, LongRopeScaling):
        return []  # as many as there are factors
    if name == "length":
        return [23 if value < 5 else 4]  # on the other side of the five positions that are read
    if name in ("short", "long") and (name == "long") == (config.length > 5):
        return []  # not in use
    if name == "normed" and config.query_key_norm is None:
        return []
    if name in OPTIONAL and value is None:
        return []
    if name in CHOICES:
        return [next(choice for choice in CHOICES[name] if choice != value)]
    if name in OTHER:
        return [not value if isinstance(value, bool) else OTHER[name]]
    assert name in COMPOSED, f"give {name} another value in this test"
    return []


def perturbed(config: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every configuration that differs from `config` in one field of one of its parts, with the path to the field."""
    shared = getattr(config, "share_embeddings", False)
    for field in dataclasses.fields(config):
        value, where = getattr(config, field.name), f"{path}.{field.name}"
        for other in changes(config, field.name, value):
            yield where, dataclasses.replace(config, **{field.name: other})
        parts = value if isinstance(value, tuple) else (value,)
        for index, part in enumerate(parts):
            if not dataclasses.is_dataclass(part):
                continue
            for name, changed in perturbed(part, f"{where}{index or ''}"):
                if name.endswith(".expert.dropout"):
                    continue  # refused
                everywhere = ".rope." in name or ".router" in name
                if (index == 0 or everywhere) and not (shared and name.startswith(f"{where}.embedding.")):
                    whole = (*parts[:index], changed, *parts[index + 1 :]) if isinstance(value, tuple) else changed
                    yield name, dataclasses.replace(config, **{field.name: whole})
    if shared:
        for name, changed in perturbed(config.encoder.embedding, ".embedding"):
            encoder, decoder = (
                dataclasses.replace(each, embedding=changed) for each in (config.encoder, config.decoder)
            )
            yield name, dataclasses.replace(config, encoder=encoder, decoder=decoder)


abstract = functools.cache(abstract_model)


def shapes(config: TransformerConfig) -> list[tuple[int, ...]]:
    """Shapes of all parameters."""
    return [leaf.shape for leaf in jax.tree.leaves(abstract(config))]


@functools.cache
def fingerprint(config: TransformerConfig) -> np.ndarray:
    """Logits in training, of parameters that only their shape decides, and how many blocks are rematerialised."""
    stacks = {"encoder": config.encoder, "decoder": config.decoder}
    kept = {name: stack and dataclasses.replace(stack, rematerialize=False) for name, stack in stacks.items()}
    if kept != stacks:  # which changes the program and, as test_export shows, no logit
        arguments = inputs(config)[0]
        program = str(jax.make_jaxpr(lambda model: model(*arguments))(abstract(config)))
        return np.append(fingerprint(dataclasses.replace(config, **kept))[:-1], program.count("remat"))
    rng = np.random.default_rng(3)
    model = jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), "f4"), abstract(config))
    arguments, marks = inputs(config)
    return np.append(model(*arguments, dropout_key=jax.random.key(0), **marks).ravel(), 0)


def inputs(config: TransformerConfig) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
    """What a model of the configuration reads, and which of its tokens are real."""
    source, target = np.arange(12).reshape(2, 6) % 29, np.arange(10).reshape(2, 5) % 23
    valid = np.array([[False, True, True, True, True, True]] * 2)
    if config.targets_from:
        return (source,), {"inputs_mask": valid}
    if config.encoder and config.decoder:
        return (source, target), {"inputs_mask": valid, "targets_mask": valid[:, 1:] & (np.arange(5) > 0)[None]}
    return (source,), {"inputs_mask": valid}


PERTURBED = [
    pytest.param(base, changed, id=f"{name}{path}")
    for name, base in BASES.items()
    for path, changed in perturbed(base)
    if name not in HEADS or path.startswith((".head", ".targets_from"))
]


@pytest.mark.parametrize(("base", "changed"), PERTURBED)
def test_no_field_is_dead(base: TransformerConfig, changed: TransformerConfig) -> None:
    if shapes(changed) == shapes(base):
        before, after = fingerprint(base), fingerprint(changed)
        assert before.shape != after.shape or np.abs(before - after).max() > 1e-4


def test_every_class_is_perturbed() -> None:
    fields = {(config.__name__, field.name) for config in CONFIGS for field in dataclasses.fields(config)}
    assert {name for _, name in fields} == set(OTHER) | set(CHOICES) | COMPOSED | {"length"}
    seen = {type(part).__name__ for base in BASES.values() for part in parts(base)}
    assert seen == {config.__name__ for config in CONFIGS}


def parts(config: object) -> Iterator[object]:
    """A configuration and all that it is made of."""
    yield config
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if dataclasses.is_dataclass(part):
                yield from parts(part)


@pytest.mark.parametrize("config", [*BASES.values(), *(preset() for preset in PRESETS.values())])
def test_json_round_trip(config: TransformerConfig) -> None:
    assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
    assert hash(config) == hash(from_dict(to_dict(config)))


def test_unknown_configurations_are_refused() -> None:
    with pytest.raises(InputError, match="unknown configuration type 'Nonsense'"):
        from_dict({"type": "Nonsense"})
    with pytest.raises(InputError, match="cannot build HeadConfig"):
        from_dict({"type": "HeadConfig", "colour": 3})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("dim",), "20", 'TransformerConfig.dim="20" must be a whole number of at least 0'),
        (("dim",), 20.0, "TransformerConfig.dim=20.0 must be a whole number"),
        (("dim",), -1, "TransformerConfig.dim=-1 must be a whole number of at least 0"),
        (("dim",), 10**30, "TransformerConfig.dim=1000000000000000000000000000000 must be"),
        (("dim",), 0, "dim must be at least 1"),
        (("share_embeddings",), 1, "TransformerConfig.share_embeddings=1 must be true or false"),
        (("decoder",), {"type": "Rope"}, "TransformerConfig.decoder="),
        (("decoder", "blocks"), 3, "StackConfig.blocks=3 must be tuple"),
        (("decoder", "blocks"), [3], "StackConfig.blocks="),
        (("decoder", "blocks", 0, "norm_order"), "pro", 'BlockConfig.norm_order="pro" must be Literal'),
        (("decoder", "blocks", 0, "attention", "heads"), None, "AttentionConfig.heads=null must be a whole number"),
        (("decoder", "blocks", 0, "dropout"), math.nan, "BlockConfig.dropout=NaN must be a number"),
        (("decoder", "type"), [], r"unknown configuration type \[\]: known are"),
    ],
)
def test_values_of_another_type_are_named(place: tuple, value: object, message: str) -> None:
    data = part = json.loads(json.dumps(to_dict(encoder_decoder(29, dim=20, layers=1, heads=4))))
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(InputError, match=message) as error:
        from_dict(data)
    assert len(str(error.value)) <= 300


def test_sharing_needs_equal_vocabularies() -> None:
    config = encoder_decoder(29, source_vocab_size=31, dim=20, layers=1, heads=4)
    with pytest.raises(InputError, match="share_embeddings"):
        dataclasses.replace(config, share_embeddings=True)


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (AttentionConfig(4, rope=Rope(width=7)), "pairs of a head's 5 dimensions, not 7"),
        (AttentionConfig(4, rope=Rope()), "pairs of a head's 5 dimensions, not 5"),
        (LatentAttentionConfig(4, qk_rope_head_dim=0, rope=Rope()), "pairs of a head's 0 dimensions, not 0"),
    ],
)
def test_rotary_positions_need_pairs(attention: AnyAttentionConfig, message: str) -> None:
    decoder = StackConfig(EmbeddingConfig(29), (BlockConfig(attention),), None)
    with pytest.raises(InputError, match=message):
        TransformerConfig(20, decoder=decoder)


def test_cross_attention_has_no_rotary_positions() -> None:
    with pytest.raises(InputError, match="cross-attention needs rope=None"):
        dataclasses.replace(BOTH, decoder=stack(ATTENTION, SinusoidalPositions()))
