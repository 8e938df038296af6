"""`python -m jaxformer verify`: what is equal is said to be, what departs is named with its layer."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from commands import refusal
from hf_encoders import save_encoder
from hf_models import save_decoder, save_model

from jaxformer.__main__ import main
from jaxformer.config import LayerNormConfig
from jaxformer.data import train_tokenizer
from jaxformer.pretrained import FAMILIES


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_equal_models_are_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_decoder("gpt2", tmp_path)
    train_tokenizer("char", ["the cat"], 64).save(tmp_path / "tokenizer.json")
    main(["verify", str(tmp_path), "--prompt", "the cat", "--shapes"])
    said = capsys.readouterr().out
    assert last_line(said) == "equal: everything within 1e-05"
    assert "transformer.h.2.attn.c_attn.weight" in said
    assert "[14, 42]" in said
    for part in (
        "decoder embedding",
        "decoder layer 3",
        "logits: ours [",
        "gradients",
        "greedy: identical",
        "beam 4: id",
    ):
        assert part in said
    assert "departs" not in said


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", "masked"),
        pytest.param("distilbert", "classes", marks=pytest.mark.slow),
        pytest.param("roberta", "bare", marks=pytest.mark.slow),
    ],
)
def test_an_encoder_is_compared_with_its_head(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, head: str
) -> None:
    save_encoder(name, head, tmp_path, std=0.2)
    main(["verify", str(tmp_path)])
    said = capsys.readouterr().out
    assert last_line(said) == "equal: everything within 1e-05"
    assert "encoder layer 3" in said
    assert "tokens" not in said


@pytest.mark.slow
def test_an_encoder_decoder_is_compared_in_both_stacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model("bart", tmp_path)
    main(["verify", str(tmp_path)])
    said = capsys.readouterr().out
    for part in ("encoder layer 2", "decoder layer 3", "cross-attention", "equal: everything"):
        assert part in said


@pytest.mark.slow
def test_the_first_layer_that_departs_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second block normalises with another epsilon."""
    save_decoder("gpt2", tmp_path)
    family = FAMILIES["gpt2"]

    def wrong(hf: dict[str, Any]) -> Any:
        config = family.config(hf)
        first, second, *rest = config.decoder.blocks
        second = dataclasses.replace(second, norm=LayerNormConfig(1e-2))
        return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=(first, second, *rest)))

    monkeypatch.setitem(FAMILIES, "gpt2", family._replace(config=wrong))
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path)])
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert last_line(said.err).startswith("differs by more than 1e-05, first at decoder layer 2, hidden state: ")
    assert "departs" in said.out


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no folder /nowhere/at/all" in refusal(lambda: main(["verify", "/nowhere/at/all"]), capsys)
    assert "has no config.json" in refusal(lambda: main(["verify", str(tmp_path)]), capsys)
    save_decoder("gpt2", tmp_path)
    capsys.readouterr()
    said = refusal(lambda: main(["verify", str(tmp_path), "--prompt", "hello"]), capsys)
    assert "no tokenizer.json to read a prompt with" in said
    train_tokenizer("char", ["the cat"], 64).save(tmp_path / "tokenizer.json")
    for prompt, expected in (
        ("", "--prompt has 0 tokens: give at least 2"),
        ("t", "--prompt has 1 tokens: give at least 2"),
        ("the cat" * 9, "--prompt has 63 tokens, more than the 37 positions of the model"),
        ("a\udcff", "--prompt is not text in UTF-8: character 2 is the byte 0xff"),
    ):
        said = refusal(lambda prompt=prompt: main(["verify", str(tmp_path), "--prompt", prompt]), capsys)
        assert expected in said


@pytest.mark.slow
def test_a_prompt_may_take_all_positions_or_all_but_a_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_decoder("gpt2", tmp_path)
    train_tokenizer("char", ["the cat"], 64).save(tmp_path / "tokenizer.json")
    for length, expected in ((37, "no tokens are generated"), (35, "greedy: identical")):
        main(["verify", str(tmp_path), "--prompt", ("the cat" * 9)[:length]])
        said = capsys.readouterr().out
        assert expected in said
        assert last_line(said) == "equal: everything within 1e-05"
