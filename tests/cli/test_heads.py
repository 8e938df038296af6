"""`jaxformer fill-mask`, `tag`, `answer` and `classify`: what they print, and every bad input."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from commands import refusal
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from word_models import save_bert, save_headed

import jaxformer
from jaxformer.cli import answer, classify, fill_mask, tag

LINES = ["the cat sat", "a dog sat on the log", "cat"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny models, one for each head."""
    folder = tmp_path_factory.mktemp("heads")
    save_bert(folder / "masked")
    save_headed(folder / "tokens", AutoModelForTokenClassification, 0.2, id2label={0: "O", 1: "B-PER", 2: "LOC"})
    save_headed(folder / "spans", AutoModelForQuestionAnswering)
    save_headed(folder / "one", AutoModelForSequenceClassification, num_labels=1)
    several = {"num_labels": 4, "problem_type": "multi_label_classification"}
    save_headed(folder / "several", AutoModelForSequenceClassification, **several)
    save_headed(folder / "scores", AutoModelForSequenceClassification, num_labels=2, problem_type="regression")
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the models and files of texts."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model)
    (tmp_path / "lines.txt").write_text("\n".join([LINES[0], "", *LINES[1:]]))
    (tmp_path / "masks.txt").write_text("the [MASK] sat on a [MASK]\n[MASK]\n")
    (tmp_path / "pairs.txt").write_text("the cat\ta dog\ncat\tlog\n")
    (tmp_path / "context.txt").write_text("a dog sat on\nthe log on a mat\n")
    (tmp_path / "questions.txt").write_text("the dog\nmat\n")
    rows = [{"question": "the dog", "context": "a cat sat"}, {"question": "mat", "context": "on a log"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed(main: Any, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """The lines that a program prints."""
    capsys.readouterr()
    main(list(arguments))
    return capsys.readouterr().out.splitlines()


def test_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = jaxformer.from_pretrained("masked").fill_mask(["the [MASK] sat on a [MASK]", "[MASK]"], top_k=2)
    base = ["--model", "masked", "--input-file", "masks.txt", "--top-k", "2"]
    lines = [json.loads(line) for line in printed(fill_mask.main, capsys, *base, "--json")]
    assert lines[0]["text"] == "the [MASK] sat on a [MASK]"
    assert [[token["token"] for token in mask] for line in lines for mask in line["masks"]] == [
        [token for token, _ in mask] for masks in expected for mask in masks
    ]
    plain = printed(fill_mask.main, capsys, *base)
    assert plain[0].count(" | ") == 1
    assert plain[1] == ", ".join(f"{token} {share:.4f}" for token, share in expected[1][0])


def test_entities(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = jaxformer.from_pretrained("tokens").tag(LINES)
    base = ["--model", "tokens", "--input-file", "lines.txt"]
    assert printed(tag.main, capsys, *base) == [
        "\t".join(f"{each.label}: {each.text}" for each in entities) for entities in expected
    ]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(LINES).encode())))
    lines = [json.loads(line) for line in printed(tag.main, capsys, "--model", "tokens", "--input-file", "-", "--json")]
    for line, text, entities in zip(lines, LINES, expected, strict=True):
        assert line["text"] == text
        assert [(each["label"], each["start"], each["end"]) for each in line["entities"]] == [
            (each.label, each.start, each.end) for each in entities
        ]


def test_answers(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lm, context = jaxformer.from_pretrained("spans"), (folder / "context.txt").read_text()
    expected = [lm.answer(question, context) for question in ("the dog", "mat")]
    plain = [f"{' '.join(each.text.split())}\t{each.score:.4f}" for each in expected]
    base = ["--model", "spans", "--context", "context.txt"]
    assert printed(answer.main, capsys, *base, "--question", "the dog", "--question", "mat") == plain
    assert printed(answer.main, capsys, *base, "--input-file", "questions.txt") == plain
    lines = printed(answer.main, capsys, *base, "--question", "mat", "--json", "--top-k", "2")
    assert [json.loads(line)["text"] for line in lines] == [
        each.text for each in lm.answers([("mat", context)], top_k=2)[0]
    ]
    assert json.loads(lines[0])["start"] == expected[1].start
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((folder / "rows.jsonl").read_bytes())))
    found = printed(answer.main, capsys, "--model", "spans", "--input-file", "-", "--max-answer-len", "1")
    assert [line.partition("\t")[0] for line in found] == [
        lm.answer("the dog", "a cat sat", max_answer_len=1).text,
        lm.answer("mat", "on a log", max_answer_len=1).text,
    ]


def test_several_labels_and_scores(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--input-file", "lines.txt", "--model"]
    expected = jaxformer.from_pretrained("several").classify(LINES)
    lines = [json.loads(line) for line in printed(classify.main, capsys, *base, "several", "--json")]
    assert [line["label"] for line in lines] == [[key for key in each if each[key] > 0.5] for each in expected]
    assert any(len(line["label"]) > 1 for line in lines)
    assert any(sum(line["labels"].values()) > 1.1 for line in lines)
    assert printed(classify.main, capsys, *base, "several") == [", ".join(line["label"]) for line in lines]
    score = jaxformer.from_pretrained("one").classify(("the cat", "a dog"))["LABEL_0"]
    found = printed(classify.main, capsys, "--model", "one", "--input-file", "pairs.txt", "--pairs")
    assert found[0] == f"{score:.4f}"
    line = json.loads(printed(classify.main, capsys, *base, "one", "--json")[0])
    assert line.keys() == {"text", "score"}
    line = json.loads(printed(classify.main, capsys, *base, "scores", "--json")[0])
    assert line["scores"].keys() == {"LABEL_0", "LABEL_1"}
    assert " -" in printed(classify.main, capsys, *base, "scores")[0] or min(line["scores"].values()) > 0


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (fill_mask.main, "--model tokens --input-file masks.txt", "the model has no head for masked tokens"),
        (fill_mask.main, "--model masked --input-file lines.txt", "line 1 has no [MASK] to fill"),
        (fill_mask.main, "--model masked --input-file masks.txt --top-k 0", "top_k must be a whole number"),
        (tag.main, "--model one --input-file lines.txt", "`classify` uses it"),
        (tag.main, "--model tokens --input-file nowhere.txt", "nowhere.txt"),
        (classify.main, "--model one --input-file lines.txt --pairs", "line 1 has 1 parts: with --pairs, give two"),
        (answer.main, "--model tokens --question cat --context context.txt", "has a head for labels of tokens"),
        (answer.main, "--model spans --context context.txt", "give --question, or --input-file with questions"),
        (answer.main, "--model spans --question cat", "give --context FILE"),
        (answer.main, "--model spans --context - --input-file -", "cannot both come from standard input"),
        (answer.main, "--model spans --input-file lines.txt", "line 1: is not valid JSON"),
        (answer.main, "--model spans --question cat --context empty.txt", '--question "cat" or its text is blank'),
        (answer.main, "--model spans --question cat --context bytes.txt", "bytes.txt is not text in UTF-8"),
        (answer.main, "--model spans --input-file half.jsonl", 'line 1: must have "question" and "context"'),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, main: Any, arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.txt").write_text(" \n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    (folder / "half.jsonl").write_text('{"question": "cat"}\n')
    capsys.readouterr()
    assert message in refusal(lambda: main(arguments.split()), capsys)
