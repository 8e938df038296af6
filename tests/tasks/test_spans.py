"""The task `span`: spans that are taken out of a text and written again, as T5 is trained."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from commands import refusal
from torch_training import first_batches, our_losses, their_losses
from transformers import AutoModelForSeq2SeqLM
from word_models import WORDS, save_bert, save_tokenizer

from jaxformer.cli import train
from jaxformer.cli.generate import decode_inputs
from jaxformer.data.masking import corrupt_spans, random_lengths, span_counts
from jaxformer.pretrained import from_pretrained
from jaxformer.tasks.language_settings import LanguageModelSettings, TextSettings
from jaxformer.tasks.span_settings import SpanSettings
from jaxformer.tasks.spans import SpanTask
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig

STEPS, CONTEXT = 50, 16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with two sentinels."""
    folder = tmp_path_factory.mktemp("t5")
    special = ["<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_1>"]
    save_tokenizer(folder, "$A </s>", special, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=len(special) + len(WORDS),
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    lines = [f"the {who} sat on a {where}" for who, where in rng.permutation([("cat", "mat"), ("dog", "log")] * 60)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(lines) + "\n")
    return path


def test_lengths_make_their_total_and_every_division_occurs() -> None:
    found = np.asarray(random_lengths(jax.random.key(0), 5, 3, 2000))
    assert (found.sum(axis=1) == 5).all()
    assert found.min() == 1
    kinds, counts = np.unique(found, axis=0, return_counts=True)
    assert len(kinds) == 6
    assert counts.min() > 2000 / 6 * 0.8


@pytest.mark.parametrize("length", [2, 7, 64])
def test_what_is_read_and_what_is_written_are_the_text(length: int) -> None:
    counts = span_counts(length, 0.15, 3.0)
    tokens = np.arange(100, 100 + 9 * length).reshape(9, length)
    sentinels = jnp.arange(10, 10 + counts.spans)
    read, written = corrupt_spans(jax.random.key(1), jnp.asarray(tokens), counts, sentinels=sentinels, end=1)
    assert read.shape == (9, length - counts.noise + counts.spans + 1)
    assert written.shape == (9, counts.noise + counts.spans + 1)
    for row in range(9):
        spans, number = {}, None
        for token in np.asarray(written[row])[:-1].tolist():
            number = token if token < 100 else number
            spans.setdefault(number, []).extend([token] if token >= 100 else [])
        assert list(spans) == sentinels.tolist()
        whole = [each for token in np.asarray(read[row])[:-1].tolist() for each in spans.get(token, [token])]
        assert whole == tokens[row].tolist()
        assert read[row, -1] == written[row, -1] == 1
    assert (span_counts(512, 0.15, 3.0)) == (77, 26)


def settings(base: Path, text: Path, **changes: Any) -> SpanSettings:
    return SpanSettings(
        text=TextSettings(data=str(text)),
        start=StartSettings(str(base)),
        model=LanguageModelSettings(context=CONTEXT, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5, weight_decay=0.1),
        steps=STEPS,
        batch_size=8,
        **changes,
    )


def test_fifty_steps_have_the_losses_of_pytorch(base: Path, text: Path) -> None:
    task = SpanTask(settings(base, text))
    batches = first_batches(task, STEPS)
    key = jax.random.wrap_key_data(np.array(jax.random.key_data(jax.random.key(0))))

    def their_loss(model: torch.nn.Module, batch: Any, number: int) -> torch.Tensor:
        span_key, _ = jax.random.split(jax.random.fold_in(key, number))
        read, _, labels = (torch.tensor(np.array(each)).long() for each in task.corrupted(batch, span_key))
        return model(input_ids=read, labels=labels).loss  # which shifts the labels by itself

    ours, model = our_losses(task, batches), AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    np.testing.assert_allclose(ours, their_losses(model, task.settings.optimizer, batches, their_loss), rtol=1e-4)
    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.3


@pytest.mark.slow
def test_a_model_is_trained_and_fills_gaps(
    base: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--task", "span", "--model", str(base), "--data", str(text), "--context", "16", "--batch-size", "8"]
    flags += ["--steps", "8", "--evaluate-every", "4", "--learning-rate", "1e-2", "--output", str(run)]
    train.train(flags)
    said = capsys.readouterr().out
    assert "of the tokens of spans right" in said
    assert '--input "<extra_id_0>"' in said
    gap = "the cat sat <extra_id_0> a mat"
    decode_inputs(["--checkpoint", str(run), "--input", gap, "--json"])
    line = json.loads(capsys.readouterr().out)
    lm = from_pretrained(run / "model")
    written = lm.tokenizer.decode(
        np.asarray(lm.generate(**lm.encode(gap), max_new_tokens=64).sequences)[0].tolist(), skip_special_tokens=False
    )
    span = written.partition("<extra_id_0>")[2].partition("<extra_id_1>")[0].replace("</s>", "").strip()
    assert line["text"] == gap
    assert line["filled"].split() == gap.replace("<extra_id_0>", span.replace("<pad>", "")).split()
    AutoModelForSeq2SeqLM.from_pretrained(run / "model")


def test_bad_input_is_one_line(base: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*flags: str) -> str:
        common = ["--task", "span", "--data", str(text), "--output", str(tmp_path / "run")]
        return refusal(lambda: train.train([*common, *flags]), capsys)

    assert "--task span trains a T5 further: give --model" in said()
    bert = save_bert(tmp_path / "bert")
    capsys.readouterr()
    assert "is no encoder-decoder with a head" in said("--model", str(bert))
    model = ("--model", str(base))
    assert "the tokenizer of" in said(*model, "--context", "64")
    assert "--noise-density must be above 0 and below 1" in said(*model, "--noise-density", "1")
    assert "--mean-span must be at least 1" in said(*model, "--mean-span", "0.5")
    assert not (tmp_path / "run").exists()
