"""The task `classify`: new encoders and checkpoints, on texts with labels."""

import dataclasses
import json
import re
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
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch_training import first_batches, our_losses, their_losses
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from word_models import save_mbart

import jaxformer
from jaxformer import InputError, from_pretrained
from jaxformer.cli import train
from jaxformer.cli.classify import main as classify
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.runs import open_run
from jaxformer.tasks.classification import ClassifyTask, accuracy, confusion_lines, macro_f1
from jaxformer.tasks.classification_settings import ClassificationSettings, ClassifierSettings, LabelledSettings
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
GOOD, BAD, NEUTRAL = ("fine", "lovely", "great"), ("poor", "awful", "dull"), ("film", "story", "the", "a", "was")
STEPS = 50
KINDS = {
    "bert": (transformers.BertConfig, {"hidden_dropout_prob": 0.1}),
    "distilbert": (transformers.DistilBertConfig, {"dropout": 0.1}),
    "roberta": (transformers.RobertaConfig, {"hidden_dropout_prob": 0.1}),
    "llama": (transformers.LlamaConfig, {"num_key_value_heads": 1}),
    "bart": (transformers.BartConfig, {"eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None}),
    "t5": (transformers.T5Config, {"eos_token_id": 2, "decoder_start_token_id": 0}),
}
OF_KINDS = [pytest.param(kind, marks=() if kind == "bert" else pytest.mark.slow) for kind in KINDS]
STACK = {"layers": 2, "attention_heads": 2, "ffn_dim": 48}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SHAPES = {
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "bart": {"d_model": 32, "init_std": 0.1}
    | {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in STACK.items()},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred reviews of three to five words, one of which says whether the film is good."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(200):
        words = [*rng.choice(NEUTRAL, rng.integers(2, 5)), rng.choice(GOOD if number % 2 else BAD)]
        lines.append(f"{' '.join(rng.permutation(words))}\t{'good' if number % 2 else 'bad'}")
    path = tmp_path_factory.mktemp("rows") / "reviews.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def save_base(kind: str, folder: Path, made: Any = None) -> Path:
    """A tiny encoder or decoder with a tokenizer of words."""
    usual = transformers.AutoModelForCausalLM if kind == "llama" else transformers.AutoModelForMaskedLM
    usual = transformers.AutoModelForSeq2SeqLM if kind in ("bart", "t5") else usual
    vocabulary = {
        token: index for index, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *GOOD, *BAD, *NEUTRAL])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config_class, rates = KINDS[kind]
    shape = SHAPES.get(kind, SHAPE)
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(vocabulary), pad_token_id=0, max_position_embeddings=24, initializer_range=0.1, **shape, **rates
    )
    (made or usual).from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_base(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def settings(rows: Path, base: Path | None = None, **start: Any) -> ClassificationSettings:
    return ClassificationSettings(
        text=LabelledSettings(data=str(rows)),
        start=StartSettings(None if base is None else str(base), **start),
        model=ClassifierSettings(dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
        steps=STEPS,
        batch_size=16,
    )


def save_with_new_head(task: ClassifyTask, folder: Path) -> None:
    """Write the checkpoint with the classifier that training starts with, as its run would."""
    trainable = task.trainable(task.config)
    task.export(folder, trainable.params, trainable.assemble(trainable.params, trainable.frozen))


def their_loss(model: torch.nn.Module, batch: Any, _: int) -> torch.Tensor:
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    real = tensors["labels"][:, 0] >= 0
    mask = tensors["source_mask"][real].long()
    logits = model(input_ids=tensors["source"][real].long(), attention_mask=mask).logits
    return torch.nn.functional.cross_entropy(logits, tensors["labels"][real, 0].long())


@pytest.mark.parametrize("kind", OF_KINDS)
def test_fifty_steps_have_the_losses_of_pytorch(kind: str, bases: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    task = ClassifyTask(settings(rows, bases[kind]))
    save_with_new_head(task, tmp_path)
    batches = first_batches(task, STEPS)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    ours, theirs = our_losses(task, batches), their_losses(model, task.settings.optimizer, batches, their_loss)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.mean(ours[-5:]) < np.mean(ours[:5]) - 0.3


@pytest.mark.parametrize("kind", ["bert", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:])])
def test_fifty_steps_of_an_adapter_have_the_losses_of_peft(
    kind: str, bases: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    whole = ClassifyTask(settings(rows, bases[kind]))
    save_with_new_head(whole, tmp_path)
    task = ClassifyTask(settings(rows, bases[kind], lora=4, lora_alpha=8.0))
    batches = first_batches(task, STEPS)
    jaxformer.lora.save(task._adapted[1], tmp_path / "adapter", base=tmp_path / "model")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    ours, theirs = our_losses(task, batches), their_losses(model, task.settings.optimizer, batches, their_loss)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.mean(ours[-5:]) < np.mean(ours[:5])


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "rounded"), [("full", 0.0), ("int8", 0.05)])
def test_an_adapter_with_its_classifier_opens_in_peft_and_in_transformers(
    weights: str, rounded: float, bases: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    flags = ("--model", str(bases["bert"]), "--lora", "4", "--learning-rate", "1e-2", "--weights", weights)
    run = train_here(tmp_path / "run", rows, *flags)
    ids, opened = np.arange(3, 9)[None], open_run(run)
    base = AutoModelForSequenceClassification.from_pretrained(bases["bert"], num_labels=2)
    adapted = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
    merged = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    with torch.no_grad():
        theirs = [model(input_ids=torch.tensor(ids)).logits.numpy() for model in (adapted, merged)]
    for logits in theirs:
        np.testing.assert_allclose(np.asarray(opened.model(ids)), logits, atol=1e-5 + rounded)
    np.testing.assert_allclose(*theirs, atol=1e-5)
    lm = jaxformer.from_pretrained(run / "model")
    found, _ = jaxformer.pretrained.with_classifier(jaxformer.from_pretrained(bases["bert"]), lm.labels, seed=9)
    ours = jaxformer.lora.merge(found, jaxformer.lora.load(run / "adapter", found))
    np.testing.assert_allclose(np.asarray(ours(ids).logits), theirs[0], atol=1e-5)
    train_here(run, rows, *flags, "--resume", steps=9)


@pytest.mark.slow
def test_fifty_steps_with_rates_by_layer_have_the_losses_of_pytorch(
    bases: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    plain = settings(rows, bases["bert"])
    task = ClassifyTask(dataclasses.replace(plain, optimizer=dataclasses.replace(plain.optimizer, layer_decay=0.5)))
    save_with_new_head(task, tmp_path)
    batches = first_batches(task, STEPS)
    layers = SHAPE["num_hidden_layers"]

    def factor(name: str) -> float:
        found = re.search(r"layer\.(\d+)\.", name)
        below = layers + 1 if "embeddings" in name else 0
        return 0.5 ** (layers - int(found[1]) if found else below)

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    optimizer = task.settings.optimizer
    ours, theirs = our_losses(task, batches), their_losses(model, optimizer, batches, their_loss, factor)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert np.abs(np.array(ours) - our_losses(ClassifyTask(plain), batches)).max() > 1e-3


def test_what_a_checkpoint_has_of_a_classifier_stays(rows: Path, tmp_path: Path, capsys: Any) -> None:
    bare = save_base("bert", tmp_path / "bare", transformers.AutoModel)
    task = ClassifyTask(settings(rows, bare))
    assert task.config.head.classes == 2
    assert "new weights, to be trained: classifier.bias, classifier.weight\n" in capsys.readouterr().err
    model = transformers.AutoModel.from_pretrained(bare)
    ours = task.trainable(task.config).params["head"]["hidden"]["weight"]
    np.testing.assert_array_equal(ours, model.pooler.dense.weight.detach().numpy().T)
    whole = save_base("bert", tmp_path / "whole", AutoModelForSequenceClassification)
    ClassifyTask(settings(rows, whole)).config  # noqa: B018
    assert "new weights" not in capsys.readouterr().err


@pytest.mark.parametrize("problem", ["multi_label_classification", "single_label_classification"])
def test_its_own_labels_are_trained_as_one_right_label(problem: str, rows: Path, tmp_path: Path) -> None:
    """From a classifier of these labels, whatever it was trained for before."""
    base = save_base("bert", tmp_path, AutoModelForSequenceClassification)
    config = json.loads((base / "config.json").read_text())
    config |= {"problem_type": problem, "id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1}}
    (base / "config.json").write_text(json.dumps(config))
    task, lm = ClassifyTask(settings(rows, base)), from_pretrained(base)
    found = task.prepared(lm)
    assert task.labels == ["good", "bad"]
    assert found.kind_of_scores == "one"
    np.testing.assert_array_equal(found.model.head.output.weight[...], lm.model.head.output.weight[...])


def train_here(run: Path, rows: Path, *flags: str, steps: int = 8) -> Path:
    sizes = [] if "--model" in flags else ["--layers", "1", "--dim", "32", "--heads", "2", "--tokenizer", "word"]
    common = ["--data", str(rows), "--batch-size", "16", "--steps", str(steps), "--save-every", "4", *sizes]
    train.train(["--task", "classify", *common, "--output", str(run), *flags])
    return run


def test_a_new_model_learns_to_classify(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_here(tmp_path / "run", rows, "--learning-rate", "3e-3", steps=60)
    results = json.loads((run / "results.json").read_text())
    assert results["accuracy"] == 1
    assert results["macro_f1"] == 1
    said = capsys.readouterr()
    assert "190 texts of 2 labels in batches of" in said.err
    assert "validation, 10 texts: accuracy 100.0%, macro F1 1.0000" in said.out
    assert "label  found:    bad    good" in said.out
    assert "label  found:    bad    good" in (run / "report.html").read_text()
    for program, argv in ((decode_inputs, ["--prompt", "fine"]), (classify, ["--input-file", str(rows)])):
        said = refusal(lambda program=program, argv=argv: program(["--model", str(run), *argv]), capsys)
        assert f"{run} is a run of new weights, not a checkpoint folder: " in said
    said = refusal(lambda: train_here(tmp_path / "other", rows, "--model", str(run)), capsys)
    assert "is a run, not a checkpoint folder: go on with it by --resume" in said
    decode_inputs(["--checkpoint", str(run), "--input", "the story was lovely"])
    assert re.fullmatch(r"the story was lovely\n-> good \(\d+\.\d%\)\n\n", capsys.readouterr().out)
    (tmp_path / "lines.txt").write_text("a dull film\ngreat\n")
    decode_inputs(["--checkpoint", str(run), "--input-file", str(tmp_path / "lines.txt"), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["text"], line["label"]) for line in lines] == [("a dull film", "bad"), ("great", "good")]
    assert all(0.5 < line["probability"] <= 1 for line in lines)
    with pytest.raises(InputError, match="a classifier generates nothing: leave num_beams out"):
        decode_inputs(["--checkpoint", str(run), "--input", "a", "--beam", "2"])


def test_a_trained_checkpoint_opens_in_transformers(bases: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    run = train_here(tmp_path / "run", rows, "--model", str(bases["bert"]), "--learning-rate", "1e-3", steps=30)
    model = AutoModelForSequenceClassification.from_pretrained(run / "model").eval()
    assert model.config.id2label == {0: "bad", 1: "good"}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "model")
    texts = ["the film was great", "awful", "a story dull the was"]
    with torch.no_grad():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    lm = from_pretrained(run / "model")
    found = lm.classify(texts)
    for ours, expected in zip(found, theirs, strict=True):
        np.testing.assert_allclose([ours["bad"], ours["good"]], expected, atol=1e-5)
        assert list(ours.values()) == sorted(ours.values(), reverse=True)
    assert next(iter(lm.classify("awful"))) == "bad"
    opened = open_run(run)
    view = opened.task.observe(opened.model, "the film was great")
    assert list(view.observations[0].queries) == ["[CLS]", "the", "film", "was", "great", "[SEP]"]
    assert "  ->  good" in view.answer
    answers = [output.label for (output,) in opened.task.generate(opened.model, texts)]
    assert answers == [next(iter(each)) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(
    frozen: bool, bases: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    flags = ("--model", str(bases["bert"]), "--freeze", "encoder") if frozen else ()
    whole, run = (train_here(tmp_path / name, rows, *flags) for name in ("whole", "cut"))
    for name in ("results.json", "loss.png", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/8")
    train.train(["--task", "classify", "--resume", "--output", str(run)])
    for one, other in zip(*(jax.tree.leaves(open_run(each).params) for each in (whole, run)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_accuracy_f1_and_the_matrix_are_those_of_their_definitions() -> None:
    confusion = np.array([[8, 2, 0], [1, 4, 0], [0, 0, 0]])
    assert accuracy(confusion) == 12 / 15
    precision, recall = np.array([8 / 9, 4 / 6]), np.array([8 / 10, 4 / 5])
    assert macro_f1(confusion) == pytest.approx(np.mean(2 * precision * recall / (precision + recall)))
    assert confusion_lines(["a", "bb", "c"], confusion)[1].split() == ["a", "8", "2", "0"]
    many = np.eye(20, dtype=int)
    many[3, 5] = 7
    assert confusion_lines([str(number) for number in range(20)], many) == ["  7 of 3 were taken for 5"]


def test_bad_input_is_one_line(
    bases: dict[str, Path], rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: str) -> str:
        common = ["--task", "classify", "--steps", "2", "--output", str(tmp_path / "run")]
        return refusal(lambda: train.train([*common, *flags]), capsys)

    (tmp_path / "one.tsv").write_text("fine\tgood\nlovely\tgood\n")
    (tmp_path / "other.tsv").write_text("fine\tsuperb\n")
    data, base = ("--data", str(rows)), ("--model", str(bases["bert"]))
    assert "needs --data" in said()
    (tmp_path / "rows.csv").write_text("fine,good\npoor,bad\n")
    (tmp_path / "true.jsonl").write_text('{"text": "fine", "label": true}\n{"text": "poor", "label": 3}\n')
    assert "no line that can be read, for example line 1: 1 column" in said("--data", str(tmp_path / "rows.csv"))
    assert "write tabs in place of commas" in said("--data", str(tmp_path / "rows.csv"))
    assert "1 bad line in" in said("--data", str(tmp_path / "true.jsonl"))
    assert "has 1 labels: a classifier needs 2" in said("--data", str(tmp_path / "one.tsv"))
    assert 'no training text has the labels "superb"' in said(*data, "--validation", str(tmp_path / "other.tsv"))
    assert "--layers is for new models" in said(*data, *base, "--layers", "2")
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_cannot_classify_are_refused(bases: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    pegasus = save_mbart(tmp_path / "pegasus")
    made = transformers.PegasusConfig(vocab_size=20, **SHAPES["bart"])
    transformers.PegasusForConditionalGeneration(made).save_pretrained(pegasus)
    with pytest.raises(InputError, match="Pegasus has no ForSequenceClassification in transformers"):
        ClassifyTask(settings(rows, pegasus)).config  # noqa: B018
    endless = tmp_path / "endless"
    save_base("t5", endless)
    tokenizer = Tokenizer.from_file(str(endless / "tokenizer.json"))
    tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(endless / "tokenizer.json"))
    with pytest.raises(InputError, match="the tokenizer ends no text with token 2"):
        ClassifyTask(settings(rows, endless)).config  # noqa: B018
    mute = tmp_path / "mute"
    shutil.copytree(bases["bert"], mute)
    (mute / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        ClassifyTask(settings(rows, mute)).config  # noqa: B018
    with pytest.raises(InputError, match="has no classifier"):
        from_pretrained(bases["bert"]).classify("fine")
