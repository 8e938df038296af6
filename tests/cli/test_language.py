"""Language models through the programs: trained on a small text, continued, measured, and every bad input."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, message, parameters, refusal, typed
from hf_models import EAGER
from hf_pairs import assert_close
from transformers import AutoModelForCausalLM

from jaxformer import InputError, from_pretrained
from jaxformer.__main__ import main
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.runs import open_run
from jaxformer.cli.train import train

pytestmark = pytest.mark.xdist_group("language")  # one worker makes what they share
TEXT = (
    "".join(
        f"The {animal} sat on the {place}; nobody minded it.\n"
        for animal in ("cat", "dog", "owl", "bee")
        for place in ("mat", "log", "fir", "sea")
    )
    * 8
)
FLAGS = ["--task", "lm", "--data", "text.txt", "--context", "32", "--batch-size", "8", "--warmup-steps", "5"]
FLAGS += ["--evaluate-batches", "2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and one finished run on it."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text(TEXT)
    result = call(folder, "train.py", *FLAGS, "--steps", "60", "--evaluate-every", "30", "--save-every", "30")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("lm: training loss ")
    assert [line.split()[0] for line in lines[2:6]] == ["tokens", "loss", "perplexity", "bits"]
    assert lines[-1].startswith(f"next: {typed('generate.py')} --prompt")
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def continued(capsys: pytest.CaptureFixture[str], *flags: str) -> list[dict]:
    """What generate.py prints with --json."""
    decode_inputs([*flags, "--json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_run_leaves_metrics_evaluations_and_a_report(folder: Path) -> None:
    run = folder / "runs" / "lm"
    lines, looks = (
        [json.loads(line) for line in (run / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "evaluations.jsonl")
    )
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert {"update_ratio", "spike", "grad_norm"} <= set(lines[0])
    assert [look["step"] for look in looks] == [30, 60]
    assert looks[1]["loss"] < looks[0]["loss"]
    assert np.exp(looks[1]["loss"]) == pytest.approx(looks[1]["perplexity"])
    assert looks[1]["sample"][:16] in TEXT
    page = (run / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "perplexity" in page


def test_one_prompt_is_streamed_to_the_same_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = ["--temperature", "0.9", "--top-k", "5", "--seed", "3", "--max-new-tokens", "16"]
    (line,) = continued(capsys, "--prompt", "The cat", *sampling)
    decode_inputs(["--prompt", "The cat", *sampling])
    assert capsys.readouterr().out == f"The cat{line['continuation']}\n"
    assert len(line["continuation"]) == 16


@pytest.mark.parametrize("search", [["--greedy"], ["--beam", "2"], ["--temperature", "0.9", "--top-p", "0.9"]])
def test_a_prompt_in_a_batch_gives_what_it_gives_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], search: list[str]
) -> None:
    flags = [*search, "--max-new-tokens", "7"]
    prompts = ["The", "The owl sat on", "nobody min"]
    together = continued(capsys, *(flag for prompt in prompts for flag in ("--prompt", prompt)), *flags)
    assert [line["prompt"] for line in together] == prompts
    alone = [continued(capsys, "--prompt", prompt, *flags)[0] for prompt in prompts]
    assert [line["continuation"] for line in alone] == [line["continuation"] for line in together]
    np.testing.assert_allclose([line["score"] for line in alone], [line["score"] for line in together], atol=2e-4)


@pytest.mark.parametrize(("content", "prompts"), [("The cat\n", ["The cat"]), ("", [""])])
def test_a_pipe_is_read_where_no_prompt_is_given(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    content: str,
    prompts: list[str],
) -> None:
    """An empty one is none: the model begins a text."""
    (folder / "input").write_text(content)
    with (folder / "input").open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        assert [line["prompt"] for line in continued(capsys, "--max-new-tokens", "2")] == prompts


def test_several_samples_and_prompts_from_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "prompts.txt").write_text("The bee\n\nThe dog\n")
    flags = ["--input-file", "prompts.txt", "--n-best", "3", "--temperature", "1.5", "--min-p", "0.01"]
    lines = continued(capsys, *flags, "--max-new-tokens", "9")
    assert [line["prompt"] for line in lines] == ["The bee"] * 3 + ["The dog"] * 3
    assert len({line["continuation"] for line in lines}) > 3


def test_long_prompts_are_refused_or_cut(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = TEXT[:60]
    flags = ["--prompt", prompt, "--max-new-tokens", "8"]
    assert "60 tokens of prompt and 8 new ones exceed the model's context of 32" in refusal(
        lambda: decode_inputs(flags), capsys
    )
    (cut,) = continued(capsys, *flags, "--truncate")
    (same,) = continued(capsys, "--prompt", prompt[-24:], "--max-new-tokens", "8")
    assert cut["continuation"] == same["continuation"]
    (half,) = continued(capsys, "--prompt", prompt, "--truncate")  # of the context, where nobody said how many
    (same,) = continued(capsys, "--prompt", prompt[-16:], "--max-new-tokens", "16")
    assert half["continuation"] == same["continuation"]


def test_evaluation_can_be_repeated_and_any_text_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((folder / "runs/lm/results.json").read_text())
    train(["--task", "lm", "--eval-only"])
    said = capsys.readouterr().out
    assert f"{results['validation_loss']:.4f} nats per token" in said
    description = json.loads((folder / "runs/lm/text.json").read_text())
    changed = description | {"validation": description["validation"] ^ 1}
    (folder / "runs/lm/text.json").write_text(json.dumps(changed))
    train(["--task", "lm", "--eval-only"])
    assert "the validation text changed since runs/lm began: its results were of other data" in capsys.readouterr().err
    said = refusal(lambda: train(["--task", "lm", "--resume"]), capsys)
    assert "the validation text changed since runs/lm began: it cannot be resumed" in said
    older = {name: value for name, value in description.items() if name != "validation"}
    (folder / "runs/lm/text.json").write_text(json.dumps(older))  # of a run that kept none
    train(["--task", "lm", "--eval-only"])
    assert "changed" not in capsys.readouterr().err
    (folder / "runs/lm/text.json").write_text(json.dumps(description))
    (folder / "other.txt").write_text(TEXT[:400])
    main(["perplexity", "--data", "other.txt"])
    table = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines()[2:4] if " per " not in line)
    assert float(table["perplexity"]) < 30


@pytest.mark.slow
def test_what_the_tokenizer_never_saw_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a validation text, in a text to measure, and as words beyond the vocabulary."""
    (folder / "other.txt").write_text("The cat sät on the möt. " * 20)
    main(["perplexity", "--data", "other.txt"])
    assert "other.txt: 40 tokens (8.32%) are unknown to the tokenizer, as 'ä', 'ö'" in capsys.readouterr().err
    train([*FLAGS, "--validation", "other.txt", "--steps", "2", "--output", "short"])
    assert "validation text: 40 tokens (8.32%) are unknown to the tokenizer" in capsys.readouterr().err
    train([*FLAGS, "--tokenizer", "word", "--vocab-size", "12", "--steps", "2", "--output", "words"])
    assert "training text: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(folder: Path) -> None:
    flags = [*FLAGS, "--steps", "12", "--evaluate-every", "4", "--save-every", "4", "--dropout", "0.1"]
    train([*flags, "--output", "whole"])
    shutil.copytree("whole", "cut")
    for path in ("cut/checkpoints/12", "cut/checkpoints/8"):
        shutil.rmtree(path, ignore_errors=True)
    if not (folder / "cut/checkpoints/4").exists():  # the best and the last ones alone are kept
        shutil.rmtree("cut")
        shutil.copytree("whole", "cut")
        shutil.rmtree("cut/checkpoints/12")
    train(["--task", "lm", "--resume", "--output", "cut"])
    pairs = zip(parameters(Path("whole")), parameters(Path("cut")), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    whole, cut = ((folder / name / "evaluations.jsonl").read_text() for name in ("whole", "cut"))
    assert whole == cut


@pytest.mark.slow
def test_the_built_in_text_needs_no_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(["--task", "lm", "--steps", "2", "--evaluate-batches", "1", "--context", "16", "--output", "built-in"])
    said = capsys.readouterr()
    assert "the language reference that comes with Python" in said.err
    assert "validation text:" in said.out


@pytest.mark.slow
def test_the_modern_model_trains_and_continues(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--preset", "small-modern", "--accumulate", "2", "--rematerialize", "--tokenizer", "bpe"]
    train([*FLAGS, *flags, "--vocab-size", "290", "--steps", "2", "--evaluate-batches", "1", "--output", "modern"])
    capsys.readouterr()
    (line,) = continued(capsys, "--checkpoint", "modern", "--prompt", "The \u263a", "--max-new-tokens", "20")
    assert line["prompt"] == "The \u263a"  # a character that the text lacks: bytes know no unknown ones
    with pytest.raises(InputError, match="exceed the model's context of 32"):  # though rotary positions have no end
        continued(capsys, "--checkpoint", "modern", "--prompt", "The", "--max-new-tokens", "40")


def test_export_to_a_full_disk_is_one_line(folder: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write hf \(File too large\): give another folder"):
            main(["export", "hf", "--checkpoint", "runs/lm"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not list(folder.glob("hf*"))
    assert not list(folder.glob(".unfinished-*"))


def test_export_says_in_what_a_model_differs_from_a_family(folder: Path) -> None:
    with pytest.raises(InputError, match=r"has not the shape of llama: decoder\.blocks\[0\]\.attention\.rope is None"):
        main(["export", "hf", "--checkpoint", "runs/lm", "--family", "llama"])
    assert not Path("hf").exists()


@pytest.mark.slow
def test_the_model_with_experts_trains_resumes_and_is_exported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its loads are recorded and drawn, corrections move against them; transformers opens what comes of it."""
    flags = [*FLAGS, "--preset", "deepseek-tiny", "--save-every", "6", "--router-bias-speed", "0.01"]
    flags += ["--balance-loss", "0.01", "--router-z-loss", "0.001", "--accumulate", "2"]
    train([*flags, "--steps", "12", "--output", "whole"])
    shutil.copytree("whole", "cut")
    shutil.rmtree("cut/checkpoints/12")
    train(["--task", "lm", "--resume", "--output", "cut"])
    pairs = zip(parameters(Path("whole")), parameters(Path("cut")), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)
    lines = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    loads = np.array([list(line["expert_load"].values()) for line in lines])
    assert loads.shape == (12, 3, 16)
    np.testing.assert_allclose(loads.sum(-1), 1, atol=16 * 0.5e-4)  # sixteen shares, written with four digits each
    assert "Its experts" in Path("whole/report.html").read_text()
    corrections = open_run(Path("whole")).model.decoder.blocks[2].feed_forward.router_bias[...]
    assert 0.01 < float(np.abs(corrections).max()) <= 0.12 + 1e-6
    capsys.readouterr()
    main(["export", "hf", "--checkpoint", "whole"])
    assert "hf: DeepseekV3ForCausalLM" in capsys.readouterr().out
    lm, theirs = from_pretrained("hf"), AutoModelForCausalLM.from_pretrained("hf", **EAGER).eval()
    ids = np.arange(16).reshape(1, 16)
    with torch.no_grad():
        assert_close(lm(ids).logits, theirs(torch.tensor(ids)).logits)
    (line,) = continued(capsys, "--checkpoint", "whole", "--prompt", "The cat", "--greedy", "--max-new-tokens", "9")
    assert len(line["continuation"]) == 9
    with pytest.raises(InputError, match="is there already"):
        main(["export", "hf", "--checkpoint", "whole"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--prompt", "Ω and ß"], "the model never saw 'Ω', 'ß'"),
        (["--input", "3 1"], "--input is not for runs/lm"),
        (["--prompt", "The", "--input", "3"], "exclude each other"),
        (["--prompt", "The", "--max-new-tokens", "40"], "exceed the model's context of 32"),
        (["--prompt", "The", "--min-p", "2"], "min_p must be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_generate_explains_bad_input(
    folder: Path, flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(lambda: decode_inputs(flags), capsys)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--data", "nowhere.txt"], "nowhere.txt"),
        (["--data", "empty.txt"], "empty"),
        (["--data", "binary.txt"], "binary.txt is no UTF-8 text"),
        (["--data", "short.txt"], "tokens are too few"),
        (["--tokenizer", "runs"], "runs"),
        (["--tokenizer", "syllables"], "--tokenizer syllables is neither a file nor one of char, word, bpe"),
        (["--tokenizer", "bpe", "--vocab-size", "90000"], "90000"),
        (["--context", "1"], "--context must be at least 2"),
        (["--context", "2147483648"], "--context must be at most"),
        (["--vocab-size", "2147483648"], "--vocab-size must be at most"),
        (["--batch-size", "1048576"], "rows of 32 tokens need"),
        (["--evaluate-every", "9" * 25], "evaluate_every must be at most"),
        (["--evaluate-batches", "9" * 25], "evaluate_batches must be at most"),
        (["--balance-loss", "1e300"], "balance_loss must be at least 0 and finite in float32"),
        (["--accumulate", "3"], "--accumulate 3 does not divide --batch-size 8"),
        (["--preset", "huge"], "huge"),
        (["--dim", "100", "--heads", "3"], "--dim 100 is no multiple of 3 heads"),
        (["--layers", "0"], "layers must be at least 1"),
        (["--preset", "deepseek-tiny", "--layers", "2"], "--layers is for the other presets"),
        (["--symbols", "5"], "--symbols"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_explains_bad_input(
    folder: Path, flags: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty.txt").touch()
    (folder / "binary.txt").write_bytes(bytes(range(256)))
    (folder / "short.txt").write_text("Too short.")
    assert expected in refusal(lambda: train([*FLAGS, *flags, "--output", "new"]), capsys)
    assert not (folder / "new").exists()


def test_another_text_or_tokenizer_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "text.txt").write_text(TEXT.replace("owl", "bat"))
    said = refusal(lambda: train(["--task", "lm", "--resume", "--steps", "70"]), capsys)
    assert "the text and the validation text changed since runs/lm began" in said
    train([*FLAGS, "--steps", "1", "--evaluate-batches", "1", "--output", "other"])
    capsys.readouterr()
    shutil.copy("other/tokenizer.json", "runs/lm/tokenizer.json")
    assert "is not the tokenizer that the model was trained with" in refusal(
        lambda: decode_inputs(["--checkpoint", "runs/lm", "--prompt", "The"]), capsys
    )


@pytest.mark.parametrize("content", ["{}", '{"tokenizer": 3, "text": 1}', "[" * 100_000, "null", '{"tokenizer": "a"}'])
def test_a_damaged_description_of_the_text_is_named(
    folder: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = folder / "runs/lm"
    before = (run / "text.json").read_text()
    (run / "text.json").write_text(content)
    try:
        assert "text.json" in refusal(lambda: decode_inputs(["--checkpoint", str(run), "--prompt", "The"]), capsys)
        assert "text.json" in refusal(lambda: train(["--task", "lm", "--resume", "--output", str(run)]), capsys)
    finally:
        (run / "text.json").write_text(before)


def test_a_run_of_another_version_is_refused(folder: Path) -> None:
    about = json.loads((folder / "runs/lm/run.json").read_text())
    (folder / "runs/lm/run.json").write_text(json.dumps(about | {"format": 1, "version": "0.0.9"}))
    said = message(call(folder, "generate.py", "--prompt", "The"))
    assert "runs/lm was written by another version of jaxformer (0.0.9, format 1" in said


def test_help_shows_the_flags_of_the_task_alone(folder: Path) -> None:
    said = call(folder, "train.py", "--task", "lm", "--help").stdout
    assert "--tokenizer" in said
    assert "--symbols" not in said
    assert "--tokenizer" not in call(folder, "train.py", "--task", "copy", "--help").stdout
