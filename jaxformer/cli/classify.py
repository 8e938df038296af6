"""`jaxformer classify`: the label, the labels or the score of each line of a file, from a checkpoint."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from jaxformer.cli import terminal
from jaxformer.cli.embed import for_lines
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in
from jaxformer.cli.streams import read_lines
from jaxformer.errors import InputError
from jaxformer.pretrained import from_pretrained
from jaxformer.pretrained.scores import LIKELY, Kind
from jaxformer.pretrained.tokens import Text


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """folder of a checkpoint of Hugging Face, or its id on the hub, with a classifier; RUN/model of --task classify"""
    input_file: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """text file with a text per line; - is standard input"""
    pairs: bool = False
    """each line has two texts with a tab between them, as rerankers and models of inference want"""
    truncate: bool = False
    """cut texts that are longer than the model's positions, instead of refusing them"""
    json: bool = False
    """print one JSON object per text, with the probability of every label"""


def main(argv: list[str]) -> None:
    """Print the labels of the texts that the command line names."""
    arguments = terminal.parse(
        Arguments, argv, prog=command_line("classify"), description="Tell which label each line of a file has."
    )
    lines = read_lines(arguments.input_file)
    texts: list[Text] = [pair_of(*line) for line in lines] if arguments.pairs else [text for _, text in lines]
    lm = from_pretrained(checkpoint_in(arguments.model))
    found = lm.label_shares(texts, truncate=arguments.truncate, **for_lines(lines))
    if not np.isfinite(found).all():
        raise InputError(f"{arguments.model} gives a text no finite probabilities: its weights are damaged")
    for (_, text), row in zip(lines, found, strict=True):
        answer = described(lm.labels, row, lm.kind_of_scores)
        print(json.dumps({"text": text} | answer, ensure_ascii=False) if arguments.json else line_of(answer))


def pair_of(number: int, line: str) -> tuple[str, str]:
    """Return the two texts of a line. Raises InputError for any other number of texts."""
    parts = line.split("\t")
    if len(parts) != 2:
        raise InputError(f"line {number} has {len(parts)} parts: with --pairs, give two with a tab between them")
    return parts[0], parts[1]


def described(labels: list[str], row: np.ndarray, kind: Kind) -> dict[str, Any]:
    """Return what there is to tell of a text: its label or its labels, with all probabilities, or its score.

    Args:
        labels: The labels.
        row: Their probabilities or scores.
        kind: Whether one label is right, each may be, or labels are numbers.
    """
    order = np.argsort(-row, kind="stable")
    shares = {labels[place]: round(float(row[place]), 4) for place in order}
    if len(labels) == 1:
        return {"score": shares[labels[0]]}
    if kind == "score":
        return {"scores": shares}
    if kind == "each":
        return {"label": [labels[place] for place in order if row[place] > LIKELY], "labels": shares}
    return {"label": labels[order[0]], "labels": shares}


def line_of(answer: dict[str, Any]) -> str:
    """Return a line of what `described` returns: labels with commas between them, or scores."""
    if "label" in answer:
        return answer["label"] if isinstance(answer["label"], str) else ", ".join(answer["label"])
    if "score" in answer:
        return f"{answer['score']:.4f}"
    return ", ".join(f"{label} {score:.4f}" for label, score in answer["scores"].items())
