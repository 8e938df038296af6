"""What a model trained on sequences of symbols answers to its inputs."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxformer.cli.kind import Run
from jaxformer.cli.streams import note, read_lines
from jaxformer.cli.terminal import search_name
from jaxformer.data import PAD, held_out
from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig, generate

SHOWN = 8  # held-out inputs decoded when none are given
BATCH = 64


@dataclass(frozen=True)
class Hypothesis:
    """One decoded sequence. right: whether it is the task's answer to the source."""

    source: str
    hypothesis: str
    score: float
    right: bool


def answer_inputs(run: Run, config: GenerationConfig, *, given: str | None, file: Path | None, as_json: bool) -> None:
    """Print what the model answers to the input given, to every line of a file, or to a few held-out inputs."""
    sources = read_sources(run, given, file)
    if not as_json:
        note(f"{run.folder}: {run.task_name}, {search_name(config)}")
    start, lines = time.perf_counter(), []
    for hypothesis in hypotheses(run, sources, config):
        lines.append(hypothesis)
        print(json.dumps(vars(hypothesis)) if as_json else describe(hypothesis), flush=True)
    if not as_json:
        best = lines[:: config.num_return_sequences]
        right = sum(line.right for line in best)
        print(f"{right} of {len(best)} right, {time.perf_counter() - start:.1f} s", file=sys.stderr)


def read_sources(run: Run, given: str | None, file: Path | None) -> list[np.ndarray]:
    """The inputs to decode: the user's, or a few held-out ones."""
    text = run.task.text
    if given is not None:
        return [text.read(given)]
    if file is None:
        batch = held_out(run.task, SHOWN, run.settings.seed)
        return [row[row != PAD] for row in batch["source"]]
    sources = []
    for number, line in read_lines(file):
        try:
            sources.append(text.read(line))
        except InputError as error:
            raise InputError(f"line {number}: {error}") from None
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
                score = round(float(generated.sequences_scores[copy]), 4)
                yield Hypothesis(run.task.text.show(source), said, score, said == answer)


def describe(line: Hypothesis) -> str:
    """A hypothesis for reading."""
    return f"  {line.source}\n  -> {line.hypothesis}    score {line.score:.4f}, {'right' if line.right else 'WRONG'}"
