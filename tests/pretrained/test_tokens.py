"""Tokenizers that the library panics at, hangs in or aborts for, and what encoding and decoding raise."""

import base64
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from jaxformer.data.tokenizer import library_errors
from jaxformer.errors import InputError
from jaxformer.pretrained.tokens import decode, encode, read_tokenizer

TEXTS = ["the quick brown fox jumps over the lazy dog, 12 times", "a caf\u00e9 in Z\u00fcrich"]


def charsmap() -> str:
    """What SentencePiece compiles of the rule "a" -> "b": a trie of two blocks of 256 units, and the text."""
    units = np.zeros(512, "<u4")
    units[0] = 256 << 10  # children of the root are in the second block
    units[256 ^ ord("a")] = ord("a") | 1 << 8 | (256 ^ ord("a") ^ 300) << 10  # "a" has a value, at 300
    units[300] = 1 << 31
    return base64.b64encode(len(units.tobytes()).to_bytes(4, "little") + units.tobytes() + b"b\0").decode()


def unigram() -> dict[str, Any]:
    """As T5 has them: SentencePiece's rules, pieces with probabilities, an end of text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<unk>", "</s>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    parts = json.loads(tokenizer.to_str())
    parts["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, precompiled(charsmap())]}
    return parts


def precompiled(value: Any) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": value}


def bpe() -> dict[str, Any]:
    """As GPT-2 has them: bytes and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return json.loads(tokenizer.to_str())


def words(**more: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    return json.loads(tokenizer.to_str()) | more


def write(folder: Path, parts: Any) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(parts))
    return path


@pytest.mark.parametrize("make", [unigram, bpe, words])
def test_good_files_are_read(tmp_path: Path, make: Any) -> None:
    tokenizer = read_tokenizer(write(tmp_path, make()), 1000)
    assert encode(tokenizer, TEXTS) == [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]


def test_rules_of_sentencepiece_apply(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path, unigram()), 1000)
    assert tokenizer.normalizer.normalize_str("cab") == "cbb"


BROKEN_MAPS = [None, True, 3, [], {}, "", "x", "AAAA", "[UNK]", "a" * 1000, charsmap()[:100], charsmap() + "!"]


@pytest.mark.parametrize("value", BROKEN_MAPS)
@pytest.mark.parametrize("alone", [True, False])
def test_rules_that_sentencepiece_did_not_compile(tmp_path: Path, value: Any, alone: bool) -> None:
    rules = precompiled(value)
    parts = unigram() | {"normalizer": rules if alone else {"type": "Sequence", "normalizers": [rules]}}
    with pytest.raises(InputError, match=r"tokenizer\.json: normalizer: its precompiled_charsmap is damaged"):
        read_tokenizer(write(tmp_path, parts), 1000)


@pytest.mark.parametrize("place", [0, 256 ^ ord("a"), 300, 511])
def test_rules_with_a_damaged_unit(tmp_path: Path, place: int) -> None:
    """Where it leads out of the trie or out of the texts, it is refused; else texts can be normalised."""
    good = bytearray(base64.b64decode(charsmap()))
    for value in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\1\0\0\x80", b"\x05\0\0\x80"):
        damaged = bytes(good[: 4 + 4 * place]) + value + bytes(good[8 + 4 * place :])
        parts = unigram() | {"normalizer": precompiled(base64.b64encode(damaged).decode())}
        try:
            tokenizer = read_tokenizer(write(tmp_path, parts), 1000)
        except InputError:
            continue
        tokenizer.normalizer.normalize_str("".join(map(chr, range(1, 700))))


def changed(parts: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    parts = copy.deepcopy(parts)
    *above, last = path.split("/")
    inner = parts
    for key in above:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    inner[last] = value
    return parts


PADDING = {"direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}
BROKEN = {
    "an id of two thousand million": (
        changed(words(), "model/vocab/a", 2**31),
        "2,147,483,649 tokens, but the model's",
    ),
    "an id of two thousand million, in BPE": (changed(bpe(), "model/vocab/a", 2**31), "they do not belong together"),
    "a prefix that merges lack": (changed(bpe(), "model/continuing_subword_prefix", "x"), "continuing_subword_prefix"),
    "a long prefix": (changed(bpe(), "model/continuing_subword_prefix", "x" * 999), "continuing_subword_prefix"),
    "no special token": (
        changed(unigram(), "post_processor/special_tokens", {}),
        '"</s>" is not among its special_tok',
    ),
    "padding to multiples": (
        words(padding=PADDING | {"strategy": "BatchLongest", "pad_to_multiple_of": 2**31}),
        "padding to 2147483648 tokens",
    ),
    "padding to a length": (words(padding=PADDING | {"strategy": {"Fixed": 2**40}}), "padding to 1099511627776"),
    "no model": ({"version": "1.0"}, "is damaged"),
    "list": ([], "must hold a JSON object"),
    "no normalizer": (words(normalizer={"type": "Nothing"}), "is damaged"),
    "a long name": (words(normalizer={"type": "x" * 9999}), "is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path: Path, name: str, capfd: pytest.CaptureFixture) -> None:
    parts, message = BROKEN[name]
    path = write(tmp_path, parts)
    with pytest.raises(InputError, match=rf"tokenizer\.json: .*{message}") as refused:
        read_tokenizer(path, 1000)
    assert len(str(refused.value)) - len(str(path)) < 310
    assert capfd.readouterr().err == ""  # a panic would have written to it


def test_what_encoding_and_decoding_raise(tmp_path: Path) -> None:
    tokenizer = read_tokenizer(write(tmp_path, changed(words(), "model/unk_token", "missing")), 1000)
    assert encode(tokenizer, ["a b"]) == [[0, 1]]
    with pytest.raises(InputError, match=r"the tokenizer cannot encode the text: .*UNK"):
        encode(tokenizer, ["a c"])
    with pytest.raises(InputError, match=r"'\\ud800' \(character 3\) is half a surrogate pair"):
        encode(tokenizer, ["a", "a \ud800"])
    with pytest.raises(InputError, match="the tokenizer cannot decode the tokens"):
        decode(tokenizer, [-1])
    assert decode(tokenizer, [0, 1, 999]) == "a b"


def test_panics_are_caught_and_interrupts_are_not() -> None:
    panic = type("PanicException", (BaseException,), {})
    with pytest.raises(InputError, match="is damaged: index out of bounds"), library_errors("is damaged"):
        raise panic("index out\nof bounds")
    with pytest.raises(KeyboardInterrupt), library_errors("is damaged"):
        raise KeyboardInterrupt
    with pytest.raises(InputError, match=r"^of our own$"), library_errors("is damaged"):
        raise InputError("of our own")


def test_padding_and_truncation_of_the_file_are_left_out(tmp_path: Path) -> None:
    parts = words(padding=PADDING | {"strategy": {"Fixed": 5}}, post_processor=None)
    parts["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = read_tokenizer(write(tmp_path, parts), 1000)
    assert tokenizer.encode("a b a").ids == [0, 1, 0, 0, 0]
    assert encode(tokenizer, ["a b a", "b"]) == [[0, 1, 0], [1]]
    assert encode(tokenizer, ["a b a", "b"], limit=1) == [[0], [1]]
    assert tokenizer.encode("a b a").ids == [0, 1, 0, 0, 0]
    ends = read_tokenizer(write(tmp_path, unigram()), 1000)
    (with_end,), (without,) = encode(ends, ["the"]), encode(ends, ["the"], special_tokens=False)
    assert with_end == [*without, 1]
