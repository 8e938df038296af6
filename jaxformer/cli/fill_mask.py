"""`jaxformer fill-mask`: what may stand in the place of every [MASK] of each line of a file."""

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
from jaxformer.pretrained.encoders import fill_mask


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """folder of a checkpoint of Hugging Face, or its id on the hub, with a head for masked tokens; RUN/model of
    --task mlm"""
    input_file: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """text file with a text per line, each with [MASK] once or more; - is standard input"""
    top_k: int = 5
    """tokens for each mask"""
    json: bool = False
    """print one JSON object per text"""


def main(argv: list[str]) -> None:
    """Print the tokens that may stand for the masks of the texts that the command line names."""
    arguments = terminal.parse(
        Arguments, argv, prog=command_line("fill-mask"), description="Tell which tokens may stand for each [MASK]."
    )
    lines = read_lines(arguments.input_file)
    lm = from_pretrained(checkpoint_in(arguments.model))
    texts, names = [text for _, text in lines], for_lines(lines)["name"]
    filled = fill_mask(lm.model, lm.tokenizer, texts, arguments.top_k, name=names)
    if not np.isfinite([share for masks in filled for mask in masks for _, share in mask]).all():
        raise InputError(f"{arguments.model} gives a token no finite probability: its weights are damaged")
    for text, masks in zip(texts, filled, strict=True):
        if arguments.json:
            found = [[{"token": token, "probability": round(share, 4)} for token, share in mask] for mask in masks]
            print(json.dumps({"text": text, "masks": found}, ensure_ascii=False))
        else:
            print(" | ".join(", ".join(f"{token} {share:.4f}" for token, share in mask) for mask in masks))
