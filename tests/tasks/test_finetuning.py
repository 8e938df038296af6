"""Training that starts from a checkpoint: the losses of PyTorch, what is frozen, and the folders that others open."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import peft
import pytest
import torch
import transformers
from commands import refusal
from flax import nnx
from tokenizers.processors import TemplateProcessing
from torch_training import first_batches, our_losses, their_losses
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from word_models import save_llama

import jaxformer
from jaxformer import InputError
from jaxformer.cli import train
from jaxformer.cli.runs import open_run
from jaxformer.data import train_tokenizer
from jaxformer.tasks import LanguageModelSettings, LanguageSettings, LanguageTask, TextSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
CONTEXT, STEPS = 16, 50
WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "dog", "lay", "by", "door", "while", "rain", "fell", "softly")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty documents of random words."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = [json.dumps({"text": " ".join(rng.choice(WORDS, 60))}) for _ in range(40)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def base(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with dropout, and its tokenizer."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = train_tokenizer("bpe", (json.loads(line)["text"] for line in text.read_text().splitlines()), 300)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token="<|endoftext|>")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=tokenizer.end, bos_token_id=None
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose tokenizer begins texts with a token."""
    folder = tmp_path_factory.mktemp("llama")
    fast = PreTrainedTokenizerFast.from_pretrained(base, bos_token="<s>")
    fast.add_tokens(["<s>"], special_tokens=True)
    bos, eos = fast.convert_tokens_to_ids(["<s>", "<|endoftext|>"])
    fast.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    save_llama(folder, 304, bos_token_id=bos, eos_token_id=eos)
    fast.save_pretrained(folder)
    return folder


def settings(base: Path, text: Path, **start: Any) -> LanguageSettings:
    return LanguageSettings(
        text=TextSettings(data=str(text)),
        start=StartSettings(str(base), **start),
        model=LanguageModelSettings(context=CONTEXT, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
        steps=STEPS,
        batch_size=4,
    )


def next_token_loss(model: torch.nn.Module, batch: Any, _: int) -> torch.Tensor:
    logits = model(input_ids=torch.tensor(batch["inputs"]).long()).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(batch["labels"]).long().flatten())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_fifty_steps_have_the_losses_of_pytorch(kind: str, base: Path, llama: Path, text: Path) -> None:
    folder = base if kind == "gpt2" else llama
    task = LanguageTask(settings(folder, text))
    batches = first_batches(task, STEPS)
    ours = our_losses(task, batches)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()  # without dropout
    np.testing.assert_allclose(ours, their_losses(model, task.settings.optimizer, batches, next_token_loss), rtol=1e-4)
    assert ours[-1] < ours[0] - 1


def test_fifty_steps_of_an_adapter_have_the_losses_of_peft(llama: Path, text: Path, tmp_path: Path) -> None:
    task = LanguageTask(settings(llama, text, lora=4, lora_alpha=16.0, lora_targets="q_proj,v_proj"))
    batches = first_batches(task, STEPS)
    jaxformer.lora.save(task._adapted[1], tmp_path / "adapter", base=llama)
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(llama), tmp_path / "adapter", is_trainable=True
    ).eval()
    ours = our_losses(task, batches)
    np.testing.assert_allclose(ours, their_losses(model, task.settings.optimizer, batches, next_token_loss), rtol=1e-4)
    assert ours[-1] < ours[0]


def test_documents_begin_and_end_as_the_checkpoint_writes_them(llama: Path, text: Path) -> None:
    task = LanguageTask(settings(llama, text))
    lm = jaxformer.from_pretrained(llama)
    first = json.loads(text.read_text().splitlines()[0])["text"]
    expected = [*lm.encode(first)["input_ids"][0], *lm.generation.eos_ids]
    np.testing.assert_array_equal(task.texts.training.tokens[: len(expected)], expected)
    np.testing.assert_array_equal(task.encode("the cat"), lm.encode("the cat")["input_ids"][0])


def train_here(tmp_path: Path, base: Path, text: Path, *flags: str, steps: int = 8) -> Path:
    run = tmp_path / "run"
    common = ["--model", str(base), "--data", str(text), "--context", "16", "--batch-size", "4", "--steps", str(steps)]
    train.train(["--task", "lm", *common, "--save-every", "4", "--output", str(run), *flags])
    return run


def test_a_run_is_a_folder_that_transformers_opens(base: Path, text: Path, tmp_path: Path) -> None:
    run = train_here(tmp_path, base, text, "--learning-rate", "1e-3")
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval()
    ids = np.arange(3, 15)[None]
    ours = open_run(run)
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours.model(ids)), theirs, atol=1e-5)
    before = np.asarray(jaxformer.from_pretrained(base, dtype="float32").model(ids))
    assert np.abs(before - theirs).max() > 1e-2
    transformers.AutoTokenizer.from_pretrained(run / "model")
    assert ours.model.config.decoder.blocks[0].dropout == 0.1  # the checkpoint's own
    assert json.loads((run / "run.json").read_text())["settings"]["optimizer"]["learning_rate"] == 1e-3


def test_an_adapter_is_a_folder_that_peft_opens(llama: Path, text: Path, tmp_path: Path) -> None:
    run = train_here(tmp_path, llama, text, "--lora", "3", "--learning-rate", "3e-3")
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama), run / "adapter").eval()
    ids = np.arange(3, 15)[None]
    with torch.no_grad():
        theirs = model(torch.tensor(ids)).logits.numpy()
    ours = open_run(run)
    np.testing.assert_allclose(np.asarray(ours.model(ids)), theirs, atol=1e-5)
    assert not (run / "model").exists()
    assert all(set(pair) == {"A", "B"} for pair in ours.params.values())  # checkpoints lack the frozen weights
    merged = jaxformer.lora.merge(
        jaxformer.from_pretrained(llama, dtype="float32"),
        jaxformer.lora.load(run / "adapter", jaxformer.from_pretrained(llama, dtype="float32")),
    )
    np.testing.assert_allclose(np.asarray(merged.model(ids)), theirs, atol=1e-5)


QLORA = ("--lora", "2", "--weights", "int8")
FROZEN = ("--freeze", "embedding", "--freeze", "decoder.blocks.0.*")


@pytest.mark.slow
@pytest.mark.parametrize("flags", [QLORA, (), ("--lora", "2"), FROZEN])
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(
    flags: tuple[str, ...], llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_here(tmp_path / "whole", llama, text, *flags)
    run = train_here(tmp_path / "cut", llama, text, *flags)
    for name in ("results.json", "loss.png", "report.html"):
        (run / name).unlink()
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    train.train(["--task", "lm", "--resume", "--output", str(run)])
    params = [jax.tree.leaves(open_run(each).params) for each in (whole, run)]
    for one, other in zip(*params, strict=True):
        np.testing.assert_array_equal(one, other)


def test_frozen_parameters_stay_and_others_move(llama: Path, text: Path, tmp_path: Path) -> None:
    run = open_run(train_here(tmp_path, llama, text, "--freeze", "embedding*", "--freeze", "decoder.blocks.0"))
    before = nnx.to_flat_state(nnx.state(jaxformer.from_pretrained(llama, dtype="float32").model))
    after = dict(nnx.to_flat_state(nnx.state(run.model)))
    for path, variable in before:
        still = path[0] == "embedding" or path[:3] == ("decoder", "blocks", 0)
        assert np.array_equal(variable[...], after[path][...]) == still, path


def test_bad_input_is_one_line(
    base: Path, llama: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: str) -> str:
        return refusal(lambda: train.train(["--task", "lm", "--output", str(tmp_path / "run"), *flags]), capsys)

    data = ("--data", str(text))
    assert "--preset is for new models" in said("--model", str(base), "--preset", "tiny", *data)
    assert "--tokenizer is for new models" in said("--model", str(base), "--tokenizer", "char", *data)
    assert "--lora adapts a checkpoint: give --model too" in said("--lora", "4", *data)
    assert "--weights int8 is for weights that are not trained" in said(
        "--model", str(base), "--weights", "int8", *data
    )
    assert "belong to --lora" in said("--model", str(base), "--lora-alpha", "4", *data)
    assert "leave --freeze out" in said("--model", str(base), "--lora", "4", "--freeze", "embedding*", *data)
    assert 'the target "q_proj" matches nothing: there are c_attn, c_fc, c_proj' in said(
        "--model", str(base), "--lora", "4", "--lora-targets", "q_proj", *data
    )
    assert '--freeze "head*" matches no parameter or module: there are embedding.embedding, decoder.blocks.0' in said(
        "--model", str(base), "--freeze", "head*", *data
    )
    assert "leaves no parameter to be trained" in said("--model", str(base), "--freeze", "*", *data)
    assert "--context 33 exceeds the 32 positions" in said("--model", str(base), "--context", "33", *data)
    assert "rank=0 must be a whole number of at least 1" in said("--model", str(base), "--lora", "0", *data)
    assert "--freeze keeps the weights of a checkpoint: give --model too" in said("--freeze", "embedding", *data)
    assert "without effect" in said("--model", str(base), "--lora", "4", "--lora-alpha", "0", *data)
    assert "--lora-targets names no module" in said("--model", str(base), "--lora", "4", "--lora-targets", ",", *data)
    (tmp_path / "old/model").mkdir(parents=True)
    (tmp_path / "old/run.json").write_text("{}")
    assert f"give its folder {tmp_path / 'old/model'}" in said("--model", str(tmp_path / "old"), *data)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_without_an_end_or_a_tokenizer_is_refused(base: Path, text: Path, tmp_path: Path) -> None:
    lm = jaxformer.from_pretrained(base)
    jaxformer.save_pretrained(dataclasses.replace(lm, tokenizer=None, files={}), tmp_path / "mute")
    with pytest.raises(InputError, match=r"no tokenizer\.json to read texts with"):
        LanguageTask(settings(tmp_path / "mute", text)).config  # noqa: B018
    endless = dataclasses.replace(lm, generation=lm.generation.replace(eos_token_id=None))
    jaxformer.save_pretrained(endless, tmp_path / "endless")
    with pytest.raises(InputError, match="names no EOS token: add eos_token_id"):
        LanguageTask(settings(tmp_path / "endless", text)).config  # noqa: B018


def test_another_base_is_refused(llama: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter is opened on the weights that it was trained on, or not at all."""
    folder = tmp_path / "base"
    shutil.copytree(llama, folder)
    run = train_here(tmp_path, folder, text, "--lora", "2", steps=4)
    lm = jaxformer.from_pretrained(folder)
    changed = jax.tree.map(lambda leaf: leaf * 1.01, lm.model)
    jaxformer.save_pretrained(dataclasses.replace(lm, model=changed), folder)
    with pytest.raises(InputError, match="are not those that the run began with: put these back"):
        open_run(run)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="there is no folder"):
        open_run(run)
