"""Damaged and hostile checkpoint folders of all families: they are refused in one line, or open and compute.

    PYTHONPATH=tests:tests/parity:tests/faults python tests/faults/loading.py --cases 3000 --seed 0

Each case takes the folder of a tiny model and changes one of its files. It fails for any exception but a short
InputError, for more than some seconds, and for a process that grows.
"""

import base64
import copy
import json
import os
import re
import resource
import shutil
import signal
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import serialization, traverse_util
from hf_decoders import FURTHER
from hf_encoders import FURTHER_ENCODERS
from hf_pairs import SAVERS
from safetensors.numpy import load_file, save_file
from tally import Tally, main
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxformer.errors import InputError
from jaxformer.pretrained import FAMILIES, Pretrained, from_pretrained
from jaxformer.pretrained.tokens import decode, encode

SECONDS, MEGABYTES, CHARACTERS = 20, 700, 330
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
BASES = [
    "gpt2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "smollm3",
    "olmo2",
    "phi3",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt-neox",
]
BASES += ["mixtral", "qwen3-moe", "gpt-oss", "deepseek-v2", "deepseek-v3", "opt", "marian", "bart", "mbart", "pegasus"]
BASES += ["t5", "mt5", "bert-masked", "roberta-masked", "xlm-roberta-masked", "distilbert-masked"]
BASES += [name for name in FURTHER if "unusual" not in name]
BASES += [f"{name}-masked" for name in FURTHER_ENCODERS if "unusual" not in name]
VALUES: list[Any] = [None, True, False, 0, 1, -1, 2, 3, 7, 64, 1.5, -0.5, 1e30, 1e-30, float("nan"), float("inf")]
VALUES += [2**31 - 1, 2**31, 2**63, 2**64, 10**30, "", "2", "x", "relu", "gelu", "a" * 3000, "\ud800\n\t", "false"]
VALUES += [[], [1], [[1]], ["x"] * 3, {}, {"a": 1}, [0, 1, 0], ["full_attention"] * 3, {"rope_type": "default"}, [None]]

Change = Callable[[Path, np.random.Generator], str]


def pick(rng: np.random.Generator, items: Any) -> Any:
    """One of the items."""
    items = list(items)
    return items[rng.integers(len(items))]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to all that is inside of a value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(inner)[:50]:
        yield (*path, key)
        yield from places(item, (*path, key))


def changed_json(values: Any, rng: np.random.Generator) -> tuple[Any, str]:
    """A JSON value with one or two changes, and which."""
    values, told = copy.deepcopy(values), []
    for _ in range(rng.integers(1, 3)):
        paths = list(places(values))
        if not paths:
            break
        *above, key = path = pick(rng, paths)
        inner = values
        for step in above:
            inner = inner[step]
        match rng.integers(8):
            case 0:
                del inner[key]
                told.append(f"without {path}")
            case 1 if type(inner[key]) in (int, float):
                inner[key] *= pick(rng, (2, -1, 0.5, 10**9))
                told.append(f"{path}={inner[key]!r}")
            case _:
                inner[key] = copy.deepcopy(pick(rng, VALUES))  # the next change may go into it
                told.append(f"{path}={inner[key]!r:.40}")
    return values, ", ".join(told)


def change_json(name: str) -> Change:
    """A change of a file of JSON: of its values, or of its text."""

    def change(folder: Path, rng: np.random.Generator) -> str:
        path = folder / name
        values = json.loads(path.read_text())
        kind = rng.integers(12)
        if kind > 4:
            values, told = changed_json(values, rng)
            path.write_text(json.dumps(values))
            return told
        data = json.dumps(values).encode()
        match kind:
            case 0:
                data = data[: rng.integers(len(data))]
            case 1:
                data = flipped(data, rng)
            case 2:
                data = json.dumps(pick(rng, VALUES)).encode()
            case 3:
                key = pick(rng, values)
                data = data[:-1] + f", {json.dumps(key)}: {json.dumps(pick(rng, VALUES))}}}".encode()
            case 4:
                data = b'{"model_type": ' + b"[" * 100_000
        path.write_bytes(data)
        return f"{data[:60]!r}... {kind}"

    return change


def flipped(data: bytes, rng: np.random.Generator, end: int | None = None) -> bytes:
    """The bytes with some of them changed."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        found[rng.integers(min(len(found), end or len(found)))] = rng.integers(256)
    return bytes(found)


def change_bytes(folder: Path, rng: np.random.Generator) -> str:
    """A change of the bytes of the weights, above all of their header."""
    path = folder / SINGLE
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    kind = rng.integers(5)
    match kind:
        case 0:
            data = data[: rng.integers(len(data))]
        case 1:
            data = flipped(data, rng, 8)
        case 2:
            data = flipped(data, rng, header)
        case 3:
            values, _ = changed_json(json.loads(data[8:header]), rng)
            text = json.dumps(values).encode()
            data = struct.pack("<Q", len(text)) + text + data[header:]
        case 4:
            data = data + b"\0" * int(rng.integers(1, 9))
    path.write_bytes(data)
    return f"bytes of the weights, {kind}"


def change_tensors(folder: Path, rng: np.random.Generator) -> str:
    """A change of one tensor: its shape, its type, its name. What has another shape must not open."""
    tensors = load_file(folder / SINGLE)
    name = pick(rng, tensors)
    tensor = tensors[name]
    shape, told = tensor.shape, f"{name}: "
    match rng.integers(9):
        case 0:
            del tensors[name]
            told += "missing"
        case 1:
            tensors["surplus.weight"] = tensor
            told += "surplus"
        case 2:
            tensors[name] = np.ascontiguousarray(tensor.T)
            told += "transposed"
        case 3:
            tensors[name] = tensor.reshape(-1)
            told += "flat"
        case 4:
            kind = pick(rng, ("int8", "int32", "int64", "uint8", "bool"))
            tensors[name] = tensor.astype(kind)
            told += f"of {kind}"
        case 5:
            kind = pick(rng, ("float16", "float64"))
            tensors[name] = tensor.astype(kind)
            told += f"of {kind}"
        case 6:
            tensors[name] = tensor[None] if rng.random() < 0.5 else tensor[..., None]
            told += "with an axis more"
        case 7:
            tensors[name] = np.zeros((0, *tensor.shape[1:]), np.float32)
            told += "empty"
        case 8:
            tensors[name] = np.full_like(tensor, pick(rng, (np.nan, np.inf, 3e38)))
            told += "not finite"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / SINGLE)
    misfit = name in tensors and (tensors[name].shape != shape or tensors[name].dtype.kind in "iub")
    return f"{told} (must be refused)" if misfit else told


def change_index(folder: Path, rng: np.random.Generator) -> str:
    """An index of several files, and a change of it."""
    tensors = load_file(folder / SINGLE)
    shards = {name: f"model-{rng.integers(3)}.safetensors" for name in tensors}
    for shard in set(shards.values()):
        save_file({name: tensors[name] for name in tensors if shards[name] == shard}, folder / shard)
    if rng.random() < 0.8:
        (folder / SINGLE).unlink()
    names = ["../../x", "/etc/passwd", "config.json", "", SINGLE, "..", "a/b.safetensors", ".", "model-9.safetensors"]
    if rng.random() < 0.5:
        shards[pick(rng, shards)] = pick(rng, names)
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
        return "index with another name"
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return change_json(INDEX)(folder, rng)


def change_flax(folder: Path, rng: np.random.Generator) -> str:
    """The weights as Flax wrote them, and a change of them."""
    tensors = {name: np.asarray(tensor) for name, tensor in load_file(folder / SINGLE).items()}
    (folder / SINGLE).unlink()
    nested = traverse_util.unflatten_dict({tuple(name.split(".")): tensor for name, tensor in tensors.items()})
    kind = rng.integers(4)
    if kind == 3:
        paths = [path for path in places(nested) if path]
        *above, key = pick(rng, paths)
        inner = nested
        for step in above:
            inner = inner[step]
        inner[key] = pick(rng, [{}, 3, "x", np.zeros(3), np.zeros((2, 2), "int8"), {"a": {"b": np.ones(1)}}, [1], b"x"])
    data = serialization.msgpack_serialize(nested)
    match kind:
        case 0:
            data = data[: rng.integers(len(data))]
        case 1:
            data = flipped(data, rng, 400)
        case 2:
            data = pick(
                rng, [b"\x93", b"", b"\xdd\xff\xff\xff\xff", b"\x81\xa1a" * 9999, serialization.msgpack_serialize([1])]
            )
    (folder / "flax_model.msgpack").write_bytes(data)
    return f"flax, {kind}"


@cache
def tokenizer_files() -> list[dict[str, Any]]:
    """Tokenizers of all kinds, with fewer tokens than the models have."""
    texts = ["the quick brown fox", "jumps over 12 dogs"] * 3
    found = []
    for model, trainer in (
        (models.BPE(unk_token="<unk>"), trainers.BpeTrainer),
        (models.WordPiece(unk_token="<unk>"), trainers.WordPieceTrainer),
        (models.Unigram(), trainers.UnigramTrainer),
        (models.WordLevel(unk_token="<unk>"), trainers.WordLevelTrainer),
    ):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "\u2581")])
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        unknown = {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
        tokenizer.train_from_iterator(
            texts, trainer(vocab_size=50, special_tokens=["<unk>", "</s>"], show_progress=False, **unknown)
        )
        tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        tokenizer.enable_truncation(9)
        found.append(json.loads(tokenizer.to_str()))
    charsmap = base64.b64encode(struct.pack("<I", 2048) + bytes(2048) + b"a\0").decode()
    found.append(found[2] | {"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}})
    return found


def change_tokenizer(folder: Path, rng: np.random.Generator) -> str:
    """A tokenizer, and a change of it."""
    (folder / "tokenizer.json").write_text(json.dumps(pick(rng, tokenizer_files())))
    return change_json("tokenizer.json")(folder, rng)


def change_template(folder: Path, rng: np.random.Generator) -> str:
    """The settings of a tokenizer with a template, and a change of them."""
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages[0].content }}"}
    if rng.random() < 0.5:
        settings["chat_template"] = [{"name": "default", "template": "{{ bos_token }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return change_json("tokenizer_config.json")(folder, rng)


# How often each kind of change is tried, in twentieths.
CHANGES: dict[str, tuple[int, Change]] = {
    "config.json": (8, change_json("config.json")),
    "weights": (2, change_bytes),
    "tensors": (3, change_tensors),
    "index": (2, change_index),
    "generation_config.json": (1, change_json("generation_config.json")),
    "tokenizer.json": (2, change_tokenizer),
    "tokenizer_config.json": (1, change_template),
    "flax": (1, change_flax),
}


class TooLong(BaseException):
    """A case has taken too long. No part of the program catches this by accident."""


@contextmanager
def bounded() -> Iterator[None]:
    """Raise TooLong in what takes the processor for some seconds, and MemoryError behind what takes much memory."""

    def stop(*_: Any) -> None:
        raise TooLong

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if grown > MEGABYTES:
        raise MemoryError(f"grew by {grown} MB")


def use(lm: Pretrained, rng: np.random.Generator) -> None:
    """Call a model that has opened, encode and decode, render its template."""
    both = lm.model.encoder is not None and lm.model.decoder is not None
    ids = rng.integers(3, 30, (1, 4))
    np.asarray(lm(ids, decoder_input_ids=ids[:, :2]).logits if both else lm(ids).logits)
    if lm.tokenizer is not None:
        (found,) = encode(lm.tokenizer, ["the quick fox \N{SNOWMAN} 12"])
        decode(lm.tokenizer, found)
    if lm.chat_template is not None and rng.random() < 0.2:
        lm.chat([{"role": "user", "content": "hello"}])


def problem_of(folder: Path, told: str, rng: np.random.Generator) -> str | None:
    """What is wrong when a folder is opened."""
    try:
        with bounded():
            lm = from_pretrained(folder)
            if told.endswith("(must be refused)"):
                table = FAMILIES[lm.settings["model_type"]].table(lm.model.config)
                if not re.fullmatch(f"{table.unused}|{table.kept}", told.split(":")[0]):
                    return "was taken"
            use(lm, rng)
    except InputError as error:
        text = str(error).replace(f"{folder}/", "").replace(str(folder), "")
        return f"long message: {text}" if len(text) > CHARACTERS or "\n" in text else None
    except (Exception, TooLong, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        step = error.__traceback__
        while step and step.tb_next and "jaxformer" in step.tb_next.tb_frame.f_code.co_filename:
            step = step.tb_next
        where = f"{Path(step.tb_frame.f_code.co_filename).name}:{step.tb_lineno}" if step else ""
        return f"{type(error).__name__} {error!s:.150} at {where}"
    except BaseException as error:  # a panic of the tokenizer library
        return f"{type(error).__name__} {error!s:.150}"
    return None


def fuzz(cases: int, seed: int, families: list[str] | None = None) -> Tally:
    """Try changes of the folders of all families, or of some."""
    tally, chosen = Tally("damaged folders"), families or BASES
    kinds = [name for name, (weight, _) in CHANGES.items() for _ in range(weight)]
    with tempfile.TemporaryDirectory() as name:
        for family in chosen:
            SAVERS[family](Path(name) / family)
            settings = {
                "_from_model_config": True,
                "eos_token_id": 2,
                "top_p": 0.9,
                "max_length": 9,
                "bad_words_ids": [[1]],
            }
            (Path(name) / family / "generation_config.json").write_text(json.dumps(settings))
        for case in range(cases):
            rng = np.random.default_rng([seed, case])
            family, folder = chosen[case % len(chosen)], Path(name) / "case"
            shutil.copytree(Path(name) / family, folder)
            kind = pick(rng, kinds)
            told = CHANGES[kind][1](folder, rng)
            tally.record(f"seed {seed}, case {case} ({family}, {kind}: {told})", problem_of(folder, told, rng))
            shutil.rmtree(folder)
            if case % 50 == 49:
                jax.clear_caches()
    return tally


if __name__ == "__main__":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    jax.config.update("jax_disable_most_optimizations", True)
    main(fuzz, cases=3000)
