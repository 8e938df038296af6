"""Checkpoint folders of Hugging Face: a function from their configuration to ours and a table of weight names each."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tokenizers

from jaxformer.decode import GenerationConfig
from jaxformer.errors import InputError
from jaxformer.model import Transformer
from jaxformer.pretrained.bundle import Output, Pretrained
from jaxformer.pretrained.export import as_pretrained
from jaxformer.pretrained.families import FAMILIES, family_of
from jaxformer.pretrained.files import FLAX, read_json, read_tensors, replacing, write_json, write_tensors
from jaxformer.pretrained.stored import as_stored
from jaxformer.pretrained.weights import build, named, tensors_of

__all__ = ["FAMILIES", "Output", "Pretrained", "as_pretrained", "from_pretrained", "save_pretrained"]

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")  # what belongs to it
DEFAULTS = asdict(GenerationConfig())


def from_pretrained(name: str | Path, *, dtype: Any = None, revision: str | None = None) -> Pretrained:
    """The model in a folder as transformers writes it: config.json, safetensors files, tokenizer.json.

    name: the folder, or the id of a repository on the Hugging Face hub ("openai-community/gpt2"), which is fetched with
    the package huggingface_hub, at a `revision` of it if one is given. dtype: the type that weights are brought to
    ("bfloat16", `jnp.float32`); by default they keep that of the file. Raises InputError for a family or a setting that
    is not supported, and for weights that do not fit.
    """
    folder = Path(name) if Path(name).is_dir() else fetched(str(name), revision)
    hf = read_json(folder / "config.json")
    family = family_of(hf)
    config = family.config(hf)
    table = family.table(config)
    tensors = named(read_tensors(folder), table)
    config = as_stored(config, tensors, family.table)
    table = family.table(config)
    model = build(config, tensors, table, dtype)
    settings, vocabulary = folder / "generation_config.json", folder / TOKENIZER
    return Pretrained(
        model,
        read_tokenizer(vocabulary, model) if vocabulary.exists() else None,
        generation_config(read_json(settings) if settings.exists() else hf),
        hf,
        {name: np.array(tensor) for name, tensor in tensors.items() if re.fullmatch(table.kept, name)},
        {name: (folder / name).read_text() for name in TOKENIZER_FILES if (folder / name).exists()},
    )


def save_pretrained(pretrained: Pretrained, folder: str | Path) -> None:
    """Write a folder that `from_pretrained`, here and in transformers, opens to the same logits.

    Weights are written in the type that they have. Every file is complete before it takes its name, so that the folder
    that a model came from can be written over. Raises InputError where a file of that name stands, and for weights of 8
    bits.
    """
    if any(leaf.dtype == np.int8 for leaf in jax.tree.leaves(pretrained.model)):
        raise InputError("weights of 8 bits are not written: save the model that they were made of")
    folder, dtype = Path(folder), pretrained.model.embedding.table[...].dtype
    hf = pretrained.settings | {"dtype": str(dtype)}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: give a folder to save to")
    table = family_of(hf).table(pretrained.model.config)
    generation = {name: value for name, value in asdict(pretrained.generation).items() if value != DEFAULTS[name]}
    with replacing(folder) as new:
        tensors = pretrained.kept | tensors_of(pretrained.model, table)
        if pretrained.model.head is None:  # the bare model has names without the prefix
            tensors = {name.removeprefix(table.prefix): tensor for name, tensor in tensors.items()}
        write_tensors(new, tensors)
        write_json(new / "config.json", hf)
        write_json(new / "generation_config.json", generation)
        if pretrained.tokenizer is not None:
            pretrained.tokenizer.save(str(new / TOKENIZER))
        for name, text in pretrained.files.items():
            (new / name).write_text(text)


def read_tokenizer(path: Path, model: Transformer) -> tokenizers.Tokenizer:
    """A tokenizer.json. Raises InputError if it is damaged or has tokens that the model has not."""
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no other type
        raise InputError(f"{path} is damaged: {error}") from None
    known = model.config.main.embedding.vocab_size
    most = max(tokenizer.get_vocab().values(), default=0) + 1
    if most > known:
        raise InputError(
            f"{path} has {most} tokens, but the model's embedding only {known}: they do not belong together"
        )
    return tokenizer


def fetched(name: str, revision: str | None) -> Path:
    """A copy of a repository of the hub in its cache. Raises InputError where it cannot be had."""
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"there is no folder {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"{name} is no folder here; to fetch it from the hub: pip install 'jaxformer[hub]'") from None
    small = ["*.json", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*small, FLAX]))
        return folder
    except Exception as error:  # no network, no such repository, no right to read it: the hub has many types
        raise InputError(
            f"{name} is no folder here, and the hub did not give it (is the name right, the network there?): "
            f"{first_line(error)}"
        ) from None


def first_line(error: Exception) -> str:
    """What went wrong, in a line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def generation_config(settings: dict) -> GenerationConfig:
    """The settings of a `generation_config.json` that we know; lists of token ids become tuples."""
    given = {name: value for name, value in settings.items() if name in DEFAULTS and value is not None}
    return GenerationConfig().replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
