"""Tokenizers: what is encoded comes back, whatever it is; vocabularies hold what they say."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from jaxformer import InputError
from jaxformer.data import Tokenizer, load_tokenizer, train_tokenizer
from jaxformer.data import tokenizer as module
from jaxformer.data.tokenizer import BYTES, END, UNKNOWN

TEXT = "the cat's hat, the cat's mat;\nthe dog\r\n\tsat on 12 hats -- and on the mat.\n\n" * 7
WORDS = 20  # different words, spaces and signs in it
SIZES = {"char": 24, "word": WORDS + 2, "bpe": 281}
KINDS = list(SIZES)
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))
COMBINED = "e\N{COMBINING ACUTE ACCENT}\N{COMBINING DIAERESIS}"
CONTROL = "\x00\x1b\x7f\x85\r\n\r\n\t\u2028\ufeff\ufffd \N{NO-BREAK SPACE}"
EMOJI = "\N{FAMILY}\N{ZERO WIDTH JOINER}\N{GRINNING FACE}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}"


@cache
def trained(kind: str) -> Tokenizer:
    return train_tokenizer(kind, [TEXT], SIZES[kind])


@pytest.mark.smoke
@pytest.mark.parametrize("kind", KINDS)
def test_text_that_was_trained_on_comes_back(kind: str) -> None:
    tokenizer = trained(kind)
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.ndim == 1
    assert tokenizer.decode(ids) == TEXT
    assert tokenizer.unknown(TEXT) == []
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""


@given(UNICODE)
@example(COMBINED)
@example(CONTROL)
@example(EMOJI)
@example(f"{END}{UNKNOWN}{END} \U0010ffff")
@settings(max_examples=200, deadline=None)
def test_any_text_comes_back_from_bytes(text: str) -> None:
    tokenizer = trained("bpe")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unknown(text) == []
    assert tokenizer.end not in ids


@given(UNICODE.filter(bool))
@example(COMBINED)
@example(CONTROL)
@example(EMOJI)
@example(f"{END}{UNKNOWN}{END} \U0010ffff")
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_from_its_characters(text: str) -> None:
    tokenizer = train_tokenizer("char", [text], 1000)
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.vocab_size == len(set(text)) + 2
    assert tokenizer.decode(ids) == text
    assert tokenizer.unknown(text) == []
    assert tokenizer.end not in ids


@given(UNICODE.filter(bool))
@example(COMBINED)
@example(CONTROL)
@example(EMOJI)
@example(f"{END} {UNKNOWN}")
@settings(max_examples=100, deadline=None)
def test_any_text_comes_back_from_its_words(text: str) -> None:
    with pytest.raises(InputError) as refused:
        train_tokenizer("word", [text], 10**6)
    tokenizer = train_tokenizer("word", [text], int(str(refused.value).split()[-2]))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unknown(text) == []
    assert tokenizer.end not in tokenizer.encode(text)


def test_words_are_cut_from_spaces_and_signs() -> None:
    shown = ["the", "␣", "cat", "'", "s", "\\n", "\\n", "-", "-", "mat", "."]
    assert trained("word").names(trained("word").encode("the cat's\n\n--mat.")) == shown


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_a_text_are_letters(kind: str) -> None:
    tokenizer = train_tokenizer(kind, [TEXT + f"{END}{END}"], SIZES[kind])
    ids = tokenizer.encode(f"the{END}")
    assert tokenizer.end not in ids
    assert len(ids) > 2
    assert tokenizer.decode([*tokenizer.encode("the"), tokenizer.end]) == f"the{END}"
    assert len(tokenizer.encode(END)) > 1


@pytest.mark.parametrize("kind", ["char", "word"])
def test_what_is_unknown_is_reported_once_in_order(kind: str) -> None:
    text = "the Ö Ö cat\N{GRINNING FACE} É"
    tokenizer = trained(kind)
    assert tokenizer.unknown(text) == ["Ö", "\N{GRINNING FACE}", "É"]
    assert tokenizer.decode(tokenizer.encode(text)) == f"the {UNKNOWN} {UNKNOWN} cat{UNKNOWN} {UNKNOWN}"


def test_the_most_frequent_characters_are_kept() -> None:
    tokenizer = train_tokenizer("char", ["abbccc", "cdd"], 4)
    assert tokenizer.vocab_size == 4
    assert tokenizer.unknown("abcd") == ["a", "d"]


def test_byte_pairs_begin_with_all_bytes() -> None:
    tokenizer = train_tokenizer("bpe", [TEXT], 257)
    assert tokenizer.vocab_size == 257
    assert set(BYTES) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTES.values()) == list(range(256))
    text = "".join(map(chr, range(0x250)))
    assert len(tokenizer.encode(text)) == len(text.encode())
    assert {tokenizer.backend.id_to_token(index) for index in range(1, 257)} == set(BYTES)


def test_what_occurs_once_is_not_merged() -> None:
    with pytest.raises(InputError, match="supports 257 tokens"):
        train_tokenizer("bpe", ["abcdef"], 258)
    assert train_tokenizer("bpe", ["abcdef xab"], 258).vocab_size == 258


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpe", 256, "at least 257"),
        ("bpe", 10**6, r"supports \d{3} tokens"),
        ("word", 2, "at least 3"),
        ("word", 10**6, f"supports {WORDS + 2} tokens"),
        ("char", 2, "at least 3"),
        ("letters", 100, "'letters'"),
    ],
)
def test_impossible_vocabularies_are_refused(kind: str, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_tokenizer(kind, [TEXT], size)


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_the_size_that_a_refusal_names_is_possible(kind: str) -> None:
    with pytest.raises(InputError) as refused:
        train_tokenizer(kind, [TEXT], 10**6)
    possible = int(str(refused.value).split()[-2])
    assert train_tokenizer(kind, [TEXT], possible).vocab_size == possible
    with pytest.raises(InputError):
        train_tokenizer(kind, [TEXT], possible + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_no_text_is_refused(kind: str) -> None:
    with pytest.raises(InputError):
        train_tokenizer(kind, iter(()), 300)


def test_errors_of_the_documents_come_through() -> None:
    def documents():
        yield TEXT
        raise InputError("line 2 is no JSON")

    with pytest.raises(InputError, match="line 2 is no JSON"):
        train_tokenizer("char", documents(), 300)


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_surrogate_pair_is_refused(kind: str) -> None:
    tokenizer = trained(kind)
    for use in (tokenizer.encode, tokenizer.unknown, lambda text: train_tokenizer(kind, [text], 300)):
        with pytest.raises(InputError, match=r"'\\udce9' \(character 3\)"):
            use("ab\udce9")


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.sampled_from("ab '1.,-\n\r\t\x1c\x85\N{NO-BREAK SPACE}é"), max_size=60))
@settings(max_examples=50, deadline=None)
def test_blocks_change_no_token(kind: str, text: str) -> None:
    tokenizer, ids = trained(kind), trained(kind).backend.encode(text).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", re.compile(module.BLOCK.pattern.replace("65536", "3"), re.DOTALL))
        patch.setattr(module, "PIECE", 2)
        assert tokenizer.encode(text).tolist() == ids
        parts = list(tokenizer.pieces(text))
    assert "".join(part for _, part in parts) == text
    assert all(len(some) <= 2 for some, _ in parts)
    for some, part in parts if kind == "char" else []:
        assert tokenizer.encode(part).tolist() == some.tolist()


def test_long_text_is_cut_into_blocks() -> None:
    text = "ab cd\n" * 30_000
    tokenizer = trained("bpe")
    sizes = [len(block) for block in tokenizer.blocks(text)]
    assert sum(sizes) == len(text)
    assert max(sizes) < 65_600
    assert [len(block) for block in tokenizer.blocks("a" * 200_000)] == [200_000]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same(kind: str, tmp_path: Path) -> None:
    tokenizer, path = trained(kind), tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = load_tokenizer(path)
    assert (loaded.kind, loaded.vocab_size, loaded.end) == (kind, SIZES[kind], tokenizer.end)
    assert loaded.digest == tokenizer.digest == train_tokenizer(kind, iter([TEXT]), SIZES[kind]).digest
    text = TEXT + END + "é"
    np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))
    assert loaded.unknown(text) == tokenizer.unknown(text)
    assert tokenizers.Tokenizer.from_file(str(path)).encode(TEXT).ids == tokenizer.encode(TEXT).tolist()


def test_digests_tell_tokenizers_apart() -> None:
    assert len({trained(kind).digest for kind in KINDS}) == 3
    assert train_tokenizer("char", ["abc"], 9).digest != train_tokenizer("char", ["abd"], 9).digest


def save_foreign(path: Path, names: dict[str, int]) -> Path:
    """A tokenizer.json that pads, truncates and frames what it encodes."""
    backend = tokenizers.Tokenizer(models.WordPiece(names, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    backend.save(str(path))
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "s", "the", "##s", "cat")
    return save_foreign(tmp_path / "tokenizer.json", {name: index for index, name in enumerate(names)})


def test_a_ready_tokenizer_encodes_the_text_alone(foreign: Path) -> None:
    tokenizer = load_tokenizer(foreign)
    assert tokenizer.kind == "file"
    assert tokenizer.encode("the cat the dog the cat").tolist() == [5, 7, 5, 1, 5, 7]
    assert tokenizer.unknown("the dog, the dog") == ["dog", ","]
    assert tokenizer.encode(f"the {END}").tolist()[0] == 5
    assert tokenizer.end not in tokenizer.encode(f"the {END}")
    assert tokenizer.backend.id_to_token(tokenizer.end) == END
    assert (tokenizer.end, tokenizer.vocab_size) == (8, 9)
    assert tokenizer.names([5, 7]) == ["the", "cat"]
    for text in (" the cat ", "  "):
        assert "".join(part for _, part in tokenizer.pieces(text)) == text


def test_a_ready_tokenizer_reads_a_text_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # SentencePiece's tokenizers write the beginning of a text as a space.
    backend = tokenizers.Tokenizer(models.WordLevel({"▁a": 0, "▁b": 1, "▁": 2, "?": 3}, unk_token="?"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    monkeypatch.setattr(module, "BLOCK", re.compile(r"..|.", re.DOTALL))
    tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.encode("a b b a").tolist() == [0, 1, 1, 0]
    assert tokenizer.decode([0, 1, 1, 0]) == "a b b a"
    assert tokenizer.names([0, 2]) == ["a", "▁"]


def test_a_ready_tokenizer_may_number_its_unknown_token(tmp_path: Path) -> None:
    tokenizers.Tokenizer(models.Unigram([("a", -1.0), ("?", -9.0), ("b", -2.0)], unk_id=1)).save(
        str(tmp_path / "u.json")
    )
    assert load_tokenizer(tmp_path / "u.json").unknown("abcabd") == ["c", "d"]


def test_a_ready_tokenizer_is_the_same_after_saving(foreign: Path, tmp_path: Path) -> None:
    first = load_tokenizer(foreign)
    first.save(tmp_path / "again.json")
    again = load_tokenizer(tmp_path / "again.json")
    assert (again.digest, again.kind, again.end) == (first.digest, "file", first.end)


def test_no_id_is_given_twice(tmp_path: Path) -> None:
    names = {"[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": 4}
    with pytest.raises(InputError, match="gaps between its ids"):
        load_tokenizer(save_foreign(tmp_path / "tokenizer.json", names))
    ready = load_tokenizer(save_foreign(tmp_path / "tokenizer.json", names | {END: 9}))
    assert (ready.end, ready.vocab_size) == (9, 10)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\xff\xfe\x00", b'{"version": "1.0"'])
def test_what_is_no_tokenizer_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json is no tokenizer\.json") as refused:
        load_tokenizer(path)
    assert "\n" not in str(refused.value)


def test_a_device_is_no_tokenizer() -> None:
    with pytest.raises(InputError, match="/dev/zero is no file"):
        load_tokenizer(Path("/dev/zero"))


def test_panics_of_the_library_are_errors_of_the_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """They are no `Exception`, and the library would print them."""
    path = tmp_path / "tokenizer.json"
    train_tokenizer("word", ["a b"], 5).save(path)
    parts = json.loads(path.read_text())
    for change, wrong in (
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "is no tokenizer.json"),
        ({"model": parts["model"] | {"unk_token": "none"}}, "cannot read this text"),
    ):
        path.write_text(json.dumps(parts | change))
        with pytest.raises(InputError, match=wrong):
            load_tokenizer(path).encode("c")
    assert capfd.readouterr() == ("", "")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json cannot be read: No such file"):
        load_tokenizer(tmp_path / "nowhere.json")


def test_names_can_be_read() -> None:
    tokenizer = train_tokenizer("bpe", ["\N{GRINNING FACE} caf\u00e9 caf\u00e9\n\n"], 257)
    assert tokenizer.names(tokenizer.encode(" é\n")) == ["␣", "\\xc3", "\\xa9", "\\n"]
    merged = train_tokenizer("bpe", ["café " * 9], 260)
    assert "".join(merged.names(merged.encode("café"))).startswith("ca")
    assert all(name.isprintable() and name for name in merged.names(range(merged.vocab_size)))
    assert trained("char").names([trained("char").end]) == [END]
    assert train_tokenizer("char", ["\ufffd"], 9).names([2]) == ["\ufffd"]


def test_what_is_saved_is_plain_json(tmp_path: Path) -> None:
    trained("word").save(tmp_path / "tokenizer.json")
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"][END] == trained("word").end
