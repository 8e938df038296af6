"""Files of a checkpoint folder as transformers writes it: JSON, and tensors in one safetensors file or several."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxformer.errors import InputError

Arrays = dict[str, np.ndarray]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLAX = "flax_model.msgpack"  # what the Flax classes of transformers 4 wrote


def read_json(path: Path) -> dict:
    """The JSON object in a file. Raises InputError where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path.parent} has no {path.name}: give a folder that `save_pretrained` wrote") from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None


def read_tensors(folder: Path) -> Arrays:
    """Every tensor in `folder` by its name, from `model.safetensors`, the shards that its index lists, or Flax's file.

    Raises InputError where files are missing or damaged, and for pickled weights, which may run any code when opened.
    """
    if (folder / INDEX).exists():
        shards = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
        return {name: tensor for shard in shards for name, tensor in read_shard(folder / shard).items()}
    if not (folder / SINGLE).exists() and (folder / FLAX).exists():
        return read_flax(folder / FLAX)
    if not (folder / SINGLE).exists() and (folder / "pytorch_model.bin").exists():
        raise InputError(
            f"{folder} has pickled weights, which are never opened; convert them where transformers is installed: "
            f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained(...)"
        )
    return read_shard(folder / SINGLE)


def read_shard(path: Path) -> Arrays:
    """Every tensor of a safetensors file."""
    if not path.exists():
        raise InputError(f"{path.parent} has no {path.name}: save the model in that format")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from None


def read_flax(path: Path) -> Arrays:
    """The parameters of a Flax model of transformers 4 under the names and in the shapes that they have in PyTorch.

    Its linear maps are kernels [inputs, outputs], which PyTorch holds transposed (GPT-2's the other way round); its
    embeddings and the scales of its norms are called weights there.
    """
    try:
        nested = serialization.msgpack_restore(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    tensors = {}
    for name, array in traverse_util.flatten_dict(nested, sep=".").items():
        module, _, leaf = name.rpartition(".")
        array = np.asarray(array)
        renamed = f"{module}.weight" if leaf in ("kernel", "embedding", "scale") else name
        tensors[renamed] = array.T if leaf == "kernel" else array
    return tensors


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_tensors(folder: Path, tensors: Arrays) -> None:
    """Write `model.safetensors`, marked as transformers marks its files."""
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to write into, whose files then take their places in `folder`, each at once and the weights last.

    What a failure leaves is the folder as it was. Shards of other weights that stood there are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = set(read_json(folder / INDEX)["weight_map"].values()) if (folder / INDEX).exists() else set()
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder) as new:
        yield Path(new)
        for path in sorted(Path(new).iterdir(), key=lambda path: path.name == SINGLE):
            os.replace(path, folder / path.name)
    for name in (INDEX, *shards) if shards else ():
        (folder / name).unlink(missing_ok=True)
