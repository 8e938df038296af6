"""The task `mlm`: new encoders and checkpoints that find masked tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from commands import refusal
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch_training import first_batches, our_losses, their_losses
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from jaxformer.cli import train
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.runs import open_run
from jaxformer.data.masking import mask_tokens
from jaxformer.tasks.language_settings import LanguageModelSettings, TextSettings
from jaxformer.tasks.masked import MaskedLanguageTask
from jaxformer.tasks.masked_settings import MaskedSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig

WORDS = ["cat", "mat", "dog", "log", "sat", "on", "the", "a"]
STEPS = 50
NEW = ["--tokenizer", "word", "--vocab-size", "12"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred sentences that rhyme: cats sit on mats, dogs on logs."""
    rng = np.random.default_rng(0)
    pairs = [("cat", "mat"), ("dog", "log")]
    lines = []
    for _ in range(200):
        who, where = pairs[rng.integers(2)]
        lines.append(f"{rng.choice(['the', 'a'])} {who} sat on {rng.choice(['the', 'a'])} {where}")
    path = tmp_path_factory.mktemp("text") / "rhymes.txt"
    path.write_text("\n\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with a tokenizer of words."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        pad_token_id=0,
        max_position_embeddings=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        initializer_range=0.1,
    )
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def test_tokens_are_masked_as_in_the_paper() -> None:
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 100, (400, 500)), jnp.int32)
    inputs, labels = mask_tokens(jax.random.key(0), tokens, mask_id=100, vocab_size=100, special=(3, 5), share=0.15)
    inputs, labels, tokens = map(np.asarray, (inputs, labels, tokens))
    chosen = labels != -100
    np.testing.assert_array_equal(inputs[~chosen], tokens[~chosen])
    np.testing.assert_array_equal(labels[chosen], tokens[chosen])
    assert not np.isin(tokens[chosen], (3, 5)).any()
    others = ~np.isin(tokens, (3, 5))
    assert chosen[others].mean() == pytest.approx(0.15, abs=5e-3)
    masked, same = (inputs[chosen] == 100).mean(), (inputs[chosen] == tokens[chosen]).mean()
    assert masked == pytest.approx(0.8, abs=1e-2)
    assert same == pytest.approx(0.1 + 0.1 / 100, abs=1e-2)


def test_fifty_steps_have_the_losses_of_pytorch(base: Path, text: Path) -> None:
    task = MaskedLanguageTask(
        MaskedSettings(
            text=TextSettings(data=str(text)),
            start=StartSettings(str(base)),
            model=LanguageModelSettings(context=16, dropout=0.0),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
            steps=STEPS,
            batch_size=8,
        )
    )
    batches = first_batches(task, STEPS)
    key = jax.random.wrap_key_data(np.array(jax.random.key_data(jax.random.key(0))))

    def their_loss(model: torch.nn.Module, batch: Any, number: int) -> torch.Tensor:
        mask_key, _ = jax.random.split(jax.random.fold_in(key, number))
        inputs, labels, _ = task.masked(jax.tree.map(jnp.asarray, batch), mask_key)
        logits = model(input_ids=torch.tensor(np.array(inputs)).long()).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(np.array(labels)).long().flatten())

    ours, model = our_losses(task, batches), AutoModelForMaskedLM.from_pretrained(base).eval()
    theirs = their_losses(model, task.settings.optimizer, batches, their_loss)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.3


def train_here(run: Path, text: Path, *flags: str, steps: int) -> Path:
    common = ["--data", str(text), "--context", "16", "--batch-size", "16", "--save-every", "4"]
    common += ["--steps", str(steps), "--output", str(run), *([] if "--model" in flags else NEW)]
    train.train(["--task", "mlm", *common, *flags])
    return run


@pytest.mark.slow
def test_a_new_encoder_learns_what_rhymes(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_here(tmp_path / "run", text, steps=500)
    results = json.loads((run / "results.json").read_text())
    assert 0.7 < results["validation_accuracy"] <= 1
    assert "of the masked tokens found" in capsys.readouterr().out
    for given, found in (("a cat sat on a [MASK]", "mat"), ("the [MASK] sat on the log", "dog")):
        decode_inputs(["--checkpoint", str(run), "--input", given])
        assert capsys.readouterr().out == given.replace("[MASK]", found) + "\n"
    said = refusal(lambda: decode_inputs(["--checkpoint", str(run), "--input", "a cat"]), capsys)
    assert "has no [MASK] to fill" in said
    opened = open_run(run)
    view = opened.task.observe(opened.model, "a cat sat on a [MASK]")
    assert "[MASK]" in view.observations[0].queries


@pytest.mark.slow
def test_a_trained_checkpoint_opens_in_transformers(base: Path, text: Path, tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", text, "--model", str(base), "--learning-rate", "3e-3", steps=150)
    model = AutoModelForMaskedLM.from_pretrained(run / "model").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "model")
    ids = tokenizer("a dog sat on the [MASK]", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = int(model(input_ids=ids).logits[0, 6].argmax())
    opened = open_run(run)
    ((answer,),) = opened.task.generate(opened.model, ["a dog sat on the [MASK]"])
    assert answer.filled == f"a dog sat on the {tokenizer.decode(theirs)}"
    assert answer.filled.endswith(" log")


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(text: Path, tmp_path: Path) -> None:
    whole, run = (train_here(tmp_path / name, text, "--dropout", "0.1", steps=8) for name in ("whole", "cut"))
    for name in ("results.json", "loss.png", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/8")
    train.train(["--task", "mlm", "--resume", "--output", str(run)])
    for one, other in zip(*(jax.tree.leaves(open_run(each).params) for each in (whole, run)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bad_input_is_one_line(base: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*flags: Any) -> str:
        common = ["--task", "mlm", "--data", str(text), "--steps", "2", "--output", str(tmp_path / "run")]
        return refusal(lambda: train.train([*common, *map(str, flags)]), capsys)

    config = transformers.GPT2Config(vocab_size=30, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    capsys.readouterr()
    assert "is no encoder with a head for masked tokens" in said("--model", tmp_path / "gpt2")
    assert "--mask-probability must be above 0" in said("--mask-probability", 0)
    assert "--context 99 exceeds the 24 positions" in said("--model", base, "--context", 99)
    shutil.copytree(base, tmp_path / "unmasked")
    changed = (tmp_path / "unmasked/tokenizer.json").read_text().replace("[MASK]", "[OTHER]")
    (tmp_path / "unmasked/tokenizer.json").write_text(changed)
    assert "has no token [MASK] or <mask>" in said("--model", tmp_path / "unmasked")
    assert not (tmp_path / "run").exists()
