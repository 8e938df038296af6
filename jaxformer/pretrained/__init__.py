"""Checkpoint folders of Hugging Face: a function from their configuration to ours and a table of weight names each."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.config import TransformerConfig
from jaxformer.decode import GenerationConfig
from jaxformer.errors import InputError
from jaxformer.model import Transformer
from jaxformer.pretrained import bart, gpt2, llama
from jaxformer.pretrained.files import read_json, read_tensors
from jaxformer.pretrained.weights import WeightTable, build


class Family(NamedTuple):
    """How a `config.json` becomes our configuration, and where the weights of such a model are."""

    config: Callable[[dict[str, Any]], TransformerConfig]
    table: Callable[[TransformerConfig], WeightTable]


FAMILIES = {
    "bart": Family(bart.bart_config, bart.bart_table),
    "gpt2": Family(gpt2.gpt2_config, gpt2.gpt2_table),
    "llama": Family(llama.llama_config, llama.llama_table),
    "marian": Family(bart.marian_config, bart.bart_table),
    "mistral": Family(llama.mistral_config, llama.llama_table),
    "qwen2": Family(llama.qwen2_config, llama.llama_table),
    "qwen3": Family(llama.qwen3_config, llama.llama_table),
}


class Pretrained(NamedTuple):
    """A model and the settings that its folder gives for generation."""

    model: Transformer
    generation: GenerationConfig


def load(folder: str | Path) -> Pretrained:
    """The model in a folder that `save_pretrained` of transformers wrote: config.json and safetensors files.

    Raises InputError for a family or a setting that is not supported, and for weights that do not fit.
    """
    folder = Path(folder)
    hf = read_json(folder / "config.json")
    if hf.get("model_type") not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise InputError(f"model_type {hf.get('model_type')!r} is not supported: known are {known}")
    family = FAMILIES[hf["model_type"]]
    config = family.config(hf)
    model = build(config, read_tensors(folder), family.table(config))
    settings = folder / "generation_config.json"
    return Pretrained(model, generation_config(read_json(settings) if settings.exists() else hf))


def generation_config(settings: dict) -> GenerationConfig:
    """The settings of a `generation_config.json` that we know; lists of token ids become tuples."""
    known = {field.name for field in fields(GenerationConfig)}
    given = {name: value for name, value in settings.items() if name in known and value is not None}
    return GenerationConfig().replace(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})
