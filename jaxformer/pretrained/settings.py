"""Reading a `config.json`: absent keys have the default of their class, unsupported values are named."""

from collections.abc import Mapping
from typing import Any

from jaxformer.errors import InputError
from jaxformer.ops.activations import Activation
from jaxformer.schema import Field, Schema, choice, list_of, read, shown

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
    "relu2": "relu2",
}
LAYER_TYPES = list_of(choice("full_attention", ("full_attention", "sliding_attention")), None, most=4096)


def activation_name(default: str | None) -> Field:
    """Declare the name of an activation that we have."""
    return choice(default, ACTIVATIONS)


def activation(hf: dict[str, Any], key: str) -> Activation:
    """Return our name of the activation under `key`."""
    return ACTIVATIONS[hf[key]]


def read_settings(hf: Mapping[str, Any], schema: Schema, aliases: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return a config.json with the defaults of absent keys.

    Args:
        hf: What the file holds.
        schema: What each key may hold.
        aliases: Other names under which transformers accepts a key, such as "hidden_size" for GPT-2's "n_embd".

    Raises:
        InputError: A value is not what its key may hold, or two names of one key contradict each other.
    """
    given = dict(hf)
    for alias, key in (aliases or {}).items():
        if alias not in given:
            continue
        if given[alias] != given.setdefault(key, given[alias]):
            raise InputError(
                f"{alias}={shown(given[alias])} contradicts {key}={shown(given[key])}, its other name: leave one out"
            )
    return read(given, schema)


def head_width(hf: dict[str, Any], width: str, heads: str) -> int:
    """Return the width of a head where no key gives it. Raises InputError where the heads do not divide the width."""
    if hf[width] % hf[heads]:
        raise InputError(f"{heads}={hf[heads]} does not divide {width}={hf[width]}")
    return hf[width] // hf[heads]


def check_divides(hf: dict[str, Any], part: str, whole: str) -> None:
    """Raise InputError unless the number under `part`, if there is one, divides the one under `whole`."""
    if hf[part] is not None and hf[whole] % hf[part]:
        raise InputError(f"{part}={hf[part]} does not divide {whole}={hf[whole]}")


def check_layer_types(hf: dict[str, Any], layers: str = "num_hidden_layers") -> None:
    """Raise InputError unless the file names the type of each layer, or of none."""
    types = hf.get("layer_types")
    if types is not None and len(types) != hf[layers]:
        raise InputError(f"layer_types names {len(types)} layers, but {layers}={hf[layers]}")
