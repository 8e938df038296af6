"""Low-rank adapters of checkpoints (LoRA, Hu et al. 2021, section 4.1), in the files of the package peft.

An adapter has two factors for each matrix W of the checkpoint that it changes: W + scale B A. `apply` makes the changed
model, under `jax.jit` as well, so that a training step differentiates it by the factors and nothing else changes. The
table of the family's weights says which of our parameters a matrix of the checkpoint contains: where queries, keys and
values share one (GPT-2), they share A, as in peft.

    adapter = lora.init(lm, lora.LoraConfig(rank=8, alpha=16, targets=("q_proj", "v_proj")), key=jax.random.key(0))
    gradient = jax.grad(lambda adapter: loss(lora.apply(lm.model, adapter), batch))(adapter)
    lora.save(adapter, "my-adapter")
"""

import dataclasses
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer import schema
from jaxformer.errors import InputError, listed
from jaxformer.layers import Linear
from jaxformer.layers.experts import Experts
from jaxformer.model import Transformer
from jaxformer.pretrained.bundle import Pretrained
from jaxformer.pretrained.families import family_of
from jaxformer.pretrained.files import Arrays, read_shard, write_json, write_tensors
from jaxformer.pretrained.layout import StoredTensor
from jaxformer.pretrained.saving import replacing
from jaxformer.pretrained.weights import owner, stored_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HEADS = {("head", "output"), ("head", "hidden")}  # of the vocabulary and of classes: peft leaves them out, too
START = "base_model.model."  # of every name in peft's files
ALL = "all-linear"
# What peft calls the tasks of classes. Of SEQ_CLS it expects that the classifier is in the file, too.
TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "MTModel": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS",
}
NOT_USED = schema.Field(None, "null or empty: nothing else is supported", lambda value: not value)
SCHEMA: schema.Schema = {
    "peft_type": schema.only("LORA"),
    "r": schema.count(8, 65_536),
    "lora_alpha": schema.number(8.0),
    "target_modules": schema.Field(None, "a string or a list of strings", lambda value: is_targets(value)),
    "base_model_name_or_path": schema.text(None),
    "use_rslora": schema.flag(False),
    "fan_in_fan_out": schema.flag(False),
    "bias": schema.only("none"),
    "modules_to_save": schema.list_of(schema.text(""), None, most=64),
    **dict.fromkeys(("use_dora", "lora_bias", "target_parameters", "trainable_token_indices"), NOT_USED),
    **dict.fromkeys(("layer_replication", "rank_pattern", "alpha_pattern", "alora_invocation_tokens"), NOT_USED),
}


@dataclass(frozen=True)
class LoraConfig:
    """Settings of an adapter.

    Attributes:
        rank: Number r of columns of B and rows of A.
        alpha: The scale is alpha / rank.
        targets: Names of modules in the checkpoint that are changed ("q_proj"), or their ends with more of the path
            ("self_attn.q_proj"); or one regular expression on whole names. "all-linear": all that can be changed, see
            `adaptable`.
        use_rslora: Whether the scale is alpha / sqrt(rank) (Kalajdzievski 2023).
        modules_to_save: Modules of the checkpoint that are trained as a whole and saved with the adapter, for example a
            new "classifier".
    """

    rank: int = 8
    alpha: float = 8.0
    targets: str | tuple[str, ...] = ALL
    use_rslora: bool = False
    modules_to_save: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an impossible rank, and no targets."""
        if not (schema.is_integer(self.rank) and self.rank >= 1):
            raise InputError(f"rank={self.rank!r} must be a whole number of at least 1")
        if not schema.is_number(self.alpha):
            raise InputError(f"alpha={self.alpha!r} must be a number")
        if not is_targets(self.targets):
            raise InputError(f"targets={schema.shown(self.targets)} must be names of modules, or {ALL!r}")
        if self.modules_to_save and (isinstance(self.modules_to_save, str) or not is_targets(self.modules_to_save)):
            raise InputError(f"modules_to_save={schema.shown(self.modules_to_save)} must be several names of modules")
        if isinstance(self.targets, str):
            try:
                re.compile(self.targets)
            except re.error as error:
                raise InputError(f"targets={schema.shown(self.targets)} is no regular expression: {error}") from None
        for name in ("targets", "modules_to_save"):  # hashable, as settings of compiled programs are
            value = getattr(self, name)
            object.__setattr__(self, name, value if isinstance(value, str) else tuple(value))

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    def matches(self, module: str) -> bool:
        """Return whether a module of the checkpoint is among the targets, as in peft."""
        if isinstance(self.targets, str):
            return self.targets == ALL or re.fullmatch(self.targets, module) is not None
        return any(module == target or module.endswith(f".{target}") for target in self.targets)


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


@dataclass(frozen=True)
class Target:
    """A matrix of the checkpoint that can be changed.

    Attributes:
        module: Name of the module in the checkpoint.
        tensor: Its tensor, and our parameters in it.
        inputs_first: Whether the tensor is [inputs, outputs].
    """

    module: str
    tensor: StoredTensor
    inputs_first: bool

    @property
    def sizes(self) -> tuple[int, int]:
        """Numbers of outputs and inputs."""
        first, second = self.tensor.shape
        return (second, first) if self.inputs_first else (first, second)


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
    """Return the model with the adapter's changes: W + scale B A in place of each W, and modules that it saved.

    Args:
        model: The model that the adapter was made for.
        adapter: The adapter.
    """
    graphdef, state = nnx.split(model)
    variables = dict(nnx.to_flat_state(state))
    for target in adapter.targets:
        factors = adapter.factors[target.module]
        change = adapter.config.scale * (factors.B @ factors.A)  # [outputs, inputs]
        parts = target.tensor.layout.split(change.T if target.inputs_first else change, target.tensor.shapes)
        for path, part in zip(target.tensor.paths, parts, strict=True):
            if path not in variables or variables[path].shape != part.shape:
                raise InputError(f"the adapter is of another model: this one has no such {'.'.join(map(str, path))}")
            weight = variables[path][...]
            variables[path] = variables[path].replace(weight + part.astype(weight.dtype))
    for tensor in adapter.replaced:
        parts = tensor.layout.split(adapter.saved[tensor.name], tensor.shapes)
        for path, part in zip(tensor.paths, parts, strict=True):
            variables[path] = variables[path].replace(part.astype(variables[path][...].dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(list(variables.items())))


def merge(lm: Pretrained, adapter: Adapter) -> Pretrained:
    """Return a checkpoint with the adapter's changes in its weights, to be used and saved like any other."""
    return dataclasses.replace(lm, model=jax.jit(apply)(lm.model, adapter))


def save(adapter: Adapter, folder: str | Path, *, base: str | Path | None = None) -> None:
    """Write a folder that `load` and peft open.

    Args:
        adapter: The adapter.
        folder: The folder to write.
        base: Folder or hub id of the base model, which the file then names. None: the file names none.

    Raises:
        InputError: A file has the name of the folder.
        OSError: The files cannot be written. The folder is as it was.
    """
    folder, config = Path(folder), adapter.config
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder to save to")
    targets = config.targets
    about = dict(adapter.about) | {
        "peft_type": "LORA",
        "base_model_name_or_path": None if base is None else str(base),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "target_modules": [target.module for target in adapter.targets] if targets == ALL else targets,
        "use_rslora": config.use_rslora,
        "bias": "none",
        "modules_to_save": list(config.modules_to_save) or None,
        "inference_mode": True,
    }
    tensors: Arrays = {START + name: np.asarray(array) for name, array in adapter.saved.items()}
    for module, factors in adapter.factors.items():
        name = f"{START}{module}.lora"
        tensors |= {f"{name}_A.weight": np.asarray(factors.A), f"{name}_B.weight": np.asarray(factors.B)}
    with replacing(folder, []) as new:
        write_json(new / CONFIG, about)
        write_tensors(new, tensors, WEIGHTS)


def load(folder: str | Path, lm: Pretrained) -> Adapter:
    """Return the adapter in a folder, as peft or `save` wrote it.

    Args:
        folder: The folder.
        lm: The model that the adapter is for.

    Raises:
        InputError: The adapter is damaged, uses what is not supported, or is of another model.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / CONFIG):
        raise InputError(f"{folder} has no {CONFIG}: give the folder of an adapter")
    with schema.located(folder / CONFIG):
        found = schema.read(schema.load_json(folder / CONFIG), SCHEMA)
        if found["target_modules"] is None:
            raise InputError("target_modules must name the modules that are changed")
        names = found["target_modules"]
        names = names if isinstance(names, str) else tuple(names)
        whole = tuple(found["modules_to_save"] or ())
        config = LoraConfig(found["r"], found["lora_alpha"], names, found["use_rslora"], whole)
    tensors = read_shard(folder / WEIGHTS)
    with schema.located(folder):
        return from_tensors(lm, config, tensors)


def from_tensors(lm: Pretrained, config: LoraConfig, tensors: Arrays) -> Adapter:
    """Return the adapter with these tensors of peft's names. Raises InputError where they are not the model's."""
    replaced = replaced_tensors(lm, config)
    saved = {tensor.name: take(tensors, START + tensor.name, tensor.shape) for tensor in replaced}
    known = {START + target.module: target for target in adaptable(lm)}
    names = tensors.keys() - {START + name for name in saved}
    modules = sorted({re.sub(r"\.lora_[AB]\.weight$", "", name) for name in names})
    if unknown := [module for module in modules if module not in known]:
        raise InputError(f"the adapter is of another model: this one has no matrix for {listed(unknown)}")
    if not modules:
        raise InputError(f"{WEIGHTS} has no factors")
    factors = {}
    for module in modules:
        outputs, inputs = known[module].sizes
        shapes = {"A": (config.rank, inputs), "B": (outputs, config.rank)}
        pair = {part: take(tensors, f"{module}.lora_{part}.weight", shape) for part, shape in shapes.items()}
        factors[known[module].module] = Factors(**pair)
    chosen = tuple(known[module] for module in modules)
    return Adapter(factors, saved, config, chosen, replaced, about_base(lm, config, chosen))


def take(tensors: Arrays, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Return a tensor in float32. Raises InputError where it is missing or another one."""
    if name not in tensors:
        raise InputError(f"missing {name}")
    if tensors[name].shape != shape or not jnp.issubdtype(tensors[name].dtype, jnp.floating):
        raise InputError(f"{name} is {tensors[name].dtype}{list(tensors[name].shape)}, expected {list(shape)}")
    return jnp.array(tensors[name], jnp.float32)


def replaced_tensors(lm: Pretrained, config: LoraConfig) -> tuple[StoredTensor, ...]:
    """Return the tensors of `modules_to_save`, named as in the base model's class.

    Files name modules that other models have, too: peft always has "score" beside "classifier".

    Raises:
        InputError: A module has experts with tensors of their own.
    """
    table = family_of(lm.settings).table(lm.model.config)
    bare = "" if lm.model.head is not None else table.prefix
    found = []
    for tensor in stored_tensors(lm.model, table) if config.modules_to_save else ():
        name = tensor.name.removeprefix(bare)
        if any(f".{module}." in f".{name}" for module in config.modules_to_save):
            found.append(dataclasses.replace(tensor, name=name))
    if any(tensor.experts is not None for tensor in found):
        raise InputError("modules_to_save names experts, which is not supported")
    return tuple(found)


def adaptable(lm: Pretrained) -> Iterator[Target]:
    """Yield the matrices of a checkpoint that can be changed: linear maps that are one tensor, without the head's.

    In models with experts these are the matrices of attention: peft takes the names of others for those of experts.

    Raises:
        InputError: The weights are of 8 bits.
    """
    if any(leaf.dtype == np.int8 for leaf in jax.tree.leaves(lm.model)):
        raise InputError("weights of 8 bits cannot be adapted: use the model that they were made of")
    table = family_of(lm.settings).table(lm.model.config)
    mixtures = any(isinstance(part, Experts) for _, part in nnx.iter_modules(lm.model))
    for tensor in stored_tensors(lm.model, table):
        path = tensor.paths[0]
        module = owner(lm.model, path)
        matrix = isinstance(module, Linear) and path[-1] == "weight" and path[:2] not in HEADS
        if matrix and not (mixtures and "feed_forward" in path):
            name = tensor.name.removesuffix(".weight")
            name = name if lm.model.head is not None else name.removeprefix(table.prefix)
            yield Target(name, tensor, tensor.layout.groups[0][0] < len(module.inputs))


def chosen_targets(lm: Pretrained, config: LoraConfig) -> tuple[Target, ...]:
    """Return the targets of an adapter. Raises InputError where one matches nothing."""
    known = list(adaptable(lm))
    if config.targets == ALL:
        return tuple(known)
    for one in [config.targets] if isinstance(config.targets, str) else config.targets:
        alone = dataclasses.replace(config, targets=one if isinstance(config.targets, str) else (one,))
        if not any(alone.matches(target.module) for target in known):
            ends = sorted({target.module.rpartition(".")[2] for target in known})
            raise InputError(f"the target {schema.shown(one)} matches nothing: there are {listed(ends)}")
    return tuple(target for target in known if config.matches(target.module))


def about_base(lm: Pretrained, config: LoraConfig, targets: tuple[Target, ...]) -> tuple[tuple[str, Any], ...]:
    """Return the keys of `adapter_config.json` that come from the base model."""
    architecture = next(iter(lm.settings.get("architectures") or ()), "")
    task = next((task for end, task in TASKS.items() if architecture.endswith(end)), None)
    return (
        ("task_type", None if task == "SEQ_CLS" and not config.modules_to_save else task),
        ("fan_in_fan_out", any(target.inputs_first for target in targets)),
    )


def is_targets(value: Any) -> bool:
    """Return whether a value is a name, or several."""
    several = isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) and one for one in value)
    return several or (isinstance(value, str) and bool(value))
