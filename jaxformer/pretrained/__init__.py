"""Checkpoint folders of Hugging Face: a function from their configuration to ours and a table of weight names each."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import NamedTuple

from jaxformer.decode import GenerationConfig
from jaxformer.errors import InputError
from jaxformer.model import Transformer
from jaxformer.pretrained import bart
from jaxformer.pretrained.weights import build, read_json, read_tensors

FAMILIES = {"bart": bart.bart_config, "marian": bart.marian_config}


class Pretrained(NamedTuple):
    """A model and the settings that its folder gives for generation."""

    model: Transformer
    generation: GenerationConfig


def load(folder: str | Path) -> Pretrained:
    """The model in a folder that `save_pretrained` of transformers wrote: config.json and model.safetensors.

    Raises InputError for a family or a setting that is not supported, and for weights that do not fit.
    """
    folder = Path(folder)
    hf = read_json(folder / "config.json")
    if hf.get("model_type") not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"model_type {hf.get('model_type')!r} is not supported: known are {known}")
    config = FAMILIES[hf["model_type"]](hf)
    names = partial(bart.rename, config.share_embeddings)
    model = build(config, read_tensors(folder), names, bart.IGNORABLE)
    settings = folder / "generation_config.json"
    return Pretrained(model, generation_config(read_json(settings) if settings.exists() else hf))


def generation_config(settings: dict) -> GenerationConfig:
    """The settings of a `generation_config.json` that we know; lists of token ids become tuples."""
    known = {field.name for field in fields(GenerationConfig)}
    given = {name: value for name, value in settings.items() if name in known and value is not None}
    return GenerationConfig().replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
