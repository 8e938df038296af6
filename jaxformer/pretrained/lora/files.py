"""Adapters in the files of the package peft."""

import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import schema
from jaxformer.errors import InputError, listed
from jaxformer.pretrained.bundle import Pretrained
from jaxformer.pretrained.files import Arrays, read_shard, write_json, write_tensors
from jaxformer.pretrained.lora.adapter import Adapter, Factors
from jaxformer.pretrained.lora.config import ALL, LoraConfig, is_targets
from jaxformer.pretrained.lora.targets import about_base, adaptable, replaced_tensors
from jaxformer.pretrained.saving import replacing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
START = "base_model.model."  # of every name in peft's files
NOT_USED = schema.Field(None, "null or empty: nothing else is supported", lambda value: not value)
SCHEMA: schema.Schema = {
    "peft_type": schema.only("LORA"),
    "r": schema.count(8, 65_536),
    "lora_alpha": schema.number(8.0),
    "target_modules": schema.Field(None, "a string or a list of strings", is_targets),
    "base_model_name_or_path": schema.text(None),
    "use_rslora": schema.flag(False),
    "fan_in_fan_out": schema.flag(False),
    "bias": schema.only("none"),
    "modules_to_save": schema.list_of(schema.text(""), None, most=64),
    **dict.fromkeys(("use_dora", "lora_bias", "target_parameters", "trainable_token_indices"), NOT_USED),
    **dict.fromkeys(("layer_replication", "rank_pattern", "alpha_pattern", "alora_invocation_tokens"), NOT_USED),
}


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
