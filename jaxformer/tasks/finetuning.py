"""Training that starts from a checkpoint of Hugging Face: all of its weights, some of them, or adapters on them."""

import dataclasses
import fnmatch
import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxformer import presets, schema
from jaxformer.config import TransformerConfig, from_dict, to_dict
from jaxformer.errors import InputError, listed
from jaxformer.layers import QuantizedLinear
from jaxformer.layers.variables import parameter_path
from jaxformer.model import Transformer, abstract_model
from jaxformer.pretrained import (
    TOKENIZER,
    Pretrained,
    folder_of,
    from_pretrained,
    generation_from,
    generation_settings,
    lora,
    save_pretrained,
)
from jaxformer.pretrained.families import family_of
from jaxformer.pretrained.files import read_shard, read_tensors, write_tensors
from jaxformer.pretrained.tokens import read_tokenizer
from jaxformer.tasks.settings import TrainSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.tasks.task import Task
from jaxformer.training import Trainable, all_trainable, partly_trainable, replace_text

BASE, UNUSED, FIXED = "base.json", "unused.safetensors", "fixed.safetensors"  # in the folder of a run
MODEL, ADAPTER = "model", "adapter"
RATE, ADAPTER_RATE = 5e-5, 2e-4  # learning rates of checkpoints, and of adapters on them
S = TypeVar("S", bound=TrainSettings)
ABOUT: dict[str, schema.Field] = {
    "name": schema.text(""),
    "checksum": schema.text(""),
    "config": schema.mapping({}),
    "settings": schema.mapping({}),
    "generation": schema.mapping({}),
    "files": schema.mapping({}),
}


@dataclass(frozen=True, eq=False)
class Base:
    """A checkpoint that training starts from, without its weights.

    Attributes:
        name: Its folder, or its id on the hub.
        checksum: SHA-256 of its weights.
        lm: Its tokenizer, settings and files; the arrays of its model are shapes and types.
        fixed: Parameters that transformers does not train, buffers there, by name.
    """

    name: str
    checksum: str
    lm: Pretrained
    fixed: dict[str, np.ndarray]

    @property
    def config(self) -> TransformerConfig:
        """The model."""
        return self.lm.model.config

    def open(self) -> Pretrained:
        """Return the checkpoint with its weights in float32. Raises InputError if they are others than before."""
        lm = from_pretrained(self.name, dtype="float32")
        if checksum(folder_of(self.name, None)) != self.checksum:
            raise InputError(f"the weights in {self.name} are not those that the run began with: put these back")
        return lm

    def save(self, folder: Path, unused: dict[str, np.ndarray]) -> None:
        """Write it into the folder of a run.

        Args:
            folder: The folder.
            unused: The tensors that the model has no use for.
        """
        lm = self.lm
        about = {
            "name": self.name,
            "checksum": self.checksum,
            "config": to_dict(self.config),
            "settings": lm.settings,
            "generation": generation_settings(lm.generation),
            "files": lm.files,
        }
        for tensors, file in ((unused, UNUSED), (self.fixed, FIXED)):
            if tensors:
                write_tensors(folder, tensors, file)
        if lm.tokenizer is not None:
            replace_text(folder / TOKENIZER, lm.tokenizer.to_str(pretty=True) + "\n")
        replace_text(folder / BASE, json.dumps(about) + "\n")


def read_base(folder: Path) -> Base:
    """Return the checkpoint that a run began with. Raises InputError if it cannot be read."""
    path, vocabulary = folder / BASE, folder / TOKENIZER
    values = schema.load_json(path)
    with schema.located(path):
        schema.require(values, *ABOUT)
        about = schema.read(values, ABOUT)
        config = from_dict(about["config"])
        if not isinstance(config, TransformerConfig) or not all(isinstance(x, str) for x in about["files"].values()):
            raise InputError("holds something else")
        generation = generation_from(about["generation"])
    tokenizer = read_tokenizer(vocabulary, config.main.embedding.vocab_size) if vocabulary.exists() else None
    unused, fixed = read_if_there(folder / UNUSED), read_if_there(folder / FIXED)
    lm = Pretrained(abstract_model(config), tokenizer, generation, about["settings"], unused, about["files"])
    return Base(about["name"], about["checksum"], lm, fixed)


def read_if_there(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a file, none where it does not exist."""
    return {name: np.array(tensor) for name, tensor in read_shard(path).items()} if path.exists() else {}


def buffers_of(lm: Pretrained) -> dict[str, np.ndarray]:
    """Return the parameters of a checkpoint that transformers does not train, by name."""
    table = family_of(lm.settings).table(lm.model.config)
    paths = nnx.to_flat_state(nnx.state(lm.model))
    chosen = [(path, variable) for path, variable in paths if re.fullmatch(table.buffers, table.name(path) or "?")]
    return {".".join(map(str, path)): np.asarray(variable[...]) for path, variable in chosen}


def checksum(folder: Path) -> str:
    """Return the SHA-256 of the weights in a checkpoint folder: names, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(read_tensors(folder).items()):
        total.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        total.update(np.ascontiguousarray(tensor).view(np.uint8).data)
    return total.hexdigest()


class FineTuningTask(Task[S]):
    """A task whose training can start from a checkpoint.

    Its settings have the fields `start` and `model`, and the latter a rate of dropout. Derived classes define
    `fresh_config` and `check_base`.
    """

    @classmethod
    def defaults_for(cls, flags: Sequence[str]) -> TrainSettings:
        """Return the settings where no flag says otherwise: a checkpoint is trained at lower rates than new weights."""
        if "--model" not in flags:
            return cls.defaults
        rate = ADAPTER_RATE if "--lora" in flags else RATE
        return dataclasses.replace(
            cls.defaults, optimizer=dataclasses.replace(cls.defaults.optimizer, learning_rate=rate)
        )

    @property
    def start(self) -> StartSettings:
        """The settings of the checkpoint and of its trained parameters."""
        return self.settings.start  # pyrefly: ignore

    @property
    @abstractmethod
    def fresh_config(self) -> TransformerConfig:
        """The model where there is no checkpoint."""

    def check_base(self, lm: Pretrained) -> None:
        """Raise InputError if a checkpoint lacks what the task needs."""

    def prepared(self, lm: Pretrained) -> Pretrained:
        """Return a checkpoint with the parts that the task needs beside its own."""
        return lm

    @property
    def config(self) -> TransformerConfig:
        """The model that the settings name."""
        if self.base is None:
            return self.fresh_config
        rate = self.settings.model.dropout  # pyrefly: ignore
        return self.base.config if rate is None else presets.with_dropout(self.base.config, rate)

    @cached_property
    def base(self) -> Base | None:
        """The checkpoint that training starts from, if any. Raises InputError if the task cannot use it."""
        if self.start.model is None:
            return None
        if self.folder is not None:
            return read_base(self.folder)
        if (Path(self.start.model) / "run.json").exists():
            inside = Path(self.start.model) / MODEL
            advice = f"give its folder {inside}" if inside.exists() else "go on with it by --resume --output"
            raise InputError(f"{self.start.model} is a run, not a checkpoint folder: {advice}")
        lm = from_pretrained(self.start.model, dtype="float32")
        self.check_base(lm)
        self._opened = lm = self.prepared(lm)
        folder = folder_of(self.start.model, None)
        name = str(folder.resolve()) if Path(self.start.model).is_dir() else self.start.model
        bare = dataclasses.replace(lm, model=abstract_model(lm.model.config))
        return Base(name, checksum(folder), bare, buffers_of(lm))

    _opened: Pretrained | None = None  # with its weights, until training takes them

    @cached_property
    def _adapted(self) -> tuple[Pretrained, lora.Adapter]:
        """The checkpoint with its weights, in 8 bits if so wanted, and a new adapter."""
        lm = self._take()
        adapter = lora.init(lm, self.adapters(lm), key=jax.random.key(self.settings.seed))
        return lm.quantize() if self.start.weights == "int8" else lm, adapter

    def adapters(self, lm: Pretrained) -> lora.LoraConfig:
        """Return the settings of adapters on a checkpoint."""
        return self.start.adapters

    def _take(self) -> Pretrained:
        """Return the checkpoint with its weights, and keep them no longer."""
        assert self.base is not None, "of a run with a checkpoint"
        lm, self._opened = self._opened, None
        return lm or self.prepared(self.base.open())

    def trainable(self, config: TransformerConfig, *, abstract: bool = False) -> Trainable:
        """Return the model with the weights of the checkpoint, and which parameters are trained."""
        if self.start.lora is not None:
            return adapted(self._adapted[0].model, config, self._adapted[1])
        abstract = abstract and not self.start.freeze  # checkpoints of the run lack what is frozen
        if self.base is None or abstract:
            every = super().trainable(config, abstract=abstract)
            model = every.assemble(every.params, None)
        else:
            model = with_config(self._take().model, config)
        fixed = {} if self.base is None else self.base.fixed
        if not (self.start.freeze or fixed):
            return all_trainable(model)
        found = frozen_by(model, (*self.start.freeze, *fixed))
        return found._replace(frozen=filled(found.frozen, fixed)) if abstract else found

    def save(self, folder: Path) -> None:
        """Write what the run keeps of the checkpoint."""
        if self.base is not None:
            self.base.save(folder, self.base.lm.kept)

    def export(self, folder: Path, params: Any, model: Transformer) -> list[str]:
        """Write the model, or the adapter, as transformers and peft open it."""
        if self.base is None:
            return []
        if self.start.lora is not None:
            adapter = as_adapter(self._adapted[1], params)
            lora.save(adapter, folder / ADAPTER, base=self.base.name)
            return [f"adapter: {folder / ADAPTER}, for peft and jaxformer.lora.load, on {self.base.name}"]
        save_pretrained(dataclasses.replace(self.base.lm, model=model), folder / MODEL)
        return [f"model: {folder / MODEL}, for transformers and jaxformer.from_pretrained"]


def with_config(model: Transformer, config: TransformerConfig) -> Transformer:
    """Return the parameters of a model in a model of another configuration, whose parameters have the same shapes."""
    abstract = abstract_model(config)
    if any(isinstance(part, QuantizedLinear) for _, part in nnx.iter_modules(model)):
        abstract = nnx.eval_shape(Transformer.quantize, abstract)
    graphdef = nnx.split(abstract)[0]
    return nnx.merge(graphdef, nnx.to_pure_dict(nnx.state(model)))


def frozen_by(model: Transformer, patterns: tuple[str, ...]) -> Trainable:
    """Return a model without training the parameters whose name, or that of a module around them, matches a pattern.

    Raises:
        InputError: A pattern matches nothing, or nothing is left to be trained.
    """
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(model))]

    def matches(path: tuple[Any, ...], pattern: str) -> bool:
        names = (".".join(map(str, path[:end])) for end in range(1, len(path) + 1))
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)

    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            modules = dict.fromkeys(".".join(map(str, path[:3])) for path in paths)
            modules = sorted(modules, key=lambda name: (name.count("."), name))
            raise InputError(
                f"--freeze {schema.shown(pattern)} matches no parameter or module: there are {listed(modules)}"
            )
    found = partly_trainable(model, lambda path: any(matches(path, pattern) for pattern in patterns))
    if not jax.tree.leaves(found.params):
        raise InputError("--freeze leaves no parameter to be trained: give other patterns")
    return found


def filled(params: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Return nested dictionaries of shapes and types with arrays in their place, which are given by name."""

    def array(path: tuple[Any, ...], _: Any) -> jax.Array:
        return jnp.asarray(arrays[".".join(map(str, parameter_path(path)))])

    return jax.tree_util.tree_map_with_path(array, params)


def adapted(model: Transformer, config: TransformerConfig, adapter: lora.Adapter) -> Trainable:
    """Return a model of which an adapter is trained, and nothing else."""
    whole = all_trainable(with_config(model, config))
    trained: dict[str, Any] = {module: {"A": pair.A, "B": pair.B} for module, pair in adapter.factors.items()}
    if adapter.saved:
        saved: dict[str, dict[str, jax.Array]] = {}
        for name, array in adapter.saved.items():
            module, _, leaf = name.rpartition(".")
            saved.setdefault(module, {})[leaf] = array  # by a name of its own, which tells what is decayed
        trained = {"factors": trained, "saved": saved}

    def assemble(params: Any, frozen: Any) -> Transformer:
        return lora.apply(whole.assemble(frozen, None), as_adapter(adapter, params))

    return Trainable(trained, whole.params, assemble)


def as_adapter(adapter: lora.Adapter, params: Any) -> lora.Adapter:
    """Return an adapter with other factors and other modules that are trained whole, as `adapted` holds them."""
    factors, whole = (params["factors"], params["saved"]) if adapter.saved else (params, {})
    pairs = {module: lora.Factors(**pair) for module, pair in factors.items()}
    saved = {f"{module}.{leaf}": array for module, leaves in whole.items() for leaf, array in leaves.items()}
    return dataclasses.replace(adapter, factors=pairs, saved=saved)
