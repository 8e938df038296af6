"""`jaxformer classify`: the label of each line of a file, from the checkpoint of an encoder with a classifier."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxformer.cli import terminal
from jaxformer.cli.embed import rows_of_lines
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in
from jaxformer.cli.streams import read_lines
from jaxformer.errors import InputError
from jaxformer.pretrained import from_pretrained
from jaxformer.pretrained.encoders import classify


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """folder of a checkpoint of Hugging Face, or its id on the hub, with a classifier; RUN/model of --task classify"""
    input_file: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """text file with a text per line; - is standard input"""
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
    lm = from_pretrained(checkpoint_in(arguments.model))
    labels, found = lm.labels, classify(lm.model, rows_of_lines(lm, lines, truncate=arguments.truncate))
    if not np.isfinite(found).all():
        raise InputError(f"{arguments.model} gives a text no finite probabilities: its weights are damaged")
    for (_, text), row in zip(lines, found, strict=True):
        if arguments.json:
            shares = {labels[place]: round(float(row[place]), 4) for place in np.argsort(-row, kind="stable")}
            print(json.dumps({"text": text, "label": labels[row.argmax()], "labels": shares}, ensure_ascii=False))
        else:
            print(labels[row.argmax()])
