"""Corpora: what is read, what is refused, and what the cache holds."""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxformer import InputError
from jaxformer.data import (
    Corpus,
    Tokenizer,
    documents,
    open_corpus,
    split_corpus,
    text,
    train_tokenizer,
)
from jaxformer.locks import locked

LINES = "A word, or two.\r\nÉ and \N{GRINNING FACE}!\n\n"
PARTS = ("tokens", "ends", "sizes", "cuts")


def corpus_of(texts: list[str], folder: Path, kind: str = "char", size: int = 300) -> tuple[Corpus, Tokenizer]:
    """The texts as a corpus, read from a .jsonl file, and its tokenizer."""
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
    tokenizer = train_tokenizer(kind, texts, size)
    return open_corpus(source, tokenizer, folder / "cache"), tokenizer


# --- documents


def test_a_file_is_one_document_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "book.md"
    path.write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    assert list(documents(path)) == [LINES]


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    for name, content in {
        "b.txt": "two",
        "a/z.txt": "one",
        "c/d/e.jsonl": '{"text": "three"}\n\n{"text": ""}\n{"text": "four\\n\\u2028"}',
        "c/empty.txt": "",
        "c/picture.png": "five",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert list(documents(tmp_path)) == ["one", "two", "three", "four\n\u2028"]


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"body": "a\u2028b\x85"}\r\n{"body":\r"c", "text": "d"}'.encode())
    assert list(documents(path, "body")) == ["a\u2028b\x85", "c"]


def test_without_a_source_there_is_the_language_reference() -> None:
    texts = list(documents(None))
    assert len(texts) > 50
    assert 300_000 < sum(map(len, texts)) < 900_000
    assert texts == list(documents(None))
    assert any("lambda" in each for each in texts)


def test_topics_of_the_reference_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pydoc_data.topics.topics", {"b": "two", "c": "", "a": "one"})
    assert list(documents(None)) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("book.txt", b"", "book.txt is empty"),
        ("rows.jsonl", b'\n{"text": ""}\n', "rows.jsonl is empty"),
        ("book.txt", b"abc\xff\xfe\x00def", "book.txt is no UTF-8 text"),
        ("rows.jsonl", b'{"text": "a"}\n\n\xff\n', "rows.jsonl is no UTF-8 text"),
        ("rows.jsonl", b'{"text": "a"}\n\n{"text": a}\n', "rows.jsonl, line 3: this is no JSON"),
        ("rows.jsonl", b"[" * 100_000, "line 1: this is no JSON"),
        ("rows.jsonl", b'{"text": "a"}\n{"body": "b"}\n', "line 2: no text is named 'text'"),
        ("rows.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2: no text is named 'text'"),
        ("rows.jsonl", b'["text"]\n', "line 1: no text is named 'text'"),
        ("rows.jsonl", b'{"text": "ab\\ud800"}\n', r"line 1: '\\ud800' \(character 3\)"),
    ],
)
def test_what_holds_no_text_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        list(documents(tmp_path / name))
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError):
        list(documents(tmp_path))


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.txt is neither a file nor a folder"):
        list(documents(tmp_path / "nowhere.txt"))
    with pytest.raises(InputError, match=r"has no files that end in \.txt or \.jsonl"):
        list(documents(tmp_path))


@pytest.mark.parametrize("device", ["/dev/zero", "pipe"])
def test_what_has_no_end_is_refused(device: str, tmp_path: Path) -> None:
    """By itself, and in a folder of texts."""
    (tmp_path / "a.txt").write_text("a")
    if device == "pipe":
        os.mkfifo(tmp_path / "b.txt")
    else:
        (tmp_path / "b.txt").symlink_to(device)
    with pytest.raises(InputError, match="neither a file nor a folder"):
        next(documents(tmp_path / "b.txt"))
    with pytest.raises(InputError, match="is a device or a pipe: leave it out"):
        next(documents(tmp_path))


def test_a_large_file_that_is_no_text_is_not_read_whole(tmp_path: Path) -> None:
    """It would not fit into memory."""
    with (tmp_path / "large").open("wb") as file:
        file.write(b"\xff")
        file.truncate(2**40)
    with pytest.raises(InputError, match="is no UTF-8 text"):
        next(documents(tmp_path / "large"))


def test_what_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "book.txt").write_text("abc")
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(InputError, match=r"book\.txt cannot be read: Permission denied"):
        list(documents(tmp_path / "book.txt"))
    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=r"cannot be read: Permission denied"):
        list(documents(tmp_path))
    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(InputError, match=r"cannot be read: Permission denied"):
        list(documents(tmp_path))


# --- the cache


@pytest.mark.parametrize(("kind", "size"), [("char", 300), ("word", 9), ("bpe", 263)])
def test_a_corpus_holds_the_documents(kind: str, size: int, tmp_path: Path) -> None:
    texts = [LINES, "word", LINES * 50]
    corpus, tokenizer = corpus_of(texts, tmp_path, kind, size)
    assert isinstance(corpus.tokens, np.memmap)
    assert corpus.tokens.dtype == np.uint16
    assert corpus.sizes.tolist() == [len(each.encode()) for each in texts]
    for each, start, end in zip(texts, [0, *corpus.ends], corpus.ends, strict=False):
        np.testing.assert_array_equal(corpus.tokens[start:end], [*tokenizer.encode(each), tokenizer.end])
    assert corpus.ends[-1] == len(corpus.tokens)
    assert corpus.cuts[-1].tolist() == [len(corpus.tokens), corpus.sizes.sum()]
    assert (np.diff(corpus.cuts[:, 0]) > 0).all()
    assert set(corpus.ends) <= set(corpus.cuts[:, 0])
    if kind == "char":
        for (start, before), (end, behind) in pairwise([(0, 0), *corpus.cuts]):
            ids = corpus.tokens[start:end]
            assert len(tokenizer.decode(ids[ids != tokenizer.end]).encode()) == behind - before


@pytest.mark.parametrize(("count", "dtype"), [(65_534, np.uint16), (65_535, np.uint32)])
def test_tokens_take_as_many_bytes_as_the_vocabulary_needs(count: int, dtype: type, tmp_path: Path) -> None:
    letters = "".join(map(chr, range(0x10000, 0x10000 + count)))
    corpus, tokenizer = corpus_of([letters], tmp_path, size=100_000)
    assert tokenizer.vocab_size == count + 2
    assert corpus.tokens.dtype == dtype
    assert tokenizer.decode(corpus.tokens[:-1]) == letters


def count_savings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that corpora are written to from now on."""
    written, save = [], text.save_corpus

    def counted(folder: Path, texts: object, tokenizer: Tokenizer) -> None:
        written.append(folder)
        save(folder, texts, tokenizer)

    monkeypatch.setattr(text, "save_corpus", counted)
    return written


def test_text_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = count_savings(monkeypatch)
    source, cache = tmp_path / "book.txt", tmp_path / "deep" / "cache"
    source.write_text(LINES)
    tokenizer = train_tokenizer("char", [LINES], 99)
    first, again = (open_corpus(source, tokenizer, cache) for _ in range(2))
    assert len(written) == 1
    for part in PARTS:
        np.testing.assert_array_equal(getattr(first, part), getattr(again, part))
    assert [path.name for path in cache.iterdir()] == [written[0].name]

    source.write_text(LINES.replace("word", "text"))
    assert tokenizer.decode(open_corpus(source, tokenizer, cache).tokens[2:6]) != "word"
    assert len(written) == 2
    open_corpus(source, train_tokenizer("char", [LINES], 9), cache)
    assert len(written) == 3
    source.write_text(LINES)
    np.testing.assert_array_equal(open_corpus(source, tokenizer, cache).tokens, first.tokens)
    assert len(written) == 3


def test_the_same_letters_in_other_documents_are_another_corpus(tmp_path: Path) -> None:
    tokenizer = train_tokenizer("char", ["abc"], 9)
    names = set()
    for texts in (["ab", "c"], ["a", "bc"], ["abc"]):
        (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": each}) for each in texts))
        names.add(text.checksum(tmp_path / "rows.jsonl", tokenizer, "text"))
    assert len(names) == 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


@pytest.mark.parametrize("damage", [flip, shorten, Path.unlink])
@pytest.mark.parametrize("part", ["tokens.npy", "ends.npy", "sizes.npy", "cuts.npy", "sha256"])
def test_a_damaged_cache_is_made_again(
    part: str, damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, tokenizer = corpus_of([LINES, "word"], tmp_path)
    expected = {name: np.array(getattr(corpus, name)) for name in PARTS}
    written = count_savings(monkeypatch)
    (folder,) = (tmp_path / "cache").iterdir()
    damage(folder / part)
    again = open_corpus(tmp_path / "texts.jsonl", tokenizer, tmp_path / "cache")
    assert len(written) == 1
    for name, values in expected.items():
        np.testing.assert_array_equal(getattr(again, name), values)
    open_corpus(tmp_path / "texts.jsonl", tokenizer, tmp_path / "cache")
    assert len(written) == 1


def test_half_a_corpus_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = tmp_path / "book.txt", tmp_path / "cache"
    source.write_text(LINES)
    tokenizer = train_tokenizer("char", [LINES], 99)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            open_corpus(source, tokenizer, cache)
    assert list(cache.iterdir()) == []
    assert len(open_corpus(source, tokenizer, cache).tokens) == len(LINES) + 1


def test_what_killed_programs_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    source, cache = tmp_path / "book.txt", tmp_path / "cache"
    source.write_text(LINES)
    names = ("unfinished-old", "unfinished-held", "unfinished-new", "corpus")
    for name in names:
        (cache / name).mkdir(parents=True)
        (cache / name / "tokens.npy").touch()
        if name != "unfinished-new":
            os.utime(cache / name, (0, 0))
    with locked(cache / "unfinished-held"):
        os.utime(cache / "unfinished-held", (0, 0))
        open_corpus(source, train_tokenizer("char", [LINES], 9), cache)
        assert {path.name for path in cache.iterdir()} >= set(names[1:])
        assert not (cache / "unfinished-old").exists()


def test_text_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, save = tmp_path / "book.txt", text.save_corpus

    def changed(*arguments: object) -> None:
        save(*arguments)
        source.write_text(LINES + "more")

    source.write_text(LINES)
    monkeypatch.setattr(text, "save_corpus", changed)
    with pytest.raises(InputError, match="changed while it was read"):
        open_corpus(source, train_tokenizer("char", [LINES], 99), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_programs_may_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache, save = tmp_path / "book.txt", tmp_path / "cache", text.save_corpus
    source.write_text(LINES)
    tokenizer = train_tokenizer("char", [LINES], 99)

    def overtaken(*arguments: object) -> None:
        monkeypatch.setattr(text, "save_corpus", save)
        open_corpus(source, tokenizer, cache)
        save(*arguments)

    monkeypatch.setattr(text, "save_corpus", overtaken)
    corpus = open_corpus(source, tokenizer, cache)
    assert tokenizer.decode(corpus.tokens[:-1]) == LINES
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text(LINES)
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        open_corpus(tmp_path / "book.txt", train_tokenizer("char", [LINES], 99), tmp_path / "book.txt")


# --- training and validation


def assert_partition(corpus: Corpus, parts: tuple[Corpus, Corpus]) -> None:
    """The parts are the corpus, cut in two."""
    np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), corpus.tokens)
    assert sum(int(part.sizes.sum()) for part in parts) == corpus.sizes.sum()
    for part in parts:
        assert len(part.tokens) > 0
        assert len(part.ends) == len(part.sizes)
        assert part.ends[-1] == len(part.tokens)
        assert part.cuts[-1].tolist() == [len(part.tokens), part.sizes.sum()]


def test_many_documents_stay_whole(tmp_path: Path) -> None:
    texts = [f"{index:03}" * (1 + index % 7) for index in range(61)]
    corpus, tokenizer = corpus_of(texts, tmp_path)
    parts = split_corpus(corpus, 0.2)
    assert_partition(corpus, parts)
    told = []
    for part in parts:
        starts = [0, *part.ends[:-1]]
        told.append(
            [tokenizer.decode(part.tokens[start : end - 1]) for start, end in zip(starts, part.ends, strict=True)]
        )
        assert part.sizes.tolist() == [len(each) for each in told[-1]]
    assert told[0] + told[1] == texts
    assert not set(told[0]) & set(told[1])
    assert parts[1].sizes.sum() / corpus.sizes.sum() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_few_documents_are_cut_at_the_same_text(kind: str, tmp_path: Path) -> None:
    texts = [" ".join(f"{word:x}\N{GRINNING FACE}" for word in range(first, first + 900)) for first in (0, 900, 1800)]
    corpus, tokenizer = corpus_of(texts, tmp_path, kind, {"char": 300, "word": 500, "bpe": 300}[kind])
    training, validation = split_corpus(corpus)
    assert_partition(corpus, (training, validation))
    assert len(training.ends) == 3
    assert len(validation.ends) == 1
    assert validation.sizes.sum() / corpus.sizes.sum() == pytest.approx(0.1, abs=0.03)
    if kind != "word":
        assert len(tokenizer.decode(validation.tokens[:-1]).encode()) == validation.sizes.sum()
        assert texts[-1].endswith(tokenizer.decode(validation.tokens[:-1]))


@given(st.lists(st.integers(1, 700), min_size=1, max_size=13), st.floats(0.01, 0.99))
@example([500] * 10, 0.15)
@example([500] * 9, 0.15)
@settings(max_examples=100, deadline=None)
def test_parts_never_overlap(lengths: list[int], share: float) -> None:
    ends = np.cumsum(lengths)
    cuts = np.unique(np.concatenate([ends, np.arange(128, ends[-1], 128)]))
    corpus = Corpus(np.arange(ends[-1]), ends, np.array(lengths) * 3, np.stack([cuts, cuts * 3], axis=1))
    if len(lengths) < 10 and len(cuts) == 1:
        with pytest.raises(InputError, match="too few"):
            split_corpus(corpus, share)
        return
    training, validation = split_corpus(corpus, share)
    assert_partition(corpus, (training, validation))
    assert training.tokens[-1] < validation.tokens[0]
    if len(lengths) >= 10:
        assert training.ends[-1] in ends
    else:
        assert abs(training.sizes.sum() - (1 - share) * corpus.sizes.sum()) <= 3 * 128
    if len(training.ends) < 10 and len(training.cuts) > 1:
        assert_partition(training, split_corpus(training, share))
    if len(validation.ends) < 10 and len(validation.cuts) > 1:
        assert_partition(validation, split_corpus(validation, share))
