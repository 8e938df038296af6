"""The task `tag`: new encoders and checkpoints, on words with tags."""

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
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast
from word_models import OTHERS, PEOPLE, PLACES, bert_config

from jaxformer import InputError, from_pretrained
from jaxformer.cli import train
from jaxformer.cli.runs import open_run
from jaxformer.cli.tag import main as tag
from jaxformer.tasks.classification_settings import ClassifierSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.tasks.tagging import TagTask, spans_of, token_labels
from jaxformer.tasks.tagging_settings import TaggedSettings, TaggingSettings
from jaxformer.training import OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
STEPS = 50


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred sentences about people of two names and about places."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(200):
        person = [*rng.choice(PEOPLE, 2)]
        words = [*person, *rng.choice(OTHERS, rng.integers(1, 4)), rng.choice(PLACES), *rng.choice(OTHERS, 1)]
        tags = ["B-PER", "I-PER", *["O"] * (len(words) - 4), "B-LOC", "O"]
        lines.append(json.dumps({"tokens": list(map(str, words)), "tags": tags}))
    path = tmp_path_factory.mktemp("rows") / "names.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def save_base(folder: Path, config_class: type = transformers.BertConfig, opener: Any = None) -> Path:
    """A tiny encoder whose tokenizer divides words into pieces."""
    pieces = ["##a", "##lan", "##da", "##race", "##aris", "##ome", "##slo", "A", "G", "P", "R", "O", *OTHERS]
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    config = bert_config(len(vocabulary), 0.1, config_class)
    (opener or transformers.AutoModel).from_config(config).save_pretrained(folder)
    return folder


def settings(rows: Path, base: Path | None = None, **start: Any) -> TaggingSettings:
    return TaggingSettings(
        text=TaggedSettings(data=str(rows)),
        start=StartSettings(None if base is None else str(base), **start),
        model=ClassifierSettings(dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
        steps=STEPS,
        batch_size=16,
    )


def their_loss(model: torch.nn.Module, batch: Any, _: int) -> torch.Tensor:
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    found = {"input_ids": tensors["source"].long(), "attention_mask": tensors["source_mask"].long()}
    return model(**found, labels=tensors["labels"].long()).loss


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_fifty_steps_have_the_losses_of_pytorch(kind: str, rows: Path, tmp_path: Path) -> None:
    made = {
        "bert": (transformers.BertConfig, transformers.AutoModelForMaskedLM),
        "llama": (transformers.LlamaConfig, transformers.AutoModelForCausalLM),
    }[kind]
    task = TagTask(settings(rows, save_base(tmp_path / "base", *made)))
    trainable = task.trainable(task.config)
    task.export(tmp_path, trainable.params, trainable.assemble(trainable.params, trainable.frozen))
    batches = first_batches(task, STEPS)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    ours, theirs = our_losses(task, batches), their_losses(model, task.settings.optimizer, batches, their_loss)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.3


@pytest.mark.slow
def test_a_trained_checkpoint_finds_names(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, run = save_base(tmp_path / "base"), tmp_path / "run"
    flags = [
        "--data",
        str(rows),
        "--batch-size",
        "16",
        "--steps",
        "60",
        "--learning-rate",
        "5e-3",
        "--model",
        str(base),
    ]
    train.train(["--task", "tag", *flags, "--output", str(run)])
    assert "entity F1 1.0000" in capsys.readouterr().out
    text = "Grace Alan lives in Oslo and"
    (tmp_path / "lines.txt").write_text(f"{text}\nto\n")
    tag(["--model", str(run), "--input-file", str(tmp_path / "lines.txt")])
    assert capsys.readouterr().out == "PER: Grace Alan\tLOC: Oslo\n\n"
    opened = open_run(run)
    ((found,), (nothing,)) = opened.task.generate(opened.model, [text, "to"])
    assert str(found) == "PER: Grace Alan\tLOC: Oslo"
    assert nothing.entities == []
    assert [each["text"] for each in found.entities] == [each.text for each in from_pretrained(run / "model").tag(text)]
    assert "  ->  PER: Grace Alan  LOC: Oslo" in opened.task.observe(opened.model, text).answer
    model = AutoModelForTokenClassification.from_pretrained(run / "model")
    assert model.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "I-LOC", 3: "I-PER", 4: "O"}


@pytest.mark.slow
def test_a_new_encoder_learns_it_and_goes_on(rows: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = ["--layers", "1", "--dim", "32", "--heads", "2", "--tokenizer", "word", "--learning-rate", "1e-2"]
    train.train(
        ["--task", "tag", "--data", str(rows), "--batch-size", "16", "--steps", "60", *sizes, "--output", str(run)]
    )
    opened = open_run(run)
    ((found,),) = opened.task.generate(opened.model, ["Ada Grace saw Rome to"])
    assert str(found) == "PER: Ada Grace\tLOC: Rome"
    (run / "results.json").unlink()
    train.train(["--task", "tag", "--resume", "--output", str(run)])


def test_all_pieces_of_a_word_have_its_tag(tmp_path: Path) -> None:
    lm = from_pretrained(save_base(tmp_path))
    assert lm.tokenizer is not None
    text, tags = "Alan to Rome", ["B-PER", "O", "LOC"]
    encoding = lm.tokenizer.encode(text)
    assert encoding.tokens == ["[CLS]", "A", "##lan", "to", "R", "##ome", "[SEP]"]
    numbers = {"O": 0, "B-PER": 1, "I-PER": 2, "LOC": 3}
    assert token_labels(text, tags, encoding, numbers).tolist() == [-100, 1, 2, 0, 3, 3, -100]


def test_entities_are_what_seqeval_counts() -> None:
    assert spans_of(["B-A", "I-A", "O", "I-B", "B-B", "A", "A"]) == {("A", 0, 2), ("B", 3, 4), ("B", 4, 5), ("A", 5, 7)}
    assert spans_of(["O"]) == set()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": ["a", "b"], "tags": ["O"]}', "2 tokens, but 1 tags"),
        ('{"tokens": "a", "tags": ["O"]}', "tokens and tags must be lists"),
        ('{"text": "a", "tags": ["O"]}', "no tokens and tags"),
        ('{"tokens": ["a b"], "tags": ["O"]}', '"a b" has a space inside'),
        ('{"tokens": ["a", 3.5], "tags": ["O", "O"]}', "3.5 is no text"),
        ("a\tO", "no JSON"),
        ('{"tokens": ["a"], "tags": ["O"]}', "has 1 labels: a classifier needs 2"),
    ],
)
def test_bad_rows_are_one_line(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(f"{line}\n{line}\n")
    flags = ["--task", "tag", "--data", str(tmp_path / "rows.jsonl"), "--steps", "2", "--output", str(tmp_path / "run")]
    assert message in refusal(lambda: train.train(flags), capsys)


def test_a_family_without_such_a_head_is_refused(rows: Path, tmp_path: Path) -> None:
    base = save_base(tmp_path, transformers.OlmoConfig, transformers.AutoModelForCausalLM)
    with pytest.raises(InputError, match="Olmo has no ForTokenClassification in transformers"):
        TagTask(settings(rows, base)).config  # noqa: B018
