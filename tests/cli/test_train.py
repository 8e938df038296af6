"""train.py and generate.py as commands: a tiny run from beginning to end, and every bad input."""

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import TINY, call, message, parameters, refusal, typed

from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.runs import open_run
from jaxformer.cli.train import train
from jaxformer.data import held_out
from jaxformer.tasks import exact

HUGE = "9" * 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished run of the copy task."""
    folder = tmp_path_factory.mktemp("work")
    result = call(folder, "train.py", "--task", "copy", *TINY, "--steps", "40", "--save-every", "20")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("copy: training loss ")
    assert lines[1].startswith("held-out: ")
    assert "runs/copy" in lines[2]
    assert lines[3] == f"next: {typed('generate.py')} --beam 4"
    return folder


def test_a_run_leaves_metrics_and_pictures(folder: Path) -> None:
    run = folder / "runs" / "copy"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 41))
    assert {"step", "loss", "learning_rate", "grad_norm", "tokens_per_second", "skipped"} < set(lines[0])
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert (run / "loss.png").exists()


def test_beam_search_decodes_held_out_inputs(folder: Path) -> None:
    result = call(folder, "generate.py", "--beam", "4")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 16
    assert all(line.endswith(("right", "WRONG")) and "score -" in line for line in lines[1::2])
    assert "beam search with 4 beams" in result.stderr


@pytest.fixture
def say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[dict[str, Any]]]:
    """What generate.py --json answers, called in this process."""
    monkeypatch.chdir(folder)

    def say(*flags: str, stdin: str = "") -> list[dict[str, Any]]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        decode_inputs([*flags, "--json"])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return say


def test_inputs_come_from_flag_file_and_standard_input(folder: Path, say: Callable[..., list[dict[str, Any]]]) -> None:
    (folder / "inputs.txt").write_text("1 2 3\n\n5 4\n")
    answers = say("--input-file", "inputs.txt")
    assert answers == say("--input-file", "-", "--greedy", stdin="1 2 3\n5 4\n")
    assert [answer["source"] for answer in answers] == ["1 2 3", "5 4"]
    assert all(answer["right"] == (answer["source"] == answer["hypothesis"]) for answer in answers)
    assert say("--input", "5 4")[0]["hypothesis"] == answers[1]["hypothesis"]
    piped = call(folder, "generate.py", "--input-file", "-", "--json", stdin="5 4\n")
    assert json.loads(piped.stdout) == answers[1]


def test_n_best_and_sampling(say: Callable[..., list[dict[str, Any]]]) -> None:
    scores = [answer["score"] for answer in say("--input", "5 4", "--beam", "3", "--n-best", "3")]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    flags = ["--input", "5 4 3 2", "--temperature", "2", "--n-best", "4", "--seed"]
    first, again, other = (say(*flags, seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert say("--input", "5 4", "--temperature", "0") == say("--input", "5 4", "--greedy")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--beam", "0"], "--beam must be at least 1, not 0"),
        (["--beam", "-1"], "--beam must be at least 1, not -1"),
        (["--n-best", "0"], "--n-best must be at least 1, not 0"),
        (["--max-new-tokens", "3000000000"], "max_new_tokens must be a whole number from 1 to"),
        (["--top-p", "2"], "top_p must be"),
        (["--temperature", "-1"], "temperature must be"),
        (["--n-best", "3"], "--n-best 3 needs --beam 3"),
        (["--greedy", "--beam", "4"], "--greedy excludes"),
        (["--length-penalty", "2"], "give --beam too"),
        (["--input", "1 9"], "'9' is no symbol: write numbers from 0 to 5"),
        (["--input", "1 1 1 1 1 1"], "reads from 1 to 5"),
        (["--input", "1", "--input-file", "-"], "exclude each other"),
        (["--input-file", "nowhere.txt"], "No such file"),
        (["--input-file", "-"], "holds no input"),
        (["--checkpoint", "nowhere"], "nowhere is not a run"),
        (["--bim", "4"], "Unrecognized options: --bim, 4"),
        (["--beem", "4"], "Perhaps you meant: --beam (--help shows all flags)"),
        (["--beam", "many"], "'many'"),
        (["--max-new-tokens", "0"], "max_new_tokens must be"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_generate_explains_bad_input(
    folder: Path, flags: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    assert expected in refusal(lambda: decode_inputs(flags), capsys)


def test_generate_without_any_run(tmp_path: Path) -> None:
    assert "train one first" in message(call(tmp_path, "generate.py", "--beam", "4"))


def test_a_process_says_the_same(folder: Path) -> None:
    assert message(call(folder, "generate.py", "--input", "9")).startswith("error: '9' is no symbol")
    assert message(call(folder, "train.py", "--task", "copy", "--bim", "4")).startswith("error: Unrecognized options")


def test_a_damaged_checkpoint_is_named(folder: Path, tmp_path: Path) -> None:
    """One line on standard error, and the next older one is used; without one, nothing else is said."""
    shutil.copytree(folder / "runs", tmp_path / "runs")
    cut_in_half(tmp_path / "runs/copy/checkpoints/40")
    result = call(tmp_path, "generate.py", "--beam", "4", "--json")
    assert result.returncode == 0, result.stderr
    assert re.fullmatch(r"checkpoint 40 is damaged \(.*\): opening 20\n", result.stderr)
    cut_in_half(tmp_path / "runs/copy/checkpoints/20")
    assert "checkpoints/40 is damaged" in message(call(tmp_path, "generate.py", "--beam", "4"))
    (tmp_path / "runs/copy/run.json").write_text("{")
    assert "run.json: is not valid JSON" in message(call(tmp_path, "generate.py", "--beam", "4"))


def cut_in_half(checkpoint: Path) -> None:
    """Truncate all files of a checkpoint's state."""
    for path in (checkpoint / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("run.json", {"task": 3}, "run.json cannot be read: task=3 must be a string"),
        ("run.json", {"format": "2"}, 'format="2" must be a whole number'),
        ("run.json", {"model": []}, "model=[] must be an object"),
        ("run.json", {"settings": {"type": "Symbols"}}, '"settings" holds something else'),
        ("run.json", {"settings": {"type": "SequenceSettings", "steps": "9"}}, 'SequenceSettings.steps="9" must be'),
        ("run.json", {"task": "x" * 500}, "which is unknown here"),
    ],
)
def test_a_damaged_description_is_named(
    folder: Path, tmp_path: Path, name: str, change: dict, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(folder / "runs/copy", tmp_path / "copy")
    (run / name).write_text(json.dumps(json.loads((run / name).read_text()) | change))
    for flags in (["--resume"], ["--eval-only"]):
        said = refusal(lambda flags=flags: train(["--task", "copy", *flags, "--output", str(run)]), capsys)
        assert expected in said
        assert len(said) <= 310


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--task", "juggle"], "unknown task 'juggle': choose one of copy, reverse, sort"),
        ([], "name a task"),
        (["--task", "copy", "--heads", "3"], "3 heads do not divide the model width 128"),
        (["--task", "copy", "--dropout", "1.5"], "dropout must be"),
        (["--task", "copy", "--steps", "0"], "steps must be at least 1"),
        (["--task", "copy", "--bim", "4"], "Unrecognized options: --bim"),
        (["--task", "copy", "--symbols", "1"], "--symbols must be at least 2"),
        (["--task", "copy", "--learning-rate", "-1"], "learning_rate must be more than 0"),
        (["--task", "copy", "--output", "runs/copy"], "runs/copy is not empty: add --resume"),
        (["--task", "reverse", "--resume", "--output", "runs/copy"], "was trained on the task 'copy'"),
        (["--task", "copy", "--resume", "--seed", "3"], "keeps its settings"),
        (["--task", "sort", "--resume"], "no run of the task 'sort'"),
        (
            ["--task", "copy", "--output", "/proc/nowhere"],
            "cannot write to /proc/nowhere (No such file or directory): give another",
        ),
        (["--task", "copy", "--output", "inputs"], "inputs is a file: give a folder"),
        (["--task", "copy", "--dim", "2147483648"], "dim must be at most 1048576, not 2147483648"),
        (["--task", "copy", "--dim", "1048576"], "parameters needs"),
        (["--task", "copy", "--heads", HUGE], "heads must be at most 1048576"),
        (["--task", "copy", "--d-ff", HUGE], "d_ff must be at most 1048576"),
        (["--task", "copy", "--layers", "1000000000"], "layers must be at most 256"),
        (["--task", "copy", "--batch-size", HUGE], "batch_size must be at most 1048576"),
        (["--task", "copy", "--batch-size", "1048576", "--symbols", "4096"], "rows of 17 tokens need"),
        (["--task", "copy", "--symbols", HUGE], "--symbols must be at most 2147483647"),
        (["--task", "copy", "--symbols", "2147483647"], "parameters needs"),
        (["--task", "copy", "--max-length", "2147483647"], "rows of 2147483648 tokens need"),
        (["--task", "copy", "--steps", HUGE], "steps must be at most 2147483647"),
        (["--task", "copy", "--save-every", HUGE], "save_every must be at most"),
        (["--task", "copy", "--warmup-steps", HUGE], "warmup_steps must be at most"),
        (["--task", "copy", "--seed", HUGE], "seed must be at least 0 and below 2^32"),
        (["--task", "copy", "--learning-rate", "1e300"], "finite in float32"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_train_explains_bad_input(
    folder: Path, flags: list[str], expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "inputs").write_text("a file, not a folder")
    before = sorted(folder.rglob("*"))
    monkeypatch.chdir(folder)
    assert expected in refusal(lambda: train(flags), capsys)
    assert sorted(folder.rglob("*")) == before


def test_help_shows_the_flags_of_the_task(tmp_path: Path) -> None:
    said = call(tmp_path, "train.py", "--help").stdout
    assert all(f"\n  {task} " in said for task in ("copy", "reverse", "sort", "lm"))
    shown = call(tmp_path, "train.py", "--task", "sort", "--help").stdout
    assert "--max-length INT" in shown
    assert "Say the symbols of the source in order of size" in shown


@pytest.mark.slow
def test_a_run_elsewhere_names_its_folder_and_resuming_a_finished_one_is_harmless(tmp_path: Path) -> None:
    flags = ["--task", "sort", *TINY, "--steps", "4", "--output", str(tmp_path / "elsewhere")]
    result = call(tmp_path, "train.py", *flags)
    assert (
        result.stdout.splitlines()[-1] == f"next: {typed('generate.py')} --beam 4 --checkpoint {tmp_path / 'elsewhere'}"
    )
    before = parameters(tmp_path / "elsewhere")
    again = call(tmp_path, "train.py", "--task", "sort", "--resume", "--output", str(tmp_path / "elsewhere"))
    assert again.returncode == 0, again.stderr
    after = parameters(tmp_path / "elsewhere")
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.optimised
@pytest.mark.parametrize("task", ["copy", "reverse"])
def test_the_default_run_learns_its_task(tmp_path: Path, task: str) -> None:
    """With one seed; three of each, and of sort, were trained for README."""
    result = call(tmp_path, "train.py", "--task", task)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "runs" / task
    results = json.loads((folder / "results.json").read_text())
    run = open_run(folder)
    batch = held_out(run.task, 1000, run.task.settings.seed)
    beam = exact(run.model, batch, run.task.generation.replace(num_beams=4)).mean()
    print(f"{task}: {results}, beam 4 {beam:.3f}")
    assert results["loss"] < 0.1
    assert min(results["exact"], beam) >= 0.99
