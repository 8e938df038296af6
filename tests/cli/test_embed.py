"""`python -m jaxformer embed`: vectors against transformers, and every bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refusal
from hf_encoders import save_encoder
from hf_models import save_decoder
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxformer.cli.embed import main

WORDS = ["the", "owl", "sat", "on", "a", "branch", "and", "saw", "nothing", "at", "all"]
LINES = ["the owl sat", "a branch", "the owl saw nothing at all and sat on a branch", "owl " * 18 + "sat", "all"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny BERT and a file of sentences."""
    save_encoder("bert", "bare", tmp_path / "bert")
    tokenizer = Tokenizer(models.WordLevel({word: index + 3 for index, word in enumerate(WORDS)}, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "bert/tokenizer.json"))
    (tmp_path / "lines.txt").write_text("\n".join([LINES[0], "", *LINES[1:]]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_each_sentence_alone(folder: Path, pooling: str, capsys: pytest.CaptureFixture) -> None:
    theirs = save_encoder("bert", "bare", folder / "again")
    capsys.readouterr()
    main(["--model", "bert", "--input-file", "lines.txt", "--pooling", pooling, "--batch-size", "2"])
    assert capsys.readouterr().out == "5 vectors of width 14: embeddings.npy\n"
    found = np.load(folder / "embeddings.npy")
    for line, vector in zip(LINES, found, strict=True):
        with torch.no_grad():
            ids = torch.tensor([[WORDS.index(word) + 3 for word in line.split()]])
            states = theirs(ids).last_hidden_state[0]
        expected = states.mean(dim=0) if pooling == "mean" else states[0]
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--model", "nowhere/at/all"], "there is no folder nowhere/at/all"),
        (["--input-file", "missing.txt"], "No such file"),
        (["--input-file", "empty.txt"], "holds no input"),
        (["--input-file", "strange.txt"], "the tokenizer cannot encode the text: WordLevel error"),
        (["--input-file", "long.txt"], "line 1 has 40 tokens, more than 37: shorten it, or add --truncate"),
        (["--model", "gpt2"], "an encoder-only model is needed, such as BERT, or a pooling"),
    ],
)
def test_bad_input(folder: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_decoder("gpt2", folder / "gpt2")
    (folder / "empty.txt").write_text("\n")
    (folder / "strange.txt").write_text("owl\nzebra\n")
    (folder / "long.txt").write_text("owl " * 40)
    capsys.readouterr()
    base = {"--model": "bert", "--input-file": "lines.txt"} | dict(zip(flags[::2], flags[1::2], strict=True))
    assert message in refusal(lambda: main([part for flag in base.items() for part in flag]), capsys)
    assert not (folder / "embeddings.npy").exists()


def test_long_sentences_are_cut_if_asked(folder: Path) -> None:
    (folder / "long.txt").write_text("owl " * 40)
    main(["--model", "bert", "--input-file", "long.txt", "--truncate", "--output", "deep/cut.npy"])
    assert np.load(folder / "deep/cut.npy").shape == (1, 14)
