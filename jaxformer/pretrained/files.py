"""Files of a checkpoint folder as transformers writes it: JSON, and tensors in one safetensors file or several."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import serialization
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxformer import schema
from jaxformer.errors import InputError, listed, shortened

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
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
FLAX = "flax_model.msgpack"  # what the Flax classes of transformers 4 wrote
INDEX_SCHEMA = {"weight_map": schema.Field(None, "an object", lambda value: isinstance(value, dict))}
SHARD = re.compile(r"[^/\\:\0]+\.safetensors")  # a plain name, on Windows too


def read_tensors(folder: Path) -> Arrays:
    """Return every tensor in `folder` by its name.

    The file is the one that transformers opens: `model.safetensors`, else the shards that an index lists. Where there
    is neither, it is Flax's file.

    Raises:
        InputError: Files are missing or damaged, or the weights are pickled, which may run any code when opened.
    """
    if os.path.lexists(folder / SINGLE):
        return read_shard(folder / SINGLE)
    if os.path.lexists(folder / INDEX):
        shards = read_index(folder / INDEX)
        return {name: tensor for shard in shards for name, tensor in read_shard(folder / shard).items()}
    if (folder / FLAX).exists():
        return read_flax(folder / FLAX)
    pickled = next(
        (name for name in ("pytorch_model.bin", "pytorch_model.bin.index.json") if (folder / name).exists()), ""
    )
    if pickled:
        raise InputError(
            f"{folder} has pickled weights, which are never opened; convert them where transformers is installed: "
            f"AutoModel.from_pretrained({str(folder)!r}).save_pretrained(...)"
        )
    raise InputError(f"{folder} has no {SINGLE}: save the model in that format")


def read_index(path: Path) -> list[str]:
    """Return the names of the shards that an index lists.

    Raises:
        InputError: The index is no index, or names anything but safetensors files of its own folder.
    """
    index = schema.load_json(path)
    with schema.located(path):
        shards = schema.read(index, INDEX_SCHEMA)["weight_map"]
        if not shards:
            raise InputError(f"weight_map={schema.shown(shards)} must name the file of each tensor")
        for tensor, name in shards.items():
            if not (isinstance(name, str) and SHARD.fullmatch(name)):
                raise InputError(
                    f"weight_map: {schema.shown(tensor)} is in {schema.shown(name)}, "
                    "which must be the name of a .safetensors file in the same folder"
                )
        return sorted(set(shards.values()))


def old_weights(folder: Path) -> list[str]:
    """Return the names of files in a folder that a model saved there replaces: shards, and behind them their index.

    Raises:
        InputError: The index is damaged.
    """
    return [*read_index(folder / INDEX), INDEX] if os.path.lexists(folder / INDEX) else []


def read_shard(path: Path) -> Arrays:
    """Return every tensor of a safetensors file, mapped: what is not used is not read.

    The library checks the file, but copies what it gives. The format is a length of 8 bytes, a header in JSON with the
    place of each tensor behind it, and the tensors. A link is followed wherever it leads: the files of the hub's cache
    are links.

    Raises:
        InputError: The file is missing, damaged, or has tensors of a type that is not supported.
    """
    check_is_file(path)
    try:
        file = np.memmap(path, np.uint8, "r")
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path} is damaged: {shortened(str(error), 200)}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    start = 8 + int.from_bytes(file[:8].tobytes(), "little")
    with schema.located(path):
        header = schema.parse_json(file[8:start].tobytes())
        header.pop("__metadata__", None)
        unknown = {about["dtype"] for about in header.values()} - DTYPES.keys()
        if unknown:
            raise InputError(f"has tensors of type {listed(sorted(unknown))}, which is not supported")
        return {name: mapped(file[start:], name, about) for name, about in header.items()}


def mapped(data: np.ndarray, name: str, about: dict[str, Any]) -> np.ndarray:
    """Return a tensor of a safetensors file as a view of its bytes, as its entry in the header says."""
    first, end = about["data_offsets"]
    try:
        return np.asarray(data[first:end]).view(DTYPES[about["dtype"]]).reshape(about["shape"])
    except ValueError:  # the library allows more axes than NumPy, and any size where another axis is 0
        raise InputError(f"{schema.shown(name)} cannot have the shape {schema.shown(about['shape'])}") from None


def read_flax(path: Path) -> Arrays:
    """Return the parameters of a Flax model of transformers 4 under the names and in the shapes that PyTorch has.

    Its linear maps are kernels [inputs, outputs], which PyTorch holds transposed (GPT-2's the other way round); its
    embeddings and the scales of its norms are called weights there.

    Raises:
        InputError: The file is damaged, or holds anything but arrays by name.
    """
    check_is_file(path)
    try:
        nested = serialization.msgpack_restore(path.read_bytes())
    except (Exception, RecursionError) as error:  # the library asserts, and passes on what NumPy raises
        raise InputError(f"{path} is damaged: {shortened(f'{type(error).__name__} {error}', 200)}") from None
    if not isinstance(nested, dict) or schema.depth(nested) > schema.MAX_DEPTH:
        raise InputError(f"{path} must hold named arrays, nested at most {schema.MAX_DEPTH} levels deep")
    tensors = {}
    for name, array in leaves(nested):
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path}: {shortened(name, 60)} must be an array, not {schema.shown(array)}")
        module, _, leaf = name.rpartition(".")
        renamed = f"{module}.weight" if leaf in ("kernel", "embedding", "scale") else name
        tensors[renamed] = array.T if leaf == "kernel" else array
    return tensors


def leaves(nested: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested dictionaries hold, under names joined by dots."""
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value


def check_is_file(path: Path) -> None:
    """Raise InputError unless `path` is a file or a link to one: a device or a pipe might have no end."""
    try:
        if path.is_file():
            return
        there = os.path.lexists(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    raise InputError(f"{path} is not a file" if there else f"{path.parent} has no {path.name}: save the model again")


def read_text(path: Path) -> str:
    """Return a text file in UTF-8. Raises InputError where it is something else or larger than `schema.MAX_BYTES`."""
    check_is_file(path)
    try:
        if path.stat().st_size > schema.MAX_BYTES:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes: at most {schema.MAX_BYTES:,} are read")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write an object as JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def write_tensors(folder: Path, tensors: Arrays, name: str = SINGLE) -> None:
    """Write a safetensors file, marked as transformers marks its files. Raises OSError where the disk is full."""
    path = folder / name
    path.touch()
    mode = path.stat().st_mode  # as the umask says; the library makes files that nobody else may read
    with as_os_error(path):
        save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(mode)


@contextmanager
def as_os_error(path: Path) -> Iterator[None]:
    """Raise what safetensors says of a failure of the system as the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        number = int(found.group(1)) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from None
