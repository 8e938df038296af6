"""Programs that take a checkpoint folder, a run or an adapter alike."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from commands import refusal
from transformers import AutoModelForCausalLM
from word_models import save_bert, save_chat_llama, save_mbart

import jaxformer
from jaxformer import lora
from jaxformer.cli import export, perplexity, visualize
from jaxformer.cli.embed import main as embed
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.train import train

TEXT = "one two three four five six seven eight nine ten " * 12


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_llama(tmp_path_factory.mktemp("llama"), [TEXT])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def test_the_perplexity_of_a_checkpoint_is_that_of_transformers(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    perplexity.main(["--model", str(llama), "--data", str(tmp_path / "text.txt")])
    said = capsys.readouterr().out
    lm, model = jaxformer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama).eval()
    ids = [*lm.encode(TEXT)["input_ids"][0], *lm.generation.eos_ids]
    total = 0.0
    for start in range(0, len(ids) - 1, 64):  # the positions of the model
        here = torch.tensor(ids[start : start + 65]).long()
        with torch.no_grad():
            logits = model(here[None, :-1]).logits[0]
        total += float(torch.nn.functional.cross_entropy(logits, here[1:], reduction="sum"))
    loss = total / (len(ids) - 1)
    assert f"in windows of 64 tokens\ntokens         {len(ids) - 1}\n" in said
    assert f"{loss:.4f} nats per token\nperplexity     {math.exp(loss):.2f}" in said
    (tmp_path / "short.txt").write_text("one two")
    perplexity.main(["--model", str(llama), "--data", str(tmp_path / "short.txt")])
    assert f"in windows of {len(lm.encode('one two')['input_ids'][0])} tokens" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama", "bert", pytest.param("mbart", marks=pytest.mark.slow)])
def test_the_attention_of_a_checkpoint_is_drawn(
    kind: str, llama: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = {"llama": llama, "bert": bert}.get(kind) or save_mbart(tmp_path / "mbart")
    text = "the cat sat on a mat" if kind != "llama" else "one two three"
    visualize.main(["--model", str(folder), "--input", text, "--output", str(tmp_path / "pictures"), "--text"])
    said = capsys.readouterr().out
    assert said.startswith(text)
    drawn = {path.stem for path in (tmp_path / "pictures").iterdir()}
    expected = {"llama": {"decoder"}, "bert": {"encoder"}, "mbart": {"encoder", "decoder", "cross"}}[kind]
    assert {f"{name}-attention" for name in expected} | {"attention", "layers", "masks"} <= drawn
    assert all(len(path.read_bytes()) > 1000 for path in (tmp_path / "pictures").iterdir())


@pytest.mark.slow
def test_a_run_and_its_adapter_are_checkpoints(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT * 6)
    flags = ["--task", "lm", "--model", str(llama), "--data", "text.txt", "--context", "16", "--batch-size", "4"]
    train([*flags, "--lora", "4", "--steps", "6", "--learning-rate", "1e-2", "--output", "run"])
    answers = []
    for name in ("run", "run/adapter", str(llama)):
        capsys.readouterr()
        decode_inputs(["--model", name, "--prompt", "one", "--json", "--max-new-tokens", "8"])  # read as it is
        answers.append(json.loads(capsys.readouterr().out)["output"])
    assert answers[0] == answers[1]
    base = jaxformer.from_pretrained(llama, dtype="float32")
    merged = lora.merge(base, lora.load("run/adapter", base))
    assert merged.complete("one", max_new_tokens=8).strip() == answers[0].strip()
    ids = np.arange(5)[None]
    assert np.abs(merged(ids).logits - base(ids).logits).max() > 1e-3


def test_wrong_programs_say_which_is_right(
    llama: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    data = ["--data", str(tmp_path / "text.txt")]
    said = refusal(lambda: decode_inputs(["--model", str(bert), "--prompt", "the cat"]), capsys)
    assert "is an encoder, which generates nothing: give it to one of" in said
    said = refusal(lambda: perplexity.main(["--model", str(bert), *data]), capsys)
    assert "the perplexity is that of decoder-only language models" in said
    said = refusal(lambda: perplexity.main(["--model", str(llama), "--checkpoint", "runs/lm", *data]), capsys)
    assert "--model is no run: leave --checkpoint and --task out" in said
    said = refusal(lambda: visualize.main(["--model", str(llama), "--task", "lm"]), capsys)
    assert "--model is no run" in said
    said = refusal(lambda: embed(["--model", str(llama), "--input-file", str(tmp_path / "text.txt")]), capsys)
    assert "an encoder-only model is needed" in said


def test_the_perplexity_of_examples_is_that_of_their_answers(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts are read, but not counted; so are the turns of the user."""
    lm = jaxformer.from_pretrained(llama)
    rows = [("one two", " three four"), ("five", " six seven eight")]
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows)
    )
    perplexity.main(["--model", str(llama), "--data", str(tmp_path / "prompts.jsonl")])
    said = capsys.readouterr().out
    model, total, count = AutoModelForCausalLM.from_pretrained(llama).eval(), 0.0, 0
    for prompt, answer in rows:
        before = lm.encode(prompt)["input_ids"][0].tolist()
        after = [*lm.encode(answer, special_tokens=False)["input_ids"][0].tolist(), *lm.generation.eos_ids]
        with torch.no_grad():
            logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(after), reduction="sum"))
        count += len(after)
    assert f"tokens         {count}\n" in said
    assert f"{total / count:.4f} nats per token" in said
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two three"}]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    perplexity.main(["--model", str(llama), "--data", str(tmp_path / "chats.jsonl")])
    assert "tokens         " in capsys.readouterr().out
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "one " * 90, "completion": "two"}) + "\n")
    data = ["--data", str(tmp_path / "long.jsonl")]
    assert "answers within 64 tokens" in refusal(lambda: perplexity.main(["--model", str(llama), *data]), capsys)


def test_a_chat_model_is_drawn_reading_its_template(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = jaxformer.from_pretrained(llama)
    lengths = []
    for flags in ([], ["--raw"]):
        folder = tmp_path / f"pictures{len(flags)}"
        visualize.main(["--model", str(llama), "--input", "one two", "--output", str(folder), *flags])
        lengths.append(len((folder / "attention.html").read_text()))
    raw = len(lm.encode("one two")["input_ids"][0])
    chat = len(lm.encode(lm.chat([{"role": "user", "content": "one two"}]), special_tokens=False)["input_ids"][0])
    assert chat > raw
    assert lengths[0] > lengths[1]
    capsys.readouterr()
    assert "--raw belongs to --model" in refusal(lambda: visualize.main(["--raw"]), capsys)


def test_a_checkpoint_or_an_adapter_is_exported(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter becomes a plain folder, a checkpoint one of another family with the same logits."""
    base = jaxformer.from_pretrained(llama)
    adapter = lora.init(base, lora.LoraConfig(rank=2), key=jax.random.key(1))
    adapter = jax.tree.map(lambda leaf: leaf + 0.02, adapter)
    lora.save(adapter, tmp_path / "adapter", base=llama)
    export.main([str(tmp_path / "merged"), "--model", str(tmp_path / "adapter")])
    export.main([str(tmp_path / "mistral"), "--model", str(llama), "--family", "mistral"])
    ids = torch.arange(6)[None]
    for name, lm in (("merged", lora.merge(base, adapter)), ("mistral", base)):
        with torch.no_grad():
            logits = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()(ids).logits
        np.testing.assert_allclose(lm(ids.numpy()).logits, logits, atol=2e-5)
    assert json.loads((tmp_path / "mistral" / "config.json").read_text())["model_type"] == "mistral"
    assert jaxformer.from_pretrained(tmp_path / "mistral").chat_template == base.chat_template
    capsys.readouterr()
    said = refusal(lambda: export.main([str(tmp_path / "x"), "--model", str(llama), "--task", "lm"]), capsys)
    assert "--model is no run" in said
