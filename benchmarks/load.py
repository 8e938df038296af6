"""Opening a checkpoint of 124 million parameters, beside reading its bytes and beside transformers."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import torch
import tyro
from common import compare, prepare, race, report
from transformers import GPT2Config, GPT2LMHeadModel

from jaxformer.pretrained import from_pretrained


@dataclass(frozen=True)
class Arguments:
    """Measure how long a checkpoint takes to open."""

    rounds: int = 7
    """how often each takes its turn"""
    quick: bool = False
    """a tiny model, nothing written"""


def main(arguments: Arguments) -> None:
    """Race, print, and write the table."""
    prepare()
    shape: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2} if arguments.quick else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        GPT2LMHeadModel(GPT2Config(**shape)).save_pretrained(folder)

        def ours() -> None:
            jax.block_until_ready(from_pretrained(folder).model)

        rivals = {
            "jaxformer": ours,
            "reading the bytes of the file": (folder / "model.safetensors").read_bytes,
            "transformers": lambda: GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32),
        }
        rows = compare("GPT-2, 124 M parameters in float32, 498 MB", race(rivals, arguments.rounds))
    method = (
        "Time of the other / time of `from_pretrained`: the median of interleaved rounds. The file is in the system's "
        "cache. What transformers returns is mapped, and read when it is first used."
    )
    report("Opening a checkpoint", None if arguments.quick else Path("docs/benchmarks/load.md"), rows, method)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
