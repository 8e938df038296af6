"""Configurations as plain dictionaries, and back."""

import dataclasses
import re
from typing import Any, get_type_hints

from jaxformer.config.attention import (
    AttentionConfig,
    LatentAttentionConfig,
    LayerNormConfig,
    RMSNormConfig,
)
from jaxformer.config.heads import (
    ClassifierConfig,
    DiscriminatorConfig,
    EndOfText,
    HeadConfig,
    LastToken,
    SpanConfig,
    TokenClassifierConfig,
)
from jaxformer.config.layers import (
    BlockConfig,
    FeedForwardConfig,
    MoEConfig,
    SigmoidRouter,
    SoftmaxRouter,
    TransformConfig,
)
from jaxformer.config.model import EmbeddingConfig, ShiftedInputs, StackConfig, TransformerConfig
from jaxformer.config.positions import (
    AlibiPositions,
    DynamicScaling,
    LearnedPositions,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    NonPadPositions,
    RelativePositions,
    Rope,
    SinusoidalPositions,
    YarnScaling,
)
from jaxformer.errors import InputError, listed, shortened
from jaxformer.schema import conforms, shown

CONFIGS = (
    LayerNormConfig,
    RMSNormConfig,
    LearnedPositions,
    SinusoidalPositions,
    AlibiPositions,
    RelativePositions,
    NonPadPositions,
    LinearScaling,
    DynamicScaling,
    Llama3Scaling,
    YarnScaling,
    LongRopeScaling,
    Rope,
    AttentionConfig,
    LatentAttentionConfig,
    FeedForwardConfig,
    SoftmaxRouter,
    SigmoidRouter,
    MoEConfig,
    BlockConfig,
    EmbeddingConfig,
    StackConfig,
    TransformConfig,
    HeadConfig,
    LastToken,
    EndOfText,
    ClassifierConfig,
    TokenClassifierConfig,
    SpanConfig,
    DiscriminatorConfig,
    ShiftedInputs,
    TransformerConfig,
)


def to_dict(config: Any) -> Any:
    """Return `config` as plain dictionaries, lists and numbers for JSON.

    Args:
        config: A configuration. Each dictionary names its class under "type".
    """
    if dataclasses.is_dataclass(config):
        fields = {field.name: to_dict(getattr(config, field.name)) for field in dataclasses.fields(config)}
        return {"type": type(config).__name__, **fields}
    if isinstance(config, tuple):
        return [to_dict(item) for item in config]
    return config


def from_dict(data: Any, classes: tuple[type, ...] = CONFIGS) -> Any:
    """Return the configuration that `to_dict` turned into `data`.

    Args:
        data: Dictionaries, lists and numbers as JSON gives them.
        classes: The classes that may occur.

    Raises:
        InputError: A class or a field is unknown, or a value is not of the type of its field.
    """
    if isinstance(data, list):
        return tuple(from_dict(item, classes) for item in data)
    if not isinstance(data, dict):
        return data
    values = {key: from_dict(value, classes) for key, value in data.items() if key != "type"}
    known = {config.__name__: config for config in classes}
    if not isinstance(data.get("type"), str) or data["type"] not in known:
        raise InputError(
            f"unknown configuration type {shortened(repr(data.get('type')), 60)}: known are {listed(known)}"
        )
    for name, hint in get_type_hints(known[data["type"]]).items():
        if name in values and not conforms(values[name], hint):
            raise InputError(f"{data['type']}.{name}={shown(data[name])} must be {expected(hint)}")
    try:
        return known[data["type"]](**values)
    except TypeError as error:
        raise InputError(f"cannot build {data['type']}: {error}") from error


def expected(hint: Any) -> str:
    """Return an annotated type in words that continue "must be"."""
    words = {"int": "a whole number of at least 0", "float": "a number", "bool": "true or false", "str": "a string"}
    name = hint.__name__ if isinstance(hint, type) else re.sub(r"\b(\w+\.)+", "", str(hint))
    return shortened(re.sub(r"\b(int|float|bool|str)\b", lambda found: words[found[0]], name), 120)
