"""`jaxformer export`: a language model that was trained here, as a folder that transformers opens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import find_run
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.pretrained import save_pretrained


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    folder: tyro.conf.Positional[Path]
    """folder to write"""
    family: Annotated[str | None, optional("NAME")] = None
    """family to write it as, for example llama (default: the first one that has its shape)"""
    checkpoint: Annotated[Path | None, optional("RUN")] = None
    """folder of the run (default: the language model that was finished last)"""
    task: Annotated[str | None, optional("NAME")] = None
    """task of the run; needed for a task of your own, FILE.py:CLASS"""


def main(argv: list[str]) -> None:
    """Write the folder that the command line names."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("export"),
        description="Write a trained language model as a checkpoint of the Hugging Face family whose shape it has: "
        "GPT-2, Llama, Qwen3, DeepSeek-V3 and others.",
    )
    if arguments.folder.exists() and (arguments.folder.is_file() or any(arguments.folder.iterdir())):
        raise InputError(f"{arguments.folder} is there already: give a folder that is not")
    run = find_run(arguments.checkpoint, arguments.task, able=lambda task: hasattr(task, "as_pretrained"))
    as_pretrained = getattr(run.task, "as_pretrained", None)
    if as_pretrained is None:
        raise InputError(
            f"{run.folder} is no language model: only these have the shape of a family that can be written"
        )
    lm = as_pretrained(run.model, arguments.family)
    try:
        save_pretrained(lm, arguments.folder)
    except OSError as error:
        raise InputError(f"cannot write {arguments.folder} ({error.strerror}): give another folder") from None
    kind = lm.settings["architectures"][0]
    print(f"{arguments.folder}: {kind}, for AutoModelForCausalLM.from_pretrained and jaxformer.from_pretrained")
