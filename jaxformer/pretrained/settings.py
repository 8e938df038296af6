"""Reading a `config.json`: what is absent has the default of its class, what we do not support is named."""

from typing import Any

from jaxformer.errors import InputError
from jaxformer.ops.activations import Activation

ACTIVATIONS: dict[str, Activation] = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}


def activation(hf: dict[str, Any], key: str) -> Activation:
    """Our name of the activation under `key`. Raises InputError for one that we do not have."""
    if hf[key] not in ACTIVATIONS:
        raise InputError(f"{key}={hf[key]!r} is not supported: known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[hf[key]]


def require(hf: dict[str, Any], **supported: Any) -> None:
    """Raise InputError unless each of the keys that the file has holds the one value that we support."""
    for key, value in supported.items():
        if key in hf and hf[key] != value and not (value in (0, False) and not hf[key]):
            raise InputError(f"{key}={hf[key]!r} is not supported: only {key}={value!r} is")
