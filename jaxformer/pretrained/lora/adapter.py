"""Low-rank changes of a model: made, applied, merged."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer import schema
from jaxformer.errors import InputError
from jaxformer.layers import AdaptedLinear, LinearMap, QuantizedLinear
from jaxformer.model import Transformer
from jaxformer.pretrained.bundle import Pretrained
from jaxformer.pretrained.layout import StoredTensor
from jaxformer.pretrained.lora.config import LoraConfig
from jaxformer.pretrained.lora.targets import Target, about_base, chosen_targets, replaced_tensors
from jaxformer.pretrained.weights import ParameterPath, owner


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factors:
    """The change of one matrix [outputs, inputs] of the checkpoint: scale B A.

    Attributes:
        A: Float32 [rank, inputs].
        B: Float32 [outputs, rank].
    """

    A: jax.Array
    B: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Adapter:
    """Low-rank changes of a model: a pytree whose leaves are what is trained.

    Attributes:
        factors: Factors by the name of the module in the checkpoint.
        saved: Tensors of `modules_to_save`, by their names in the checkpoint.
        config: The settings.
        targets: The changed matrices.
        replaced: The tensors in whose place `saved` is.
        about: Keys of `adapter_config.json` that come from the base model, as pairs.
    """

    factors: dict[str, Factors]
    saved: dict[str, jax.Array]
    config: LoraConfig = dataclasses.field(metadata={"static": True})
    targets: tuple[Target, ...] = dataclasses.field(metadata={"static": True})
    replaced: tuple[StoredTensor, ...] = dataclasses.field(metadata={"static": True})
    about: tuple[tuple[str, Any], ...] = dataclasses.field(metadata={"static": True})


def init(lm: Pretrained, config: LoraConfig | None = None, *, key: jax.Array) -> Adapter:
    """Return a new adapter, which changes nothing yet: A is drawn, B is zero.

    Args:
        lm: The model to be adapted.
        config: The settings. None: the defaults.
        key: Key of `jax.random` for A, uniform within 1 / sqrt(inputs), as in peft.

    Raises:
        InputError: A target matches no matrix of the checkpoint.
    """
    config = config or LoraConfig()
    chosen = chosen_targets(lm, config)
    factors = {}
    for target, one in zip(chosen, jax.random.split(key, len(chosen)), strict=True):
        outputs, inputs = target.sizes
        bound = inputs**-0.5
        a = jax.random.uniform(one, (config.rank, inputs), jnp.float32, -bound, bound)
        factors[target.module] = Factors(a, jnp.zeros((outputs, config.rank)))
    values, replaced = dict(nnx.to_flat_state(nnx.state(lm.model))), replaced_tensors(lm, config)
    for module in config.modules_to_save:
        if not any(f".{module}." in f".{tensor.name}" for tensor in replaced):
            raise InputError(f"modules_to_save names {schema.shown(module)}, which the model does not have")
    saved = {
        name: jnp.array(array)
        for tensor in replaced
        for name, array in tensor.write([np.asarray(values[path][...]) for path in tensor.paths]).items()
    }
    return Adapter(factors, saved, config, chosen, replaced, about_base(lm, config, chosen))


def apply(model: Transformer, adapter: Adapter) -> Transformer:
    """Return the model with the adapter: x W + scale (x A^T) B^T in place of each x W, and modules that it saved.

    Weights stay as they are, in full or in 8 bits: a gradient of the factors needs none of theirs.

    Args:
        model: The model that the adapter was made for, or its int8 copy.
        adapter: The adapter.

    Raises:
        InputError: The adapter is of another model.
    """
    model = nnx.clone(model)
    for target in adapter.targets:
        A, Bs = factors_of(target, adapter.factors[target.module])
        for (path, linear), B in zip(linears_of(model, target), Bs, strict=True):
            setattr(owner(model, path[:-1]), str(path[-2]), AdaptedLinear(linear, A, adapter.config.scale * B))
    put_saved(model, adapter)
    return model


def add(model: Transformer, adapter: Adapter) -> Transformer:
    """Return the model with the adapter in its weights: W + scale B A in place of each W, and modules that it saved.

    Args:
        model: The model that the adapter was made for.
        adapter: The adapter.

    Raises:
        InputError: The adapter is of another model.
    """
    model = nnx.clone(model)
    for target in adapter.targets:
        factors, tensor = adapter.factors[target.module], target.tensor
        change = adapter.config.scale * (factors.B @ factors.A)  # [outputs, inputs]
        parts = tensor.layout.split(turned(target, change), tensor.shapes)
        for (_, linear), part in zip(linears_of(model, target), parts, strict=True):
            linear.weight[...] += part.astype(linear.weight.dtype)
    put_saved(model, adapter)
    return model


def merge(lm: Pretrained, adapter: Adapter) -> Pretrained:
    """Return a checkpoint with the adapter's changes in its weights, to be used and saved like any other.

    Raises:
        InputError: The adapter is of another model, or the weights have 8 bits, in which the changes would be lost.
    """
    if any(isinstance(part, QuantizedLinear) for _, part in nnx.iter_modules(lm.model)):
        raise InputError("weights of 8 bits have no room for a change: merge it with the model that they were made of")
    return dataclasses.replace(lm, model=jax.jit(add)(lm.model, adapter))


def linears_of(model: Transformer, target: Target) -> list[tuple[ParameterPath, Any]]:
    """Return the linear maps that a matrix consists of, with the paths of their weights.

    Raises:
        InputError: The model has no such maps.
    """
    found = []
    for path, shape in zip(target.tensor.paths, target.tensor.shapes, strict=True):
        try:
            linear = owner(model, path)
        except (AttributeError, IndexError):
            linear = None
        if not isinstance(linear, LinearMap) or (*linear.inputs, *linear.outputs) != shape:
            raise InputError(f"the adapter is of another model: this one has no such {'.'.join(map(str, path))}")
        found.append((path, linear))
    return found


def factors_of(target: Target, factors: Factors) -> tuple[jax.Array, list[jax.Array]]:
    """Return factors of the products with activations: A [I, r], and B [r, O] of each of our parameters in a matrix.

    The layout of the matrix says where the inputs and outputs of each parameter are: it takes factors apart like a
    matrix whose other axes are all of the rank.
    """
    layout, shapes, rank = target.tensor.layout, target.tensor.shapes, factors.A.shape[0]
    inputs = target.input_axes
    ones = (1,) * (len(shapes[0]) - 1)
    (A,) = layout.split(turned(target, factors.A), [(*shapes[0][:inputs], rank, *ones[inputs:])])
    Bs = layout.split(turned(target, factors.B), [(rank, *ones[: inputs - 1], *shape[inputs:]) for shape in shapes])
    return A.reshape(-1, rank), [B.reshape(rank, -1) for B in Bs]


def turned(target: Target, matrix: jax.Array) -> jax.Array:
    """Return a matrix [outputs, inputs] as the checkpoint has it."""
    return matrix.T if target.inputs_first else matrix


def put_saved(model: Transformer, adapter: Adapter) -> None:
    """Put the modules that an adapter saved into a model."""
    for tensor in adapter.replaced:
        parts = tensor.layout.split(adapter.saved[tensor.name], tensor.shapes)
        for path, part in zip(tensor.paths, parts, strict=True):
            variable = getattr(owner(model, path), str(path[-1]))
            variable[...] = part.astype(variable.dtype)
