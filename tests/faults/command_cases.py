"""Command lines that a program must refuse in one line, or carry out: drawn at random, a function for each kind."""

import random
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from command_tables import CLASSIFY, COPY, ENDLESS, FLAGS, LM, MODELS, RUNS, TRANSLATE, WHOLE
from odd_files import CONTENTS, VALUES, damage_bytes, damage_json, odd_jsonl, odd_path


@dataclass
class Case:
    """A command line in a folder: what standard input is, and which variables of the environment are set."""

    program: str
    arguments: list[str]
    stdin: str = "/dev/null"
    about: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    closed: tuple[int, ...] = ()
    stdout: str = ""
    real: bool = False

    def __str__(self) -> str:
        shown = [
            argument if len(argument) < 80 else f"{argument[:20]}...({len(argument)})" for argument in self.arguments
        ]
        more = [f"stdin {self.stdin}"] * (self.stdin != "/dev/null") + [self.about] * bool(self.about)
        more += [f"closed {self.closed}"] * bool(self.closed) + [f"stdout {self.stdout}"] * bool(self.stdout)
        more += [f"{name}={value}" for name, value in self.environment.items()]
        return f"{self.program} {shown!r} {'; '.join(more)}"


def odd_value(rng: random.Random, flag: str) -> str:
    value = rng.choice(VALUES)
    while flag in ENDLESS and value in ("2147483647", "2147483648", "9223372036854775808"):
        value = rng.choice(VALUES)
    return value


def wrong_values(rng: random.Random, folder: Path) -> Case:
    """A command that is right, and one or two flags more with odd values."""
    program = rng.choice(sorted(FLAGS))
    arguments = list(rng.choice(WHOLE[program]))
    for flag in rng.sample(sorted(FLAGS[program]), min(len(FLAGS[program]), rng.choice([1, 1, 2]))):
        value = odd_value(rng, flag)
        arguments += rng.choice([[flag, value], [f"{flag}={value}"], [flag], [f"{flag}x", value]])
    return Case(program, arguments)


def contradictions(rng: random.Random, folder: Path) -> Case:
    """Several flags, each of which is right by itself."""
    program = rng.choice(["generate", "generate", "generate", "train", "visualize", "embed"])
    arguments = list(rng.choice(WHOLE[program]))
    for flag in rng.sample(sorted(FLAGS[program]), min(len(FLAGS[program]), rng.randint(2, 5))):
        value = FLAGS[program][flag]
        arguments += [flag] if value is None else [flag, value]
    return Case(program, arguments)


def inputs(rng: random.Random, folder: Path) -> Case:
    """A file to read that is none, or has odd contents."""
    path = odd_path(rng, folder)
    flag = f"--input-file={path}"
    choices: list[tuple[str, list[str]]] = [
        ("generate", ["--model", rng.choice(MODELS[:2]), "--max-new-tokens", "2", flag]),
        ("generate", ["--checkpoint", rng.choice(RUNS), "--max-new-tokens", "2", flag]),
        ("embed", ["--model", "bert", flag, *rng.choice([[], ["--truncate"]])]),
        ("perplexity", ["--checkpoint", "runs/lm", f"--data={path}"]),
        ("train", [*LM, f"--data={path}", "--output", "new"]),
        ("train", [*LM, f"--validation={path}", "--output", "new"]),
        ("train", [*LM, f"--tokenizer={path}", "--output", "new"]),
        ("train", [*rng.choice([TRANSLATE, CLASSIFY]), f"--data={path}", "--output", "new"]),
        ("train", [*rng.choice([TRANSLATE, CLASSIFY]), f"--validation={path}", "--output", "new"]),
    ]
    return Case(*rng.choice(choices))


def jsonl(rng: random.Random, folder: Path) -> Case:
    """Lines of JSON that are none, a folder of texts with something else in it."""
    path = odd_jsonl(rng, folder)
    if rng.random() < 0.5:
        (folder / "texts").mkdir(exist_ok=True)
        odd = odd_path(rng, folder)
        (folder / "texts/a.txt").write_bytes(CONTENTS["text"])
        (folder / "texts/b.txt").unlink(missing_ok=True)
        (folder / "texts/b.txt").symlink_to(
            rng.choice([odd[:200] or "x", "/dev/zero", "/dev/null", "nowhere", "b.txt", "/"])
        )
        path = "texts"
    name = rng.choice(["text", "other", "", "a\nb", "\udcff"])
    if rng.random() < 0.5:
        return Case("perplexity", ["--checkpoint", "runs/lm", "--data", path, f"--field={name}"])
    return Case("train", [*LM, "--data", path, f"--field={name}", "--output", "new"])


def outputs(rng: random.Random, folder: Path) -> Case:
    """A place to write to that cannot be written to, or that must not be."""
    path = odd_path(rng, folder, reading=False)
    if rng.random() < 0.3:
        path = rng.choice(
            ["/proc/nowhere", "/sys/x", "/dev/full", "/proc/self/fd", "locked/out", "lines.txt", "runs/lm"]
        )
    if path.startswith("locked"):
        (folder / "locked").mkdir(exist_ok=True)
        (folder / "locked").chmod(stat.S_IRUSR | stat.S_IXUSR)
        subprocess.run(["chattr", "+i", str(folder / "locked")], capture_output=True)
    if path in ("/", ".."):
        path = "."
    choices: list[tuple[str, list[str]]] = [
        ("embed", ["--model", "bert", "--input-file", "lines.txt", f"--output={path}"]),
        (
            "export",
            ["--checkpoint", "runs/lm", "--", path] if path.startswith("-") else [path, "--checkpoint", "runs/lm"],
        ),
        ("visualize", ["--checkpoint", "runs/copy", f"--output={path}"]),
        ("train", [*rng.choice([COPY, LM]), f"--output={path}"]),
    ]
    return Case(*rng.choice(choices))


def damaged_runs(rng: random.Random, folder: Path) -> Case:
    """A run with a damaged file."""
    name = rng.choice(["copy", "lm"])
    run = folder / "damaged" / name
    shutil.copytree((folder / "runs" / name).resolve(), run)
    small = [path for path in sorted(run.glob("*.json*")) if rng.random() < 0.7 or path.name == "run.json"]
    path = rng.choice(small)
    about = damage_json(rng, path) if rng.random() < 0.7 and path.suffix == ".json" else damage_bytes(rng, path)
    if rng.random() < 0.1:
        shutil.rmtree(run / "checkpoints")
        about += ", no checkpoints"
    checkpoint = ["--checkpoint", f"damaged/{name}"]
    choices: list[tuple[str, list[str]]] = [
        ("generate", [*checkpoint, *(["--prompt", "The cat"] if name == "lm" else []), "--max-new-tokens", "2"]),
        ("visualize", [*checkpoint, "--output", "pictures"]),
        ("perplexity", [*checkpoint, "--data", "text.txt"]),
        ("export", ["exported", *checkpoint]),
        ("inspect", checkpoint),
        ("train", ["--task", name, "--output", f"damaged/{name}", rng.choice(["--resume", "--eval-only"])]),
    ]
    case = Case(*rng.choice(choices))
    case.about = about
    return case


def damaged_models(rng: random.Random, folder: Path) -> Case:
    """A checkpoint folder with a damaged file."""
    name = rng.choice(MODELS)
    model = folder / "damaged" / name
    shutil.copytree((folder / name).resolve(), model)
    path = rng.choice([model / "tokenizer.json", *sorted(model.glob("*.json"))])
    about = (damage_json if rng.random() < 0.7 else damage_bytes)(rng, path)
    choices: list[tuple[str, list[str]]] = [
        ("generate", ["--model", f"damaged/{name}", "--prompt", "abc", "--max-new-tokens", "2"]),
        ("embed", ["--model", f"damaged/{name}", "--input-file", "lines.txt"]),
        ("verify", [f"damaged/{name}", "--prompt", "abc"]),
    ]
    case = Case(*rng.choice(choices[:1] if name != "bert" and rng.random() < 0.5 else choices))
    case.about = about
    return case


def standard_input(rng: random.Random, folder: Path) -> Case:
    """Something odd on standard input."""
    path = rng.choice(["/dev/null", "/dev/zero", "/dev/full", *(f"{name}.txt" for name in CONTENTS)])
    if path.endswith(".txt"):
        (folder / path).write_bytes(CONTENTS[path.removesuffix(".txt")])
    choices: list[tuple[str, list[str]]] = [
        ("generate", ["--model", rng.choice(MODELS[:2]), "--max-new-tokens", "2", "--input-file", "-"]),
        ("generate", ["--model", rng.choice(MODELS[:2]), "--max-new-tokens", "2"]),
        ("generate", ["--checkpoint", rng.choice(RUNS), "--input-file", "-"]),
        ("generate", ["--checkpoint", rng.choice(RUNS)]),
        ("embed", ["--model", "bert", "--input-file", "-"]),
    ]
    return Case(*rng.choice(choices), stdin=path)


def prompts(rng: random.Random, folder: Path) -> Case:
    """Texts on the command line: empty, too long, of unknown characters, not UTF-8."""
    text = rng.choice(
        [
            "",
            " ",
            "abc",
            "abc" * 40,
            "\udce9",
            "a\udcff",
            "xyz",
            "\u00fc\u4e2d",
            "a\0b"[:1],
            "a\nb",
            "\x1b[1m",
            "<s>",
            "x" * 9999,
        ]
    )
    text = rng.choice([text, text, "1 2 3", "9", "-1", "1 " * 99, "\uff11", "\u0663", "1e1", "9" * 5000])
    flag = f"--prompt={text}"
    choices: list[tuple[str, list[str]]] = [
        ("generate", ["--model", rng.choice(MODELS), "--max-new-tokens", "2", flag]),
        ("generate", ["--model", "gpt2", flag, "--truncate"]),
        ("generate", ["--checkpoint", "runs/lm", "--max-new-tokens", "2", flag]),
        ("generate", ["--checkpoint", "runs/copy", f"--input={text}"]),
        ("verify", [rng.choice(MODELS), flag]),
        ("visualize", ["--checkpoint", rng.choice(RUNS), f"--input={text}"]),
    ]
    return Case(*rng.choice(choices))


def places(rng: random.Random, folder: Path) -> Case:
    """Folders of models and runs that are none."""
    path = odd_path(rng, folder)
    choices: list[tuple[str, list[str]]] = [
        ("generate", [f"--model={path}", "--prompt", "abc"]),
        ("generate", [f"--checkpoint={path}"]),
        ("embed", [f"--model={path}", "--input-file", "lines.txt"]),
        ("verify", ["--", path] if path.startswith("-") else [path]),
        ("inspect", [f"--checkpoint={path}"]),
        ("export", ["exported", f"--checkpoint={path}"]),
        ("perplexity", ["--data", "text.txt", f"--checkpoint={path}"]),
        ("visualize", [f"--checkpoint={path}"]),
        ("train", ["--task", rng.choice(["copy", "lm"]), "--resume", f"--output={path}"]),
    ]
    return Case(*rng.choice(choices))


def helps(rng: random.Random, folder: Path) -> Case:
    """A question for help, or no known program at all."""
    program = rng.choice(sorted(FLAGS))
    flag = rng.choice(["--help", "-h"])
    return rng.choice(
        [
            Case(program, [flag]),
            Case(program, [*rng.choice(WHOLE[program]), flag]),
            Case(program, [flag], stdout="/dev/full"),
            Case("train", ["--task", rng.choice(["copy", "lm", "sort"]), flag]),
            Case("module", [flag]),
            Case("module", [rng.choice([program, *VALUES]), *rng.choice([[], [flag]])]),
            Case("train", rng.choice([[], ["--task"], ["--task="], ["--task", rng.choice(VALUES)], ["copy"]])),
        ]
    )


def sizes(rng: random.Random, folder: Path) -> Case:
    """Numbers of any size for the program that only counts."""
    numbers = ["0", "-1", "1", "7", "64", "65", "100000", "2147483648", "1000000000000", "9" * 30, "9" * 400]
    flags = [
        f"{flag}={rng.choice(numbers)}" for flag in ("--batch", "--source-length", "--length") if rng.random() < 0.5
    ]
    return Case("inspect", [*rng.choice(WHOLE["inspect"]), *flags])


def full_outputs(rng: random.Random, folder: Path) -> Case:
    """Standard output is a full disk."""
    program = rng.choice(["generate", "inspect", "perplexity", "verify", "visualize", "embed", "export"])
    return Case(program, list(rng.choice(WHOLE[program])), stdout="/dev/full")


def processes(rng: random.Random, folder: Path) -> Case:
    """A process with streams closed, or in an unusual environment."""
    environments: Iterable[dict[str, str]] = (
        {"HOME": "/nowhere"},
        {"HOME": ""},
        {"XDG_CACHE_HOME": "/proc/nowhere", "JAX_COMPILATION_CACHE_DIR": ""},
        {"XDG_CACHE_HOME": "lines.txt", "JAX_COMPILATION_CACHE_DIR": ""},
        {"XDG_CACHE_HOME": "new-cache", "JAX_COMPILATION_CACHE_DIR": ""},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"COLUMNS": "20", "TERM": "dumb"},
    )
    name = rng.choice(["copy", "lm"])
    lines: list[tuple[str, list[str]]] = [
        (
            "generate",
            ["--model", "gpt2", "--prompt", rng.choice(["abc", "\u00e9", "a\udce9"]), "--max-new-tokens", "2"],
        ),
        ("generate", ["--checkpoint", "runs/lm", "--prompt", "The", "--max-new-tokens", "2"]),
        ("generate", ["--model", "gpt2", "--input-file", "-"]),
        ("inspect", rng.choice(WHOLE["inspect"])),
        ("perplexity", ["--data", "text.txt", "--checkpoint", "runs/lm"]),
        ("visualize", ["--checkpoint", f"runs/{name}", "--text", "--output", "pictures"]),
        ("module", rng.choice([["--help"], [], ["nothing"]])),
        ("train", ["--help"]),
        ("train", [*COPY, "--output", "new"]),
    ]
    case = Case(*rng.choice(lines), real=True)
    if rng.random() < 0.5:
        case.closed = rng.choice([(0,), (1,), (2,), (0, 1), (0, 1, 2)])
    else:
        case.environment = rng.choice(list(environments))
    return case


Kind = Callable[[random.Random, Path], Case]
KINDS: dict[Kind, int] = {
    wrong_values: 12, contradictions: 5, inputs: 8, jsonl: 3, outputs: 5, damaged_runs: 8, damaged_models: 6,
    standard_input: 4, prompts: 5, places: 4, helps: 4, sizes: 2, full_outputs: 2, processes: 3,
}  # fmt: skip
QUICK: list[Kind] = [wrong_values, helps, sizes, places]
