"""`jaxformer classify`: labels against transformers, and bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refusal
from hf_encoders import save_encoder
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxformer.cli import inspect
from jaxformer.cli.classify import main

WORDS = ["the", "owl", "sat", "on", "a", "branch"]
LINES = ["the owl sat", "a branch", "owl " * 18 + "sat", "on"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny BERT and a file of texts."""
    for head in ("bare", "classes"):
        save_encoder("bert", head, tmp_path / head)
        tokenizer = Tokenizer(models.WordLevel({word: index + 3 for index, word in enumerate(WORDS)}, unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(tmp_path / head / "tokenizer.json"))
    (tmp_path / "lines.txt").write_text("\n".join([LINES[0], "", *LINES[1:]]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_labels_are_those_of_each_text_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = save_encoder("bert", "classes", folder / "again")
    capsys.readouterr()
    main(["--model", "classes", "--input-file", "lines.txt", "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    main(["--model", "classes", "--input-file", "lines.txt"])
    assert capsys.readouterr().out.split() == [line["label"] for line in found]
    for text, line in zip(LINES, found, strict=True):
        assert line["text"] == text
        with torch.no_grad():
            expected = theirs(torch.tensor([[WORDS.index(word) + 3 for word in text.split()]])).logits.softmax(-1)[0]
        shares = [line["labels"][f"LABEL_{number}"] for number in range(2)]
        np.testing.assert_allclose(shares, expected, atol=6e-5)  # four decimals are printed
        assert line["label"] == f"LABEL_{int(expected.argmax())}"


def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    said = refusal(lambda: main(["--model", "bare", "--input-file", "lines.txt"]), capsys)
    assert "the model has no classifier: train one with --task classify" in said
    said = refusal(lambda: main(["--model", "classes", "--input-file", "nowhere.txt"]), capsys)
    assert "nowhere.txt" in said
    (folder / "long.txt").write_text("owl " * 40)
    said = refusal(lambda: main(["--model", "classes", "--input-file", "long.txt"]), capsys)
    assert "line 1 has 40 tokens, more than 37: shorten it, or add --truncate" in said


def test_inspect_describes_such_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside the tests of folders, because those of inspect run without PyTorch."""
    theirs = save_encoder("bert", "bare", folder / "again")
    capsys.readouterr()
    inspect.main(["--model", str(folder / "again"), "--source-length", "9"])
    text = capsys.readouterr().out
    total = sum(parameter.numel() for name, parameter in theirs.named_parameters() if "pooler" not in name)
    assert f"{total:,}" in text
    assert "encoder.blocks.0.attention.query" in text
