"""Kinds of variables beside `nnx.Param`, and the names of the leaves of a tree of parameters.

`nnx.Param` is what an optimizer updates, so that `nnx.state(model, nnx.Param)` and `nnx.Optimizer(..., wrt=nnx.Param)`
select what is trained. Every variable declares its axes by letters, one per axis, in its metadata `axes`: B batch,
D model width, N query heads, K key-value heads, H head width, F inner width, V vocabulary, E experts, R latent rank,
"_" any other.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.tree_util as tree_util
from flax import nnx

Name = str | int
Model = TypeVar("Model", bound=nnx.Module)


class RouterBias(nnx.Variable[jax.Array]):
    """A bias that corrects the choice of experts: it moves against their load, and has no gradient."""


class QuantizedWeight(nnx.Variable[jax.Array]):
    """Integers of a quantized weight, or their step sizes: for inference only."""


class Frozen(nnx.Variable[jax.Array]):
    """A parameter that is not trained: see `freeze`."""


class OneKey(nnx.Rngs):
    """In the place of `nnx.Rngs` where no number is ever drawn: it makes no new keys, which take most of the time."""

    def __init__(self) -> None:
        self.key = jax.random.key(0)

    def params(self) -> jax.Array:
        """Return always the same key."""
        return self.key


def parameter_path(path: tuple[Any, ...]) -> tuple[Name, ...]:
    """Return the names that lead to a parameter, such as ("decoder", "blocks", 0, "attention", "query", "weight").

    Args:
        path: Key path of a leaf, as `jax.tree_util.tree_map_with_path` gives it, of a module, an `nnx.State` or nested
            dictionaries: they differ in the types of keys, and in the attribute of the variable behind the name.
    """
    names = tuple(name_of(key) for key in path)
    inside = len(path) > 1 and isinstance(path[-1], tree_util.GetAttrKey) and names[-1] == "value"
    return names[:-1] if inside else names


def name_of(key: Any) -> Name:
    """Return the name or number of one key of a key path."""
    match key:
        case tree_util.DictKey(key=name) | tree_util.GetAttrKey(name=name) | tree_util.FlattenedIndexKey(key=name):
            return name
        case tree_util.SequenceKey(idx=index):
            return index
    return str(key)


def freeze(model: Model, frozen: Callable[[tuple[Any, ...]], bool]) -> Model:
    """Return a copy of the model in which some parameters are `Frozen` and no longer `nnx.Param`.

    A parameter that several modules share is frozen in all of them. `nnx.Optimizer(..., wrt=nnx.Param)` and
    `jaxformer.training.make_optimizer`, on a module or an `nnx.State`, leave frozen parameters as they are.

    Args:
        model: Any module.
        frozen: Whether to freeze the parameter of these names, for example
            `lambda path: path[0] == "embedding" or path[-1] == "scale"`.
    """
    model = nnx.clone(model)
    places = [
        (module, name, variable, (*path, int(name) if isinstance(module, nnx.List) else name))
        for path, module in nnx.iter_modules(model)
        for name, variable in vars(module).items()
        if isinstance(variable, nnx.Param)
    ]
    chosen = {id(variable): variable for _, _, variable, path in places if frozen(path)}
    made = {key: Frozen(variable[...], **variable.get_metadata()) for key, variable in chosen.items()}
    for module, name, variable, _ in places:
        if id(variable) in made:
            setattr(module, name, made[id(variable)])
    return model


def is_trained(params: Any) -> Any:
    """Return a tree of booleans: True at what an optimizer updates.

    Args:
        params: A module or an `nnx.State`, of which `nnx.Param` are; or nested dictionaries, of which all leaves are.
    """

    def of_variable(part: Any) -> Any:
        trained = isinstance(part, nnx.Param) or not isinstance(part, nnx.Variable)
        return jax.tree.map(lambda _: trained, part)

    return jax.tree.map(of_variable, params, is_leaf=lambda part: isinstance(part, nnx.Variable))
