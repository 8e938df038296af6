"""Files of a checkpoint folder as transformers writes it: JSON, and tensors in one safetensors file or several."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxformer.errors import InputError

Arrays = dict[str, np.ndarray]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(bool),
}
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
    """Every tensor of a safetensors file, mapped: what is not used is not read.

    The library checks the file, but copies what it gives; the format is a length of 8 bytes, a header in JSON that says
    where each tensor lies behind it, and the tensors.
    """
    if not path.exists():
        raise InputError(f"{path.parent} has no {path.name}: save the model in that format")
    try:
        with safe_open(path, framework="numpy"):
            file = np.memmap(path, np.uint8, "r")
    except SafetensorError as error:
        raise InputError(f"{path} is damaged: {error}") from None
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    header = json.loads(file[8:start].tobytes())
    header.pop("__metadata__", None)
    unknown = {about["dtype"] for about in header.values()} - DTYPES.keys()
    if unknown:
        raise InputError(f"{path} has tensors of type {', '.join(sorted(unknown))}, which is not supported")
    tensors = {}
    for name, about in header.items():
        first, end = about["data_offsets"]
        data = np.asarray(file[start + first : start + end])
        tensors[name] = data.view(DTYPES[about["dtype"]]).reshape(about["shape"])
    return tensors


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
