"""`jaxformer tag`: the entities in each line of a file, from a checkpoint with a classifier of tokens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxformer.cli import terminal
from jaxformer.cli.embed import for_lines
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in
from jaxformer.cli.streams import read_lines
from jaxformer.errors import InputError
from jaxformer.pretrained import from_pretrained


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """folder of a checkpoint of Hugging Face, or its id on the hub, with a classifier of tokens"""
    input_file: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """text file with a text per line; - is standard input"""
    truncate: bool = False
    """cut texts that are longer than the model's positions, instead of refusing them"""
    json: bool = False
    """print one JSON object per text, with the score and the place of each entity"""


def main(argv: list[str]) -> None:
    """Print the entities of the texts that the command line names."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("tag"),
        description="List the entities in each line of a file: a line for each, with tabs between them.",
    )
    lines = read_lines(arguments.input_file)
    lm = from_pretrained(checkpoint_in(arguments.model))
    found = lm.tag([text for _, text in lines], truncate=arguments.truncate, **for_lines(lines))
    if not np.isfinite([entity.score for entities in found for entity in entities]).all():
        raise InputError(f"{arguments.model} gives an entity no finite score: its weights are damaged")
    for (_, text), entities in zip(lines, found, strict=True):
        if arguments.json:
            listed = [entity._asdict() | {"score": round(entity.score, 4)} for entity in entities]
            print(json.dumps({"text": text, "entities": listed}, ensure_ascii=False))
        else:
            print("\t".join(f"{entity.label}: {entity.text}" for entity in entities))
