"""Element-wise non-linearities by the names that checkpoints use."""

import functools
from collections.abc import Callable
from typing import Literal

import jax

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "tanh", "relu2"]

# "gelu" is x * Phi(x) with the exact error function, as in PyTorch; jax.nn.gelu alone would be the tanh approximation.
ACTIVATIONS: dict[Activation, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # Hendrycks and Gimpel 2016
    "tanh": jax.numpy.tanh,
    "relu2": lambda x: jax.numpy.square(jax.nn.relu(x)),  # So et al. 2021
}
