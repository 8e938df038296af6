"""`python generate.py`: what a trained model says to held-out inputs, or to yours."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxformer.data import PAD, held_out
from jaxformer.decode import GenerationConfig, generate
from jaxformer.errors import InputError
from jaxformer.programs import terminal
from jaxformer.programs.runs import Run, open_run

SHOWN = 8  # held-out inputs decoded when none are given
BATCH = 64


@dataclass(frozen=True)
class Arguments:
    """What the command line says; a setting that is None keeps the model's own."""

    beam: int = 1
    """beam search with so many beams; 1 decodes greedily"""
    greedy: bool = False
    """the most likely token at every step (so it is unless other flags say otherwise)"""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """sample, from logits divided by this; 0 is greedy"""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """sample among the k most likely tokens only"""
    top_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """sample among the smallest set of tokens that has this probability"""
    seed: int = 0
    """seed of the samples"""
    n_best: int = 1
    """how many sequences to print for each input"""
    length_penalty: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """beam scores are divided by length to this power"""
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """the most tokens to generate"""
    input: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """decode this, for example "3 1 4 1 5" """
    input_file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """decode every line of this file; - reads standard input"""
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """folder of the run (default: the one below runs/ that was finished last)"""
    json: bool = False
    """print one JSON object per sequence"""


@dataclass(frozen=True)
class Hypothesis:
    """One decoded sequence. right: whether it is the task's answer to the source."""

    source: str
    hypothesis: str
    score: float
    right: bool


def main() -> None:
    """Entry point of generate.py."""
    terminal.run(lambda: decode_inputs(sys.argv[1:]))


def decode_inputs(argv: list[str]) -> None:
    """Decode as the command line says."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog="generate.py",
        description="Decode with a trained model: greedily, by beam search (--beam 4), or sampling (--temperature 1).",
    )
    settings = generation_settings(arguments)
    run = open_run(arguments.checkpoint)
    config = run.generation.replace(**settings)
    sources = read_sources(run, arguments)
    if not arguments.json:
        print(f"{run.folder}: {run.task_name}, {search_name(config)}", file=sys.stderr)
    start, lines = time.perf_counter(), []
    for hypothesis in hypotheses(run, sources, config):
        lines.append(hypothesis)
        print(json.dumps(vars(hypothesis)) if arguments.json else describe(hypothesis), flush=True)
    if not arguments.json:
        best = lines[:: config.num_return_sequences]
        right = sum(line.right for line in best)
        print(f"{right} of {len(best)} right, {time.perf_counter() - start:.1f} s", file=sys.stderr)


def generation_settings(arguments: Arguments) -> dict[str, Any]:
    """The settings that the flags stand for. Raises InputError for flags that contradict each other."""
    sampling = [name for name in ("temperature", "top_k", "top_p") if getattr(arguments, name) is not None]
    if arguments.greedy and (sampling or arguments.beam != 1):
        raise InputError("--greedy excludes --beam, --temperature, --top-k and --top-p: leave one of them out")
    if arguments.length_penalty is not None and arguments.beam == 1:
        raise InputError("--length-penalty weighs beams: give --beam too")
    if arguments.n_best > max(arguments.beam, 1) and (not sampling or arguments.beam > 1):
        raise InputError(f"--n-best {arguments.n_best} needs --beam {arguments.n_best}, or sampling without beams")
    if arguments.input is not None and arguments.input_file is not None:
        raise InputError("--input and --input-file exclude each other: give one")
    given = {name: getattr(arguments, name) for name in (*sampling, "length_penalty", "max_new_tokens")}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings |= {"num_beams": arguments.beam, "do_sample": bool(sampling)}
    settings |= {"num_return_sequences": arguments.n_best, "seed": arguments.seed}
    GenerationConfig().replace(**settings)  # wrong values are told before a model is loaded
    return settings


def read_sources(run: Run, arguments: Arguments) -> list[np.ndarray]:
    """The inputs to decode: the user's, or a few held-out ones."""
    text = run.task.text
    if arguments.input is not None:
        return [text.read(arguments.input)]
    if arguments.input_file is None:
        batch = held_out(run.task, SHOWN, run.settings.seed)
        return [row[row != PAD] for row in batch["source"]]
    if str(arguments.input_file) == "-":
        lines = sys.stdin.read().splitlines()
    else:
        try:
            lines = arguments.input_file.read_text().splitlines()
        except UnicodeDecodeError:
            raise InputError(f"{arguments.input_file} is not a text file") from None
    sources = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                sources.append(text.read(line))
            except InputError as error:
                raise InputError(f"line {number}: {error}") from None
    if not sources:
        raise InputError(f"{arguments.input_file} holds no input: write one sequence per line")
    return sources


def hypotheses(run: Run, sources: Sequence[np.ndarray], config: GenerationConfig) -> Iterator[Hypothesis]:
    """Every source's sequences, best first, in the order of the sources.

    Batches have one size, the last filled up, so that one compiled program does for all.
    """
    size, copies = min(BATCH, len(sources)), config.num_return_sequences
    for first in range(0, len(sources), size):
        rows = sources[first : first + size]
        batch = np.full((size, run.task.text.max_length), PAD, np.int32)
        for index in range(size):
            row = rows[min(index, len(rows) - 1)]
            batch[index, : len(row)] = row
        generated = generate(run.model, batch, config, inputs_mask=batch != PAD)
        for index, source in enumerate(rows):
            answer = run.task.text.show(run.task.answer(source))
            for copy in range(index * copies, (index + 1) * copies):
                said = run.task.text.show(generated.sequences[copy])
                score = round(float(generated.scores[copy]), 4)
                yield Hypothesis(run.task.text.show(source), said, score, said == answer)


def describe(line: Hypothesis) -> str:
    """A hypothesis for reading."""
    return f"  {line.source}\n  -> {line.hypothesis}    score {line.score:.4f}, {'right' if line.right else 'WRONG'}"


def search_name(config: GenerationConfig) -> str:
    """How the settings search, in words."""
    search = f"beam search with {config.num_beams} beams" if config.num_beams > 1 else "one sequence at a time"
    if config.do_sample:
        return f"sampling at temperature {config.temperature}, {search}"
    return search if config.num_beams > 1 else "greedy"
