"""The folders of sentence-transformers: which state is a sentence's vector, and what stands before a sentence."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer import schema
from jaxformer.errors import InputError, listed
from jaxformer.pretrained.encoders import Pooling
from jaxformer.pretrained.files import read_text

MODULES, PROMPTS, LENGTH = "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"
# How files call a pooling, as flags and by its name.
POOLED: dict[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
NAMED: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
LENGTH_SCHEMA = {"max_seq_length": schema.count(None), "do_lower_case": schema.only(False)}
PROMPT_SCHEMA = {"prompts": schema.mapping(), "default_prompt_name": schema.text(None)}


class Sentences(NamedTuple):
    """How a folder makes a vector of a sentence.

    Attributes:
        pooling: Which state of the sentence's tokens.
        normalize: Whether vectors have length 1.
        prompts: Texts before a sentence, by name.
        prompt: The name of the one that is used where none is asked for. None: none.
        max_length: The most tokens of a sentence. None: as many as the model has positions.
        without_prompt: Whether the tokens of a prompt are left out of the vector.
    """

    pooling: Pooling = "mean"
    normalize: bool = False
    prompts: Mapping[str, str] = {}
    prompt: str | None = None
    max_length: int | None = None
    without_prompt: bool = False

    def before(self, prompt: str | None, prompt_name: str | None) -> str:
        """Return the text before every sentence.

        Args:
            prompt: The text itself. None: one of the folder's.
            prompt_name: The name of one of the folder's. None: the one that the folder names for this, if any.

        Raises:
            InputError: Both are given, or the folder has no prompt of that name.
        """
        if prompt is not None and prompt_name is not None:
            raise InputError("give prompt or prompt_name, not both")
        name = self.prompt if prompt_name is None else prompt_name
        if prompt is None and name is not None:
            if name not in self.prompts:
                known = f"there are {listed(sorted(self.prompts))}" if self.prompts else "the folder has none"
                raise InputError(f"no prompt {schema.shown(name)}: {known}")
            prompt = self.prompts[name]
        if prompt and self.without_prompt:
            raise InputError("the folder leaves prompts out of vectors (include_prompt=false), which is not supported")
        return prompt or ""


def sentence_files(folder: Path) -> dict[str, str]:
    """Return the texts of a folder's files of sentence-transformers, by name; none where it has no modules.json.

    What is wrong in them matters to `sentences_of` alone. Raises InputError where one cannot be read.
    """
    if not os.path.lexists(folder / MODULES):
        return {}
    found = {name: read_text(folder / name) for name in (MODULES, PROMPTS, LENGTH) if os.path.lexists(folder / name)}
    with suppress(InputError):
        names = [f"{path}/config.json" for _, path in modules_of(found[MODULES]) if path]
        found |= {name: read_text(folder / name) for name in names if os.path.lexists(folder / name)}
    return found


def write_module_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write those files that have a folder of their own, such as 1_Pooling/config.json, where they differ."""
    for name, text in files.items():
        if "/" in name and not ((folder / name).is_file() and (folder / name).read_bytes() == text.encode()):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")


def without_sentences(files: Mapping[str, str]) -> dict[str, str]:
    """Return the files that are not of sentence-transformers."""
    return {name: text for name, text in files.items() if name not in (MODULES, PROMPTS, LENGTH) and "/" not in name}


def modules_of(text: str) -> list[tuple[str, str]]:
    """Return the types and the folders of the modules in a modules.json. Raises InputError where it is damaged."""
    with schema.located(MODULES):
        modules = schema.parse_json(f'{{"modules": {text}}}')["modules"]
        found = []
        for module in modules if isinstance(modules, list) else [None]:
            kind, path = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
            if not (isinstance(kind, str) and isinstance(path, str)):
                raise InputError('must be a list of objects with "type" and "path"')
            if path in (".", "..") or any(mark in path for mark in "/\\\0"):
                raise InputError(f"path={schema.shown(path)} must be the name of a folder beside it")
            found.append((kind.rpartition(".")[2], path))
        return found


def sentences_of(files: Mapping[str, str]) -> Sentences:
    """Return how a folder makes vectors, of the files that `sentence_files` reads.

    Raises:
        InputError: A module, a pooling or another setting is not supported, or a file is damaged.
    """
    if MODULES not in files:
        return Sentences()
    pooling: Pooling | None = None
    normalize, included = False, True
    for kind, path in modules_of(files[MODULES]):
        match kind:
            case "Transformer":
                continue
            case "Pooling" if pooling is None:
                with schema.located(f"{path}/config.json"):
                    pooling, included = pooling_of(parsed(files.get(f"{path}/config.json")))
            case "Normalize":
                normalize = True
            case _:
                raise InputError(f"{MODULES}: the module {kind} is not supported: Transformer, Pooling, Normalize are")
    if pooling is None:
        raise InputError(f"{MODULES} has no module Pooling, which makes one vector of a text")
    with schema.located(LENGTH):
        length = schema.read(parsed(files.get(LENGTH, "{}")), LENGTH_SCHEMA)["max_seq_length"]
    with schema.located(PROMPTS):
        read = schema.read(parsed(files.get(PROMPTS, "{}")), PROMPT_SCHEMA)
        prompts = read["prompts"] or {}
        if not all(isinstance(text, str) for text in prompts.values()):
            raise InputError("prompts must be texts")
    return Sentences(pooling, normalize, prompts, read["default_prompt_name"], length, without_prompt=not included)


def parsed(text: str | None) -> dict[str, Any]:
    """Return the object in a JSON text. Raises InputError where there is none."""
    if text is None:
        raise InputError("is missing")
    return schema.parse_json(text)


def pooling_of(settings: Mapping[str, Any]) -> tuple[Pooling, bool]:
    """Return a pooling, and whether prompts count. Raises InputError for one that is not supported, by its name."""
    named = settings.get("pooling_mode")
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(named, str):
        chosen = [named]
    known = POOLED | NAMED
    if len(chosen) != 1 or chosen[0] not in known:
        given = listed(chosen) if chosen else json.dumps(named)
        raise InputError(f"the pooling {given} is not supported: one of {', '.join(NAMED)} is")
    return known[chosen[0]], settings.get("include_prompt") is not False
