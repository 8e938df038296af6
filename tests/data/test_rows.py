"""Files of pairs and of labelled texts: every form, and every bad line named."""

from pathlib import Path
from typing import Any

import pytest

from jaxformer import InputError
from jaxformer.data.rows import read_labelled, read_pairs


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_form_of_a_pair_is_read(tmp_path: Path) -> None:
    expected = [("a dog", "ein Hund"), ("two cats", "zwei Katzen")]
    tabs = written(tmp_path, "a.tsv", "\ufeffa dog\tein Hund\r\n\ntwo cats\tzwei Katzen")
    assert read_pairs(tabs) == expected
    lines = (
        '{"source": "a dog", "target": "ein Hund"}\n{"source": "two cats", "target": "zwei Katzen", "id": 3}\n',
        '{"translation": {"en": "a dog", "de": "ein Hund"}}\n{"translation": {"en": "two cats", "de": "zwei Katzen"}}',
        '{"prompt": "a dog", "completion": "ein Hund"}\n\n{"prompt": "two cats", "completion": "zwei Katzen"}\n',
    )
    for text in lines:
        assert read_pairs(written(tmp_path, "a.jsonl", text)) == expected


def test_labelled_texts_are_read(tmp_path: Path) -> None:
    assert read_labelled(written(tmp_path, "a.tsv", "good\t1\nbad\t0\n")) == [("good", "1"), ("bad", "0")]
    text = '{"text": "good", "label": 1}\n{"sentence": "bad", "label": "neg"}\n'
    assert read_labelled(written(tmp_path, "a.jsonl", text)) == [("good", "1"), ("bad", "neg")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.tsv", "one\ta\ntwo\nthree\tb\tc\n", "2 bad lines in .*: line 2: 1 column, not two .*; line 3: 3 columns"),
        ("a.tsv", "one\t \n", "has no line that can be read, for example line 1: an empty text"),
        ("a.jsonl", '{"source": "a"}\n', "line 1: no source and target"),
        ("a.jsonl", '{"source": "a", "target": 1.5}\n', "line 1: 1.5 is no text"),
        ("a.jsonl", "a\tb\n", "line 1: no JSON"),
        ("a.jsonl", "[1]\n", "line 1: .* is no object"),
        ("a.jsonl", '{"translation": {"en": "a"}}\n', "line 1: translation has 1 texts, not two"),
        ("a.jsonl", '{"source": "\\ud800", "target": "b"}\n', "line 1: .* is half a surrogate pair"),
        ("a.tsv", "\n\n", "has no rows"),
        ("a.tsv", "", "has no rows"),
    ],
)
def test_bad_lines_are_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as error:
        read_pairs(written(tmp_path, name, text))
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)


def test_bad_lines_can_be_skipped_and_are_told(tmp_path: Path) -> None:
    path, told = written(tmp_path, "a.tsv", "one\ta\n" + "bad\n" * 7), []
    assert read_pairs(path, skip_bad=True, say=told.append) == [("one", "a")]
    (line,) = told
    assert line.startswith("7 bad lines in ")
    assert line.endswith("and 2 more: skipped")
    with pytest.raises(InputError, match="--skip-bad goes on without"):
        read_pairs(path)


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b"\xff\xfe\x00")
    for path, said in ((tmp_path / "a.tsv", "no UTF-8"), (tmp_path, "is no file"), (tmp_path / "b.tsv", "cannot be")):
        with pytest.raises(InputError, match=said):
            read_pairs(path)


@pytest.mark.parametrize(
    ("read", "heading"),
    [(read_pairs, "Source\tTarget"), (read_labelled, "sentence\tlabel"), (read_labelled, "text\tlabel")],
)
def test_a_line_of_headings_is_no_row(read: Any, heading: str, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text(f"{heading}\na\tb\ntext\tlabel\n")
    said = []
    assert read(tmp_path / "rows.tsv", say=said.append) == [("a", "b"), ("text", "label")]
    assert said == [f"{tmp_path / 'rows.tsv'}, line 1: a line of headings, left out"]
    (tmp_path / "rows.tsv").write_text(heading + "\n")
    with pytest.raises(InputError, match="has no rows"):
        read(tmp_path / "rows.tsv")
