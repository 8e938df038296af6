"""Checkpoint folders of Hugging Face: a function from their configuration to ours and a table of weight names each."""

import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxformer import parallel, schema
from jaxformer.errors import InputError, shortened
from jaxformer.extras import require_extra
from jaxformer.generation import GenerationConfig
from jaxformer.pretrained import lora
from jaxformer.pretrained.bundle import Output, Pretrained
from jaxformer.pretrained.chat import chat_template
from jaxformer.pretrained.classifying import with_classifier
from jaxformer.pretrained.export import as_pretrained
from jaxformer.pretrained.families import FAMILIES, family_of
from jaxformer.pretrained.files import (
    FLAX,
    INDEX,
    SINGLE,
    old_weights,
    read_tensors,
    read_text,
    write_json,
    write_tensors,
)
from jaxformer.pretrained.saving import CONFIG, replacing
from jaxformer.pretrained.sentences import sentence_files, write_module_files
from jaxformer.pretrained.staging import PREFIX
from jaxformer.pretrained.stored import as_stored
from jaxformer.pretrained.tokens import read_tokenizer
from jaxformer.pretrained.weights import build, named, tensors_of

__all__ = [
    "FAMILIES",
    "Output",
    "Pretrained",
    "as_pretrained",
    "from_pretrained",
    "lora",
    "save_pretrained",
    "with_classifier",
]

GENERATION, TOKENIZER = "generation_config.json", "tokenizer.json"
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")  # what belongs to it
DEFAULTS = asdict(GenerationConfig())
DTYPES = ("float32", "bfloat16", "float16", "float64")
# What is read of a config.json here; families declare what they read.
SCHEMA = {
    "model_type": schema.text(None),
    "architectures": schema.list_of(schema.text(""), None, most=16),
    "transformers_weights": schema.Field(
        None, "null: rename the weights to model.safetensors", lambda value: value is None
    ),
    "max_position_embeddings": schema.count(None),
}


def from_pretrained(
    name: str | Path, *, dtype: Any = None, revision: str | None = None, mesh: Mesh | None = None
) -> Pretrained:
    """Return the model in a folder as transformers writes it: config.json, safetensors files, tokenizer.json.

    Of the folder of an adapter, as peft writes it, the base model that it names, with the adapter in its weights.

    Args:
        name: The folder, or the id of a repository on the Hugging Face hub ("openai-community/gpt2"), which is fetched
            with the package huggingface_hub.
        dtype: The type that weights are brought to ("bfloat16", `jnp.float32`). None: they keep that of the file.
        revision: The revision of a repository on the hub.
        mesh: Devices to divide the weights over, see `jaxformer.parallel`: each reads its part of the files. None: that
            of the innermost `parallel.using`, else the default device alone.

    Raises:
        InputError: The family or a setting is not supported, a file is damaged, or the weights do not fit.
    """
    folder, dtype = folder_of(name, revision), None if dtype is None else floating(dtype)
    mesh = mesh or parallel.current_mesh()
    if os.path.lexists(folder / lora.CONFIG) and not os.path.lexists(folder / CONFIG):
        lm = from_pretrained(base_of(folder), dtype=dtype, mesh=mesh)
        return lora.merge(lm, lora.load(folder, lm))
    for _ in range(3):
        before = state_of(folder)
        try:
            opened = open_folder(folder, dtype, mesh)
        except InputError:
            if state_of(folder) == before:
                raise
            continue
        if state_of(folder) == before:
            return opened
    raise InputError(f"{folder} changes while it is read: wait until whoever saves to it has finished")


def open_folder(folder: Path, dtype: np.dtype | None, mesh: Mesh | None) -> Pretrained:
    """Return the model in a folder. Raises as `from_pretrained`."""
    hf = read_config(folder)
    with schema.located(folder / CONFIG):
        family = family_of(hf)
        config = family.config(hf)
    tensors = {name: representable(tensor) for name, tensor in read_tensors(folder).items()}
    files = {name: read_text(folder / name) for name in TOKENIZER_FILES if os.path.lexists(folder / name)}
    files |= sentence_files(folder)
    with schema.located(folder):
        tensors = named(tensors, family.table(config))
        config = as_stored(config, tensors, family.table)
        table = family.table(config)
        model = build(config, tensors, table, dtype, mesh)
        chat_template(files)  # raises where its files are damaged
    settings, vocabulary = folder / GENERATION, folder / TOKENIZER
    return Pretrained(
        model,
        read_tokenizer(vocabulary, config.main.embedding.vocab_size) if os.path.lexists(vocabulary) else None,
        generation_config(settings if os.path.lexists(settings) else folder / CONFIG),
        hf,
        {name: np.array(tensor) for name, tensor in tensors.items() if re.fullmatch(table.kept, name)},
        files,
    )


def save_pretrained(pretrained: Pretrained, folder: str | Path) -> None:
    """Write a folder that `from_pretrained`, here and in transformers, opens to the same logits.

    Weights are written in the type that they have. At every moment, also after a kill, the folder opens as what it held
    before or as what is saved, see `replacing`; so the folder that a model came from can be written over. Other files
    stay, except an index and its weights.

    Args:
        pretrained: The model with its tokenizer, settings and further files.
        folder: Where to write; it is made if it does not exist.

    Raises:
        InputError: A file has the name of the folder, the folder's index is damaged, or the weights are of 8 bits.
        OSError: The files cannot be written, for example because the disk is full. The folder is as it was.
    """
    if any(leaf.dtype == np.int8 for leaf in jax.tree.leaves(pretrained.model)):
        raise InputError("weights of 8 bits are not written: save the model that they were made of")
    folder, dtype = Path(folder), pretrained.model.embedding.embedding[...].dtype
    hf = pretrained.settings | {"dtype": str(dtype)}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder to save to")
    table = family_of(hf).table(pretrained.model.config)
    with replacing(folder, old_weights(folder)) as new:
        tensors = pretrained.kept | tensors_of(pretrained.model, table)
        if pretrained.model.head is None:  # the bare model has names without the prefix
            tensors = {name.removeprefix(table.prefix): tensor for name, tensor in tensors.items()}
        write_tensors(new, tensors)
        write_json(new / CONFIG, hf)
        write_json(new / GENERATION, generation_settings(pretrained.generation))
        if pretrained.tokenizer is not None:
            (new / TOKENIZER).write_text(pretrained.tokenizer.to_str(pretty=True), encoding="utf-8")
        for name, text in pretrained.files.items():
            if "/" not in name:
                (new / name).write_text(text, encoding="utf-8")
    write_module_files(folder, pretrained.files)


def folder_of(name: str | Path, revision: str | None) -> Path:
    """Return the folder of that name, or one with what the hub has under it. Raises InputError where there is none."""
    folder = Path(name)
    try:
        if folder.is_dir():
            os.listdir(folder)
            return folder
        there = os.path.lexists(folder)
    except (OSError, ValueError) as error:
        problem = getattr(error, "strerror", None) or error
        raise InputError(f"{shortened(str(folder), 200)} cannot be read: {problem}") from None
    if there:
        raise InputError(f"{folder} is not a folder: give the folder that config.json is in")
    return fetched(str(name), revision)


def state_of(folder: Path) -> tuple[Any, ...]:
    """Return what tells whether somebody has saved to a folder meanwhile: another one stands there, or other files."""
    found: list[Any] = []
    for path in (folder, folder / CONFIG, folder / SINGLE, folder / INDEX):
        try:
            about = path.stat()
            found.append((about.st_dev, about.st_ino, path == folder or about.st_ctime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def base_of(folder: Path) -> str:
    """Return the name of the model that an adapter was made for. Raises InputError where its folder names none."""
    with schema.located(folder / lora.CONFIG):
        found = schema.load_json(folder / lora.CONFIG).get("base_model_name_or_path")
        if not (isinstance(found, str) and found):
            raise InputError("names no base model: open that, and give both to `jaxformer.lora.load`")
    if Path(found).is_dir() and not os.path.lexists(Path(found) / CONFIG):
        raise InputError(f"{folder} names {schema.shown(found)} as its base model, which has no config.json")
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """Return the object in a folder's config.json. Raises InputError where there is none."""
    if not os.path.lexists(folder / CONFIG):
        if any(folder.glob(f"{PREFIX}*")):
            raise InputError(f"{folder} has no {CONFIG}, because a save has not finished: wait for it, or save again")
        raise InputError(f"{folder} has no {CONFIG}: give a folder that `save_pretrained` wrote")
    hf = schema.load_json(folder / CONFIG)
    with schema.located(folder / CONFIG):
        schema.read(hf, SCHEMA)
    return hf


def floating(dtype: Any) -> np.dtype:
    """Return a type for weights. Raises InputError for what is no type of floating-point numbers, or is not enabled."""
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in DTYPES:
        raise InputError(f"dtype={dtype!r} is no type for weights: give one of {', '.join(DTYPES)}")
    if jax.dtypes.canonicalize_dtype(found) != found:
        raise InputError(f"dtype={found.name!r} needs jax.config.update('jax_enable_x64', True)")
    return found


def representable(tensor: np.ndarray) -> np.ndarray:
    """Return a tensor in the type that JAX gives it: float32 in place of float64, unless that is enabled."""
    return tensor.astype(jax.dtypes.canonicalize_dtype(tensor.dtype)) if tensor.dtype == np.float64 else tensor


def fetched(name: str, revision: str | None) -> Path:
    """Return a copy of a repository of the hub in its cache. Raises InputError where it cannot be had."""
    shown = shortened(name, 100)
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"there is no folder {shown}")
    require_extra("hub", f"{shown} is no folder here; to fetch it from the hub")
    from huggingface_hub import snapshot_download

    small = ["*.json", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, FLAX]))
        return folder
    except Exception as error:  # no network, no such repository, no right to read it: the hub has many types
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{shown} is no folder here, and the hub did not give it (is the name right, the network there?): "
            f"{shortened(first, 120)}"
        ) from None


def generation_config(path: Path) -> GenerationConfig:
    """Return those settings of a `generation_config.json` that we know; lists of token ids become tuples.

    Raises:
        InputError: A setting has a value that `GenerationConfig` refuses.
    """
    settings = schema.load_json(path)
    with schema.located(path):
        return generation_from(settings)


def generation_from(settings: Mapping[str, Any]) -> GenerationConfig:
    """Return those settings of a file that we know. Raises InputError as `generation_config`."""
    given = {name: value for name, value in settings.items() if name in DEFAULTS and value is not None}
    return GenerationConfig().replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def generation_settings(config: GenerationConfig) -> dict[str, Any]:
    """Return the settings that are not the defaults, as `generation_config` reads them."""
    given = {name: getattr(config, name) for name in DEFAULTS if getattr(config, name) != DEFAULTS[name]}
    return {name: list(value.items()) if isinstance(value, Mapping) else value for name, value in given.items()}
