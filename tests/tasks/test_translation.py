"""The task `translate`: new models and checkpoints, on pairs of texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from commands import refusal
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from torch_training import first_batches, our_losses, their_losses
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from jaxformer import InputError
from jaxformer.cli import train
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.runs import fresh_state, open_run
from jaxformer.data.buckets import all_batches, bucket
from jaxformer.tasks.start import StartSettings
from jaxformer.tasks.translation import TranslateTask
from jaxformer.tasks.translation_settings import PairSettings, TranslationModelSettings, TranslationSettings
from jaxformer.training import Checkpoints, OptimizerConfig

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
WERKE = ("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht")
STEPS = 50


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred pairs of one to six words."""
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.tsv", longest=6)


@pytest.fixture(scope="module")
def short_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three hundred pairs of one word or two, of which few programs are compiled."""
    return write_pairs(tmp_path_factory.mktemp("short-pairs") / "pairs.tsv", longest=2)


def write_pairs(path: Path, longest: int) -> Path:
    """Write three hundred pairs: words, and each of them translated."""
    rng = np.random.default_rng(0)
    chosen = [rng.integers(0, len(WORDS), rng.integers(1, longest + 1)) for _ in range(300)]
    lines = [f"{' '.join(WORDS[i] for i in row)}\t{' '.join(WERKE[i] for i in row)}" for row in chosen]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_base(kind: str, folder: Path) -> Path:
    """A tiny T5, BART or Marian with a tokenizer of words."""
    begin = ["<s>"] if kind == "bart" else []
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", "<s>", *WORDS, *WERKE, "to"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = " ".join([*begin, "$A", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=[("<s>", 3), ("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    ids = {"pad_token_id": 0, "eos_token_id": 1, "vocab_size": len(vocabulary), "dropout": 0.1}
    marian = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
    marian |= {
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "max_position_embeddings": 32,
    }
    marian |= {"forced_eos_token_id": None, "decoder_start_token_id": 1 if kind == "bart" else 0}
    torch.manual_seed(0)
    match kind:
        case "t5":
            config = transformers.T5Config(
                d_model=32,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                decoder_start_token_id=0,
                dropout_rate=0.1,
                **ids,
            )
        case "bart":
            config = transformers.BartConfig(bos_token_id=3, **marian, **ids)
        case _:
            config = transformers.MarianConfig(**marian, **ids)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_base(kind, tmp_path_factory.mktemp(kind)) for kind in ("t5", "bart", "marian")}


def settings(pairs: Path, base: Path | None = None, **changes: Any) -> TranslationSettings:
    return TranslationSettings(
        text=PairSettings(data=str(pairs), max_length=32),
        start=StartSettings(None if base is None else str(base)),
        model=TranslationModelSettings(dropout=0.0),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=5, weight_decay=0.1),
        **{"steps": STEPS, "batch_tokens": 128, "label_smoothing": 0.0, **changes},
    )


def their_loss(model: torch.nn.Module, batch: Any, _: int) -> torch.Tensor:
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    logits = model(
        input_ids=tensors["source"].long(),
        attention_mask=tensors["source_mask"].long(),
        decoder_input_ids=tensors["target"].long(),
    ).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tensors["labels"].long().flatten())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_fifty_steps_have_the_losses_of_pytorch(kind: str, bases: dict[str, Path], pairs: Path) -> None:
    task = TranslateTask(settings(pairs, bases[kind]))
    batches = first_batches(task, STEPS)
    ours, model = our_losses(task, batches), AutoModelForSeq2SeqLM.from_pretrained(bases[kind]).eval()
    theirs = their_losses(model, task.settings.optimizer, batches, their_loss)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert ours[-1] < ours[0] - 0.3


@pytest.mark.parametrize("kind", ["t5", "bart", "marian"])
def test_labels_are_those_of_transformers(kind: str, bases: dict[str, Path], pairs: Path) -> None:
    task = TranslateTask(settings(pairs, bases[kind]))
    source, target = task.rows["train"][0]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bases[kind])
    first = task.pairs("train")[0]
    np.testing.assert_array_equal(first.source, tokenizer(source).input_ids)
    np.testing.assert_array_equal(first.target, tokenizer(target).input_ids)
    model = AutoModelForSeq2SeqLM.from_pretrained(bases[kind])
    batch = next(all_batches([first], bucket([first], tokens=None, rows=1), start=task.coder.start, pad=task.coder.pad))
    expected = model.prepare_decoder_input_ids_from_labels(torch.tensor(first.target).long()[None])
    np.testing.assert_array_equal(batch["target"], expected)


def train_here(tmp_path: Path, pairs: Path, *flags: str, steps: int = 8) -> Path:
    run = tmp_path / "run"
    sizes = ["--layers", "1", "--dim", "32", "--heads", "2"] if "--model" not in flags else []
    common = ["--data", str(pairs), "--batch-tokens", "256", "--evaluate-pairs", "4", "--warmup-steps", "20"]
    common += ["--steps", str(steps), "--save-every", "4", "--output", str(run), "--vocab-size", "300", *sizes]
    train.train(["--task", "translate", *common, *flags])
    return run


@pytest.mark.slow
def test_a_new_model_learns_to_translate(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_here(
        tmp_path,
        pairs,
        *("--tokenizer", "word", "--dropout", "0", "--average", "2", "--norm-order", "pre"),
        *("--learning-rate", "5e-3", "--dim", "64", "--heads", "4"),
        steps=600,
    )
    results = json.loads((run / "results.json").read_text())
    assert results["validation_exact"] > 0.9
    assert results["validation_bleu"] > 90
    assert results["validation_pairs"] == 15
    said = capsys.readouterr()
    assert "batches of" in said.err
    assert "validation, 15 pairs, greedy: BLEU" in said.out
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    assert {"loss", "bleu", "chrf", "exact", "sample"} <= set(evaluations[-1])
    decode_inputs(["--checkpoint", str(run), "--input", "two five eight one", "--beam", "4"])
    assert capsys.readouterr().out.strip() == "zwei fünf acht eins"
    (tmp_path / "lines.txt").write_text("one two\nthree\n")
    decode_inputs(["--checkpoint", str(run), "--input-file", str(tmp_path / "lines.txt"), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["source"], line["translation"]) for line in lines] == [("one two", "eins zwei"), ("three", "drei")]
    opened = open_run(run)
    view = opened.task.observe(opened.model, "two five")
    assert view.answer == "two five  ->  zwei fünf"
    cross = view.observations[2]
    assert [name for name in cross.queries if name != "␣"][:2] == ["zwei", "fünf"]


@pytest.mark.slow
def test_parameters_are_averaged_over_the_last_checkpoints(short_pairs: Path, tmp_path: Path) -> None:
    run = train_here(tmp_path, short_pairs, "--tokenizer", "word", "--average", "3", steps=16)
    opened = open_run(run)
    states = []
    for step in (8, 12, 16):
        alone = tmp_path / str(step)
        shutil.copytree(run / "checkpoints" / str(step), alone / str(step))
        with Checkpoints(alone, writable=False) as checkpoints:
            states.append(checkpoints.restore(fresh_state(opened.task, opened.model.config)[1])[0].params)
    means = jax.tree.map(lambda *leaves: np.mean([np.asarray(leaf, np.float64) for leaf in leaves], 0), *states)
    for ours, mean in zip(jax.tree.leaves(opened.params), jax.tree.leaves(means), strict=True):
        np.testing.assert_allclose(ours, mean, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [("--separate-vocabularies",), ("--positions", "relative"), ("--positions", "rotary")]
)
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(
    flags: tuple[str, ...], short_pairs: Path, tmp_path: Path
) -> None:
    whole, run = (train_here(tmp_path / name, short_pairs, "--tokenizer", "word", *flags) for name in ("whole", "cut"))
    for name in ("results.json", "loss.png", "report.html"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/8")
    train.train(["--task", "translate", "--resume", "--output", str(run)])
    for one, other in zip(*(jax.tree.leaves(open_run(each).params) for each in (whole, run)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_trained_checkpoint_opens_in_transformers(
    bases: dict[str, Path], short_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_here(
        tmp_path, short_pairs, "--model", str(bases["t5"]), "--learning-rate", "3e-3", "--average", "1", steps=12
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(run / "model").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run / "model")
    ids = tokenizer(["one two", "six six six"], padding=True, return_tensors="pt")
    theirs = tokenizer.batch_decode(model.generate(**ids, max_new_tokens=12, num_beams=3), skip_special_tokens=True)
    capsys.readouterr()
    decode_inputs(["--model", str(run / "model"), "--prompt", "one two", "--prompt", "six six six", "--beam", "3",
                   "--max-new-tokens", "12", "--json"])  # fmt: skip
    ours = [json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()]
    assert ours == theirs


def test_too_long_pairs_are_dropped_or_cut_and_counted(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def made(long: Any) -> tuple[int, int]:
        text = PairSettings(data=str(pairs), max_length=8, long=long, tokenizer="word")
        found = TranslateTask(TranslationSettings(text=text)).pairs("train")
        assert all(pair.target[-1] == 0 for pair in found)
        return len(found), max(len(side) for pair in found for side in pair)

    kept, longest = made("drop")
    assert kept < 285
    assert longest <= 8
    dropped = f"{285 - kept} of 285 training pairs have more than 8 tokens: "
    assert dropped + "dropped" in capsys.readouterr().err
    text = PairSettings(data=str(pairs), max_length=8, tokenizer="word")
    assert len(TranslateTask(TranslationSettings(text=text)).pairs("validation")) == 15
    assert "of 15 validation pairs have more than 8 tokens: cut" in capsys.readouterr().err
    assert made("cut") == (285, 8)
    assert dropped + "cut" in capsys.readouterr().err


def test_bad_input_is_one_line(
    bases: dict[str, Path], pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: str) -> str:
        common = ["--task", "translate", "--steps", "2", "--output", str(tmp_path / "run")]
        return refusal(lambda: train.train([*common, *flags]), capsys)

    data = ("--data", str(pairs))
    (tmp_path / "bad.tsv").write_text("one\nzwei\tdrei\n")
    (tmp_path / "one.tsv").write_text("one\teins\n")
    assert "needs --data" in said()
    assert "line 1: 1 column, not two" in said("--data", str(tmp_path / "bad.tsv"))
    assert "has one row" in said("--data", str(tmp_path / "one.tsv"))
    assert "--layers is for new models" in said("--model", str(bases["t5"]), "--layers", "2", *data)
    assert "all 285 training pairs have more than 2" in said("--max-length", "2", "--tokenizer", "char", *data)
    assert "--batch-size needs --batch-tokens 0" in said("--batch-size", "8", *data)
    assert "holds no pair of" in said("--batch-tokens", "2", *data)
    one = ("--tokenizer", str(bases["t5"] / "tokenizer.json"), "--separate-vocabularies")
    assert "makes two vocabularies" in said(*one, *data)
    assert "--tokenizer nowhere is neither a file" in said("--tokenizer", "nowhere", *data)
    assert not (tmp_path / "run").exists()


def test_checkpoints_that_cannot_translate_are_refused(bases: dict[str, Path], pairs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    config = transformers.GPT2Config(vocab_size=30, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    with pytest.raises(InputError, match="is no encoder-decoder with a head"):
        TranslateTask(settings(pairs, folder)).config  # noqa: B018
    mute = tmp_path / "mute"
    shutil.copytree(bases["t5"], mute)
    (mute / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        TranslateTask(settings(pairs, mute)).config  # noqa: B018
