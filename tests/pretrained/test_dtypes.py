"""Number types of weights: which are read, which are refused, and as what."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_models import save_decoder
from safetensors.numpy import load_file, save_file

from jaxformer import InputError
from jaxformer.pretrained import Pretrained, from_pretrained

SINGLE = "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dtypes") / "gpt2"
    save_decoder("gpt2", folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def logits(lm: Pretrained) -> np.ndarray:
    return np.asarray(lm([[3, 4, 5]]).logits)


@pytest.mark.parametrize("kind", ["int8", "int64", "bool", "uint8"])
def test_weights_of_whole_numbers_are_refused(folder: Path, kind: str) -> None:
    tensors = load_file(folder / SINGLE)
    save_file(tensors | {"transformer.wte.weight": tensors["transformer.wte.weight"].astype(kind)}, folder / SINGLE)
    with pytest.raises(InputError, match=f"transformer.wte.weight holds {kind}"):
        from_pretrained(folder)


def test_float64_is_read_as_what_jax_has(folder: Path) -> None:
    expected = logits(from_pretrained(folder))
    save_file({name: tensor.astype("f8") for name, tensor in load_file(folder / SINGLE).items()}, folder / SINGLE)
    lm = from_pretrained(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(lm.model)} == {np.dtype("float32")}
    np.testing.assert_array_equal(logits(lm), expected)


@pytest.mark.parametrize(
    "dtype", ["nonsense", "int8", "bool", 3, {"a": 1}, "complex64", jnp.int32, "auto", "float64", "float8_e5m2"]
)
def test_types_that_weights_cannot_have(folder: Path, dtype: Any) -> None:
    with pytest.raises(InputError, match=r"dtype="):
        from_pretrained(folder, dtype=dtype)


def test_types_that_weights_can_have(folder: Path) -> None:
    for dtype in ("bfloat16", jnp.float16, np.dtype("float32")):
        lm = from_pretrained(folder, dtype=dtype)
        assert {leaf.dtype for leaf in jax.tree.leaves(lm.model)} == {jnp.dtype(dtype)}
