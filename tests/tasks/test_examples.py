"""Prompts with completions and conversations: what is learned of them, and the losses of PyTorch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import refusal
from torch_training import first_batches, our_losses, their_losses
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from word_models import CHATML, save_chat_llama

import jaxformer
from jaxformer import InputError
from jaxformer.cli import train
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.runs import open_run
from jaxformer.pretrained.chat import ChatTemplate, dialogues_of
from jaxformer.tasks import LanguageModelSettings, LanguageSettings, LanguageTask, TextSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig

CONTEXT, STEPS = 48, 50
# Reasoning is written in the last answer alone, as some templates do.
FORGETFUL = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ 'hm ' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def conversation(number: int, turns: int) -> list[dict[str, str]]:
    asked = [number + turn for turn in range(turns)]
    messages = [{"role": "system", "content": "count on"}] if number % 2 else []
    for each in asked:
        messages += [{"role": "user", "content": f"{each}"}, {"role": "assistant", "content": f"{each + 1}"}]
    return messages


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    rows = [{"messages": conversation(number, 1 + number % 3)} for number in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": f"{number} and", "completion": f" {number + 1}" + " more" * (number % 4)} for number in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def base(chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_llama(tmp_path_factory.mktemp("llama"), [*chats.read_text().splitlines(), "and more"])


def settings(base: Path, data: Path, **text: Any) -> LanguageSettings:
    return LanguageSettings(
        text=TextSettings(data=str(data), **text),
        start=StartSettings(str(base)),
        model=LanguageModelSettings(context=CONTEXT, dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
        steps=STEPS,
        batch_size=4,
    )


def learned(task: LanguageTask) -> list[tuple[list[int], list[int]]]:
    """The tokens of each training example, and which of them are learned."""
    corpus = task.texts.training
    assert corpus.learned is not None
    cut = corpus.ends[:-1]
    parts = zip(np.split(corpus.tokens, cut), np.split(corpus.learned, cut), strict=True)
    return [(tokens.tolist(), marks.astype(int).tolist()) for tokens, marks in parts]


def test_of_conversations_the_turns_of_the_assistant_are_learned(base: Path, chats: Path) -> None:
    fast = PreTrainedTokenizerFast.from_pretrained(base)
    rows = [json.loads(line)["messages"] for line in chats.read_text().splitlines()]
    found = learned(LanguageTask(settings(base, chats)))
    assert len(found) == 36  # the last tenth is for validation
    for row, (tokens, marks) in zip(rows, found, strict=False):
        expected = fast.apply_chat_template(row, return_dict=True, return_assistant_tokens_mask=True)
        assert tokens == expected["input_ids"]
        assert marks == expected["assistant_masks"]


def test_of_prompts_the_completion_and_the_end_are_learned(base: Path, prompts: Path) -> None:
    lm = jaxformer.from_pretrained(base)
    task = LanguageTask(settings(base, prompts))
    row = json.loads(prompts.read_text().splitlines()[3])
    before, behind = (lm.encode(text)["input_ids"][0].tolist() for text in (row["prompt"], row["completion"]))
    expected = [*before, *behind, lm.generation.eos_ids[0]]
    assert learned(task)[3] == (expected, [0] * len(before) + [1] * (len(behind) + 1))
    np.testing.assert_array_equal(task.encode(row["prompt"]), before)


def test_special_tokens_are_no_bytes_of_an_answer(base: Path, chats: Path) -> None:
    task = LanguageTask(settings(base, chats))
    rows = [json.loads(line)["messages"] for line in chats.read_text().splitlines()][:36]
    answers = [sum(len(message["content"]) + 1 for message in row if message["role"] == "assistant") for row in rows]
    assert task.texts.training.sizes.tolist() == answers  # and a line feed behind each


def alone(model: torch.nn.Module, batch: Any, _: int) -> torch.Tensor:
    """The loss of the examples of a batch, each read by itself."""
    total, count = torch.zeros(()), 0
    for inputs, labels, segments in zip(*(batch[name] for name in ("inputs", "labels", "segment_ids")), strict=True):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            logits = model(input_ids=torch.tensor(inputs[here])[None].long()).logits[0]
            wanted = torch.tensor(labels[here]).long()
            total = total + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum")
            count += int((wanted >= 0).sum())
    return total / count


@pytest.mark.parametrize("kind", ["conversations", pytest.param("prompts", marks=pytest.mark.slow)])
def test_fifty_steps_have_the_losses_of_pytorch(kind: str, base: Path, chats: Path, prompts: Path) -> None:
    task = LanguageTask(settings(base, chats if kind == "conversations" else prompts))
    batches = first_batches(task, STEPS)
    assert max(batch["segment_ids"].max() for batch in batches) > 1
    ours, model = our_losses(task, batches), AutoModelForCausalLM.from_pretrained(base).eval()
    np.testing.assert_allclose(ours, their_losses(model, task.settings.optimizer, batches, alone), rtol=1e-4)
    assert ours[-1] < ours[0] - 1


def test_a_model_that_chats_is_trained_resumed_and_asked(
    base: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = ["--task", "lm", "--model", str(base), "--data", str(chats), "--context", "48", "--batch-size", "4"]
    train.train([*flags, "--steps", "30", "--learning-rate", "3e-3", "--evaluate-every", "15", "--output", str(run)])
    shown = capsys.readouterr().out
    assert "validation text, the answers of 4 examples:" in shown
    assert "--prompt Hello" in shown
    again = ["--resume", f"--output={run}"]  # the run knows its task and its settings
    train.train([*again, "--steps", "32"])
    capsys.readouterr()
    decode_inputs(["--checkpoint", str(run), "--prompt", "5", "--json", "--max-new-tokens", "4"])
    line = json.loads(capsys.readouterr().out)
    opened, lm = open_run(run), jaxformer.from_pretrained(run / "model")
    text = lm.chat([{"role": "user", "content": "5"}])
    assert lm.complete(text, special_tokens=False, max_new_tokens=4) == line["continuation"]
    assert opened.task.chats
    decode_inputs(["--checkpoint", str(run), "--prompt", "5", "--max-new-tokens", "4"])
    assert f"5\n-> {line['continuation']}\n" in capsys.readouterr().out
    chats_before = chats.read_text()
    try:
        chats.write_text(chats_before.replace("count on", "count off"))
        assert "the text and the validation text changed" in refusal(
            lambda: train.train([*again, "--steps", "34"]), capsys
        )
    finally:
        chats.write_text(chats_before)


@pytest.mark.slow
def test_new_models_learn_completions(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ["--task", "lm", "--data", str(prompts), "--context", "24", "--batch-size", "8", "--steps", "4"]
    train.train([*flags, "--output", str(run)])
    assert "--prompt '54 and'" in capsys.readouterr().out
    decode_inputs(["--checkpoint", str(run), "--prompt", "3 and", "--max-new-tokens", "3"])
    assert "3 and" in capsys.readouterr().out


def test_a_template_that_rewrites_earlier_turns_gives_an_example_for_each() -> None:
    template = ChatTemplate(FORGETFUL, "chat_template.jinja", {})
    (found,) = template.dialogues([[*conversation(0, 2), {"role": "user", "content": "left out"}]])
    first = "<|im_start|>user\n0<|im_end|>\n<|im_start|>assistant\n"
    second = first + "1<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    assert found == [
        [(first, False), ("hm 1<|im_end|>\n", True)],
        [(second, False), ("hm 2<|im_end|>\n", True)],
    ]


def test_conversations_without_an_answer_are_named() -> None:
    template = ChatTemplate(CHATML, "chat_template.jinja", {})
    good, bad = conversation(0, 1), [{"role": "assistant", "content": "Hello"}]
    found = template.dialogues([good, bad, good])
    assert isinstance(found[1], InputError)
    assert found[0] == found[2]
    assert "does not begin an answer as it asks for one" in str(dialogues_of([("a", "b")]))
    assert dialogues_of([("a", "ab"), ("abc", "abcd")]) == [[("a", False), ("b", True), ("c", False), ("d", True)]]
    # A prompt that does not go on from the answer before it begins a text of its own.
    assert dialogues_of([("a", "ab"), ("a", "abc")]) == [[("a", False), ("b", True)], [("a", False), ("bc", True)]]


def refused(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    return refusal(lambda: train.train(["--task", "lm", "--context", "48", *flags]), capsys)


def test_bad_input_is_one_line(
    base: Path, chats: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--output", str(tmp_path / "run"))
    assert "conversations: give --model" in refused(capsys, "--data", str(chats), *out)
    mixed = ("--model", str(base), "--data", str(chats), "--validation", str(prompts))
    assert "does not: give both in one form" in refused(capsys, *mixed, *out)
    one = tmp_path / "one.jsonl"
    one.write_text(prompts.read_text().splitlines()[0] + "\n")
    assert "one example is too few" in refused(capsys, "--data", str(one), *out)
    long = tmp_path / "long.jsonl"
    long.write_text((json.dumps({"prompt": "7" * 99, "completion": "8"}) + "\n") * 3)
    assert "answers within 48 tokens: raise --context" in refused(capsys, "--data", str(long), *out)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(chats.read_text() + json.dumps({"messages": [{"role": "assistant", "content": "x"}]}) + "\n")
    flags = ("--model", str(base), "--data", str(bad), *out)
    assert 'line 41: no message of the role "assistant" answers another one; --skip-bad' in refused(capsys, *flags)
