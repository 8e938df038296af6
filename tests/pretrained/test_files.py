"""Files of checkpoint folders that are not what they should be, and which of several files counts."""

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from flax import serialization
from hf_models import save_decoder
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from jaxformer import GenerationConfig, InputError
from jaxformer.pretrained import Pretrained, from_pretrained, save_pretrained

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "gpt2"
    save_decoder("gpt2", folder)
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """A model of another configuration."""
    folder = tmp_path_factory.mktemp("files") / "other"
    save_decoder("gpt2-unusual", folder)
    return from_pretrained(folder)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def write_index(folder: Path, shards: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def logits(lm: Pretrained) -> np.ndarray:
    return np.asarray(lm([[3, 4, 5]]).logits)


def their_logits(folder: Path) -> np.ndarray:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(torch.tensor([[3, 4, 5]])).logits.numpy()


def test_an_index_of_the_file_itself_does_not_delete_it(folder: Path, other: Pretrained) -> None:
    for lm in (from_pretrained(folder), other):
        write_index(folder, dict.fromkeys(load_file(folder / SINGLE), SINGLE))
        save_pretrained(lm, folder)
        np.testing.assert_array_equal(logits(from_pretrained(folder)), logits(lm))
        assert not (folder / INDEX).exists()


OUTSIDE = ["../../precious.txt", "/absolute", "config.json", "", "..", "a/b.safetensors", "a\\b.safetensors", 3, None]
OUTSIDE += ["../other/model.safetensors", "C:model.safetensors", "x.safetensors\0", "model.bin", ["a"], ".safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_files_of_its_folder_only(folder: Path, other: Pretrained, name: Any) -> None:
    """In reading and in writing; nothing is changed."""
    (folder.parent / "precious.txt").write_text("x")
    shutil.copytree(folder, folder.parent / "other")
    single = (folder / SINGLE).rename(folder / "model-00001-of-00002.safetensors")
    write_index(folder, {"transformer.wte.weight": single.name, "a": name})
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    for act in (lambda: from_pretrained(folder), lambda: save_pretrained(other, folder)):
        with pytest.raises(InputError, match=r'index\.json: weight_map: "a" is in .*, which must be the name of a'):
            act()
    assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "index", ["{}", "[]", '{"weight_map": []}', '{"weight_map": {}}', "null", "{", '{"a": 3}', "\xff"]
)
def test_an_index_of_another_form(folder: Path, other: Pretrained, index: str) -> None:
    (folder / SINGLE).rename(folder / "model-1.safetensors")
    (folder / INDEX).write_text(index, encoding="latin-1")
    before = sorted(path.name for path in folder.iterdir())
    for act in (lambda: from_pretrained(folder), lambda: save_pretrained(other, folder)):
        with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
            act()
    assert sorted(path.name for path in folder.iterdir()) == before


def test_the_file_that_transformers_opens_is_opened(folder: Path, other: Pretrained) -> None:
    """An index that a save left behind, without and with its shards, and files of other kinds."""
    expected = logits(from_pretrained(folder))
    write_index(folder, {"transformer.wte.weight": "model-00001-of-00002.safetensors"})
    np.testing.assert_array_equal(logits(from_pretrained(folder)), expected)
    stale = {name: 2 * tensor for name, tensor in load_file(folder / SINGLE).items()}
    save_file(stale, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    write_index(folder, dict.fromkeys(stale, "model-00001-of-00002.safetensors"))
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "flax_model.msgpack").write_bytes(b"\x93")
    np.testing.assert_array_equal(logits(from_pretrained(folder)), expected)
    np.testing.assert_allclose(their_logits(folder), expected, atol=1e-5)
    (folder / SINGLE).unlink()
    np.testing.assert_allclose(logits(from_pretrained(folder)), their_logits(folder), atol=1e-5)
    save_pretrained(other, folder)
    assert not list(folder.glob("model-*"))
    np.testing.assert_array_equal(logits(from_pretrained(folder)), logits(other))


def test_links_stay_readable_and_what_they_lead_to_is_left_alone(folder: Path, other: Pretrained) -> None:
    """The hub's cache has links for files."""
    blob = (folder / SINGLE).rename(folder.parent / "blob")
    (folder / SINGLE).symlink_to(blob)
    before = blob.read_bytes()
    assert logits(from_pretrained(folder)).shape == (1, 3, 53)
    save_pretrained(other, folder)
    assert blob.read_bytes() == before
    assert not (folder / SINGLE).is_symlink()


def test_weights_may_be_read_by_others(folder: Path, other: Pretrained) -> None:
    umask = os.umask(0o027)
    try:
        save_pretrained(other, folder)
    finally:
        os.umask(umask)
    for name in (SINGLE, "config.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o640


def raw_safetensors(header: Any, data: bytes = b"\0" * 4) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
WEIGHTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is damaged"),
    "twice": (
        raw_safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'),
        "twice|is damaged",
    ),
    "axes": (raw_safetensors({"a": ENTRY | {"shape": [1] * 99}}), "cannot have the shape"),
    "huge": (raw_safetensors({"a": ENTRY | {"shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}, b""), "cannot have"),
    "type": (raw_safetensors({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"\0"), "type F4"),
    "length": ((2**62).to_bytes(8, "little") + b"{}", "is damaged"),
    "none": (raw_safetensors({}, b""), "the weights do not fit|0 tensors"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights(folder: Path, name: str) -> None:
    data, message = WEIGHTS[name]
    (folder / SINGLE).write_bytes(data)
    with pytest.raises(InputError, match=message) as refused:
        from_pretrained(folder)
    assert len(str(refused.value)) - len(str(folder)) < 350


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    "name", [SINGLE, "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"]
)
@pytest.mark.parametrize(
    "make", [Path.mkdir, pipe, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to("x")]
)
def test_what_is_no_file(folder: Path, name: str, make: Callable[[Path], None]) -> None:
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(InputError, match=f"{name}"):
        from_pretrained(folder)


DEEP: Any = {"a": np.ones(1)}
for _ in range(70):
    DEEP = {"a": DEEP}
CHUNKED = {"__msgpack_chunked_array__": True, "shape": {"0": 2**40}, "chunks": {"0": np.ones(1)}}
FLAX: dict[str, bytes] = {
    "list": msgpack.packb([1, 2]),
    "text": msgpack.packb("a"),
    "numbers for names": msgpack.packb({1: 2}),
    "no arrays": msgpack.packb({"a": {"b": "c"}}),
    "null": msgpack.packb({"a": None}),
    "unknown type": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[1], "nonsense", b"1234"]))}),
    "object type": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[1], "object", b"12345678"]))}),
    "other size": msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb([[2**40], "float32", b"1234"]))}),
    "deep": serialization.msgpack_serialize(DEEP),
    "deeper": b"\x81\xa1a" * 100_000 + b"\xc0",
    "bomb": b"\xdd\xff\xff\xff\xff",
    "chunks": serialization.msgpack_serialize(CHUNKED),
    "truncated": serialization.msgpack_serialize({"a": np.ones(9)})[:-3],
    "empty": b"",
    "no names": msgpack.packb({}),
}


@pytest.mark.parametrize("name", FLAX)
def test_damaged_files_of_flax(folder: Path, name: str) -> None:
    (folder / SINGLE).unlink()
    (folder / "flax_model.msgpack").write_bytes(FLAX[name])
    with pytest.raises(InputError) as refused:
        from_pretrained(folder)
    message = str(refused.value)
    assert len(message) - len(str(folder)) < 320
    assert "\n" not in message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_p": "0.9"}, "top_p must be .*, not '0.9'"),
        ({"max_length": True}, "max_length must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"eos_token_id": [1, "2"]}, "eos_token_id must be"),
        ({"num_beams": [1] * 999}, "num_beams must be"),
        ([], "must hold a JSON object"),
        (None, "must hold a JSON object"),
        ("\udcff", "UTF-8"),
    ],
)
def test_settings_of_generation_of_another_form(folder: Path, settings: Any, message: str) -> None:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    (folder / "generation_config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=rf"generation_config\.json:? .*{message}") as refused:
        from_pretrained(folder)
    assert len(str(refused.value)) - len(str(folder)) < 330


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": "GPT2LMHeadModel"}, "architectures=.* must be a list"),
        ({"architectures": [1]}, "architectures="),
        ({"transformers_weights": "consolidated.safetensors"}, "rename the weights to model.safetensors"),
        ({"max_position_embeddings": "64"}, "max_position_embeddings="),
        ({"model_type": {}}, "model_type"),
        ({"model_type": "x" * 999}, "model_type"),
        ({"dtype": {}}, None),
    ],
)
def test_settings_of_another_form(folder: Path, change: dict[str, Any], message: str | None) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if message is None:
        assert from_pretrained(folder).settings["dtype"] == {}
        return
    with pytest.raises(InputError, match=rf"config\.json: .*{message}") as refused:
        from_pretrained(folder)
    assert len(str(refused.value)) - len(str(folder)) < 330


def test_names_that_are_no_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, message in (
        (folder / "config.json", "is not a folder: give the folder"),
        (folder / "config.json" / "x", "there is no folder"),
        (folder.parent / "missing", "there is no folder"),
        ("", "has no config.json"),
        ("a\0b", "cannot be read|is no folder"),
        ("x" * 5000, "cannot be read|is no folder"),
        (folder.parent, "has no config.json: give a folder"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            from_pretrained(name)
        assert len(str(refused.value)) < 400
    (folder / "config.json").unlink()
    (folder / ".unfinished-1234").mkdir()
    with pytest.raises(InputError, match="because a save has not finished: wait for it, or save again"):
        from_pretrained(folder)


def test_folders_without_permissions(original: Path) -> None:
    """In a process that is not root's: of the folder, of the one above, of each file."""
    program = """
import os, sys
import jaxformer
jaxformer.from_pretrained(sys.argv[1])  # so that all modules are there
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for name in sys.argv[2:]:
    try:
        jaxformer.from_pretrained(name)
    except jaxformer.InputError as error:
        print(error)
"""
    files = ("config.json", SINGLE, "tokenizer.json", "chat_template.jinja")
    with tempfile.TemporaryDirectory() as place:
        top = Path(place)
        top.chmod(0o755)
        folders = [top / "folder", top / "above" / "model", *(top / name for name in files)]
        for folder in folders:
            shutil.copytree(original, folder)
        closed = [top / "folder", top / "above", *(top / name / name for name in files)]
        for path in closed:
            path.touch()
            path.chmod(0)
        command = [sys.executable, "-c", program, original, *folders]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for path in closed:
            path.chmod(0o700)
    lines = done.stdout.splitlines()
    assert len(lines) == len(folders), done.stderr
    assert all("Permission denied" in line for line in lines), lines


def test_a_full_disk_is_an_error_of_the_system(folder: Path, other: Pretrained) -> None:
    """Whichever file does not fit. What stood there still opens."""
    expected, before = logits(from_pretrained(folder)), sorted(path.name for path in folder.iterdir())
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (0, 100, 20_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                save_pretrained(other, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        np.testing.assert_array_equal(logits(from_pretrained(folder)), expected)
        assert sorted(path.name for path in folder.iterdir()) == before
        assert os.listdir(folder.parent) == [folder.name]


def saves(folder: Path, lms: list[Pretrained]) -> Iterator[None]:
    while True:
        for lm in lms:
            save_pretrained(lm, folder)
            yield


def test_a_folder_that_is_saved_to_while_it_is_read(
    folder: Path, other: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between config.json and the weights: what is opened is of one save."""
    first = from_pretrained(folder)
    saving = saves(folder, [other, first])
    from jaxformer import pretrained

    read, left = pretrained.read_tensors, iter([1])

    def read_late(where: Path) -> Any:
        if next(left, None):
            next(saving)
        return read(where)

    monkeypatch.setattr(pretrained, "read_tensors", read_late)
    np.testing.assert_array_equal(logits(from_pretrained(folder)), logits(other))
    left = iter([1] * 100)
    with pytest.raises(InputError, match="changes while it is read"):
        from_pretrained(folder)


def test_settings_that_json_has_not(folder: Path) -> None:
    lm = from_pretrained(folder)
    biases = GenerationConfig(sequence_bias={(3, 4): 1.5, (5,): -2.0}, bad_words_ids=((3,),), eos_token_id=(1, 2))
    lm = Pretrained(lm.model, None, biases, lm.settings | {"note": "\ud800 \N{SNOWMAN}"})
    save_pretrained(lm, folder)
    again = from_pretrained(folder)
    assert again.settings["note"] == lm.settings["note"]
    assert again.generation.bad_words_ids == ([3],)
    assert [(list(tokens), bias) for tokens, bias in again.generation.sequence_bias] == [([3, 4], 1.5), ([5], -2.0)]
