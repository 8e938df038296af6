"""Which arrays of a model training changes, and which stay as they are."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

Predicate = Callable[[tuple[Any, ...]], bool]


class Trainable(NamedTuple):
    """A model as training sees it.

    Attributes:
        params: The arrays that are trained, a pytree.
        frozen: The arrays that stay as they are, a pytree; None: there are none.
        assemble: (params, frozen) -> the model. Training differentiates it by params.
    """

    params: Any
    frozen: Any
    assemble: Callable[[Any, Any], Any]


def all_trainable(model: nnx.Module) -> Trainable:
    """Return a model of which all parameters are trained; arrays may be shapes and types."""
    graphdef, state = nnx.split(model)
    return Trainable(nnx.to_pure_dict(state), None, lambda params, _: nnx.merge(graphdef, params))


def partly_trainable(model: nnx.Module, frozen: Predicate) -> Trainable:
    """Return a model of which some parameters stay as they are; arrays may be shapes and types.

    Args:
        model: Any module.
        frozen: Whether a parameter of these names is frozen, for example `lambda path: path[0] == "embedding"`.
    """
    graphdef, still, trained = nnx.split(model, lambda path, _: frozen(path), ...)
    parts = (nnx.to_pure_dict(trained), nnx.to_pure_dict(still))
    return Trainable(*parts, lambda params, frozen: nnx.merge(graphdef, params, frozen))
