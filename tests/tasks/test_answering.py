"""The task `answer`: checkpoints with a head for answers, on questions as SQuAD has them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from commands import refusal
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch_training import first_batches, our_losses, their_losses
from transformers import AutoModelForQuestionAnswering, PreTrainedTokenizerFast
from word_models import OTHERS, PEOPLE, PLACES, bert_config

from jaxformer import from_pretrained
from jaxformer.cli import train
from jaxformer.cli.answer import main as answer
from jaxformer.cli.runs import open_run
from jaxformer.data.questions import agreement, question_row
from jaxformer.tasks.answering import AnswerTask
from jaxformer.tasks.answering_settings import AnsweringSettings, AskedSettings
from jaxformer.tasks.classification_settings import ClassifierSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
STEPS = 50


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred questions for the one person or the one place in a sentence."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(200):
        words = [rng.choice(PEOPLE), *rng.choice(OTHERS, rng.integers(1, 4)), rng.choice(PLACES), rng.choice(OTHERS)]
        context = " ".join(rng.permutation(words))
        wanted = str(words[0] if number % 2 else words[-2])
        answers = {"text": [wanted], "answer_start": [context.index(wanted)]}
        question = "who ?" if number % 2 else "where ?"
        lines.append(json.dumps({"question": question, "context": context, "answers": answers}))
    path = tmp_path_factory.mktemp("rows") / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def save_base(folder: Path, types: bool = True) -> Path:
    """A tiny encoder whose tokenizer reads pairs of texts."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *PEOPLE, *PLACES, *OTHERS, "who", "where", "?"]
    vocabulary = {token: index for index, token in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"model_input_names": ["input_ids", "attention_mask", "token_type_ids"]} if types else {}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **names)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(bert_config(len(vocabulary), 0.1)).save_pretrained(folder)
    return folder


def settings(rows: Path, base: Path, **text: Any) -> AnsweringSettings:
    return AnsweringSettings(
        text=AskedSettings(data=str(rows), **text),
        start=StartSettings(str(base)),
        model=ClassifierSettings(dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
        steps=STEPS,
        batch_size=16,
    )


def their_loss(model: torch.nn.Module, batch: Any, _: int) -> torch.Tensor:
    tensors = {name: torch.tensor(array).long() for name, array in batch.items()}
    real = tensors["labels"][:, 0] >= 0
    found = {"input_ids": tensors["source"], "attention_mask": tensors["source_mask"]}
    found["token_type_ids"] = tensors["labels"][:, 2:].clamp(min=0)
    places = {"start_positions": tensors["labels"][:, 0], "end_positions": tensors["labels"][:, 1]}
    return model(**{name: array[real] for name, array in (found | places).items()}).loss


@pytest.mark.slow
def test_fifty_steps_have_the_losses_of_pytorch(rows: Path, tmp_path: Path) -> None:
    task = AnswerTask(settings(rows, save_base(tmp_path / "base")))
    trainable = task.trainable(task.config)
    task.export(tmp_path, trainable.params, trainable.assemble(trainable.params, trainable.frozen))
    batches = first_batches(task, STEPS)
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model").eval()
    ours, theirs = our_losses(task, batches), their_losses(model, task.settings.optimizer, batches, their_loss)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.3


@pytest.mark.slow
def test_a_trained_checkpoint_answers(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ["--task", "answer", "--data", str(rows), "--batch-size", "16", "--steps", "100", "--learning-rate", "5e-3"]
    train.train([*flags, "--model", str(save_base(tmp_path / "base")), "--output", str(run)])
    assert "exact match 100.0%, F1 1.0000" in capsys.readouterr().out
    (tmp_path / "text.txt").write_text("and saw Rome Grace in")
    context = ["--context", str(tmp_path / "text.txt")]
    answer(["--model", str(run), *context, "--question", "where ?", "--question", "who ?"])
    assert [line.partition("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["Rome", "Grace"]
    opened = open_run(run)
    asked = json.dumps({"question": "who ?", "context": "Oslo and Ada"})
    ((found,),) = opened.task.generate(opened.model, [asked])
    assert str(found) == "Ada" == from_pretrained(run / "model").answer("who ?", "Oslo and Ada").text
    assert AutoModelForQuestionAnswering.from_pretrained(run / "model").config.num_labels == 2


def test_windows_without_the_answer_learn_their_first_token(rows: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path)
    context = " ".join(["saw"] * 12 + ["Rome", "to"])
    line = {"question": "where ?", "context": context, "answers": {"text": ["Rome to"], "answer_start": [48]}}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(line)}\n" * 2)
    pairs = AnswerTask(settings(tmp_path / "rows.jsonl", base, max_length=12)).pairs("train")
    assert [len(pair.source) for pair in pairs[:-1]] == [12] * (len(pairs) - 1)
    whole = [pair for pair in pairs if pair.target[0] > 0]
    assert whole
    for pair in pairs:
        begin, end, *types = pair.target
        assert len(types) == len(pair.source)
        assert types == [0, 0, 0, 0] + [1] * (len(types) - 4)
        if begin:
            assert pair.source[begin : end + 1].tolist() == [8, 11]  # Rome to
        else:
            assert end == 0


def test_answers_are_compared_as_squad_does() -> None:
    assert agreement("The cat.", ["a cat"]) == (True, 1.0)
    assert agreement("black cat sat", ["cat", "the black cat"]) == (False, pytest.approx(0.8))
    assert agreement("dog", ["cat"]) == (False, 0.0)


def test_rows_have_many_forms() -> None:
    about = {"question": "who?", "context": "  it was Ada, Ada"}
    for answers, start in (
        ({"text": ["Ada"], "answer_start": [14]}, 14),
        ([{"text": "Ada", "answer_start": 9}, {"text": "it"}], 9),
        (["Ada", "it was Ada"], 9),
        ({"text": "Ada"}, 9),
    ):
        found = question_row(json.dumps(about | {"answers": answers}))
        assert (found.answers[0], found.start, found.context) == ("Ada", start, about["context"])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "a", "answers": ["a"]}, "no question"),
        ({"question": "a", "answers": ["a"]}, "no context"),
        ({"question": "a", "context": "b", "answers": ["a"]}, 'the answer "a" is not in the context'),
        ({"question": "a", "context": "b a", "answers": [{"text": "a", "answer_start": 0}]}, "not in the context at 0"),
        ({"question": "a", "context": "b a", "answers": {"text": [], "answer_start": []}}, "no answer: questions"),
        (
            {"question": "a", "context": "b a", "answers": {"text": ["a"], "answer_start": [-1]}},
            "answer_start=-1 is no",
        ),
        ({"question": "a", "context": "b a", "answers": 3}, "answers must be a list"),
        ({"question": "a", "context": "b a", "answers": [3]}, "the answer 3 is no text"),
    ],
)
def test_bad_rows_are_one_line(row: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n" * 2)
    flags = ["--task", "answer", "--data", str(tmp_path / "rows.jsonl"), "--model", str(save_base(tmp_path / "base"))]
    capsys.readouterr()
    said = refusal(lambda: train.train([*flags, "--steps", "2", "--output", str(tmp_path / "run")]), capsys)
    assert message in said


def test_it_needs_a_checkpoint(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--task", "answer", "--data", str(rows), "--steps", "2", "--output", str(tmp_path / "run")]
    assert "--task answer needs --model" in refusal(lambda: train.train(flags), capsys)
