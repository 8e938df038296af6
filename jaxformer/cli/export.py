"""`jaxformer export`: a language model as a folder that transformers opens, of the family that was asked for."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in, find_run
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.pretrained import Pretrained, as_pretrained, from_pretrained, save_pretrained

LONGEST = 2**20  # tokens, of a checkpoint whose settings do not say for how many it was made


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    folder: tyro.conf.Positional[Path]
    """folder to write"""
    family: Annotated[str | None, optional("NAME")] = None
    """family to write it as, for example llama (default: the first one that has its shape)"""
    model: Annotated[str | None, optional("FOLDER")] = None
    """a checkpoint folder of Hugging Face, a hub id, or an adapter, which is added to its base, in place of a run"""
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
        description="Write a language model as a checkpoint of the Hugging Face family whose shape it has: "
        "GPT-2, Llama, Qwen3, DeepSeek-V3 and others.",
    )
    if arguments.folder.exists() and (arguments.folder.is_file() or any(arguments.folder.iterdir())):
        raise InputError(f"{arguments.folder} is there already: give a folder that is not")
    lm = checkpoint(arguments) if arguments.model is not None else trained(arguments)
    try:
        save_pretrained(lm, arguments.folder)
    except OSError as error:
        raise InputError(f"cannot write {arguments.folder} ({error.strerror}): give another folder") from None
    kind = lm.settings["architectures"][0]
    print(f"{arguments.folder}: {kind}, for transformers and jaxformer.from_pretrained")


def checkpoint(arguments: Arguments) -> Pretrained:
    """Return the checkpoint of Hugging Face that the command line names, in the family that it asks for."""
    if arguments.checkpoint or arguments.task:
        raise InputError("--model is no run: leave --checkpoint and --task out")
    lm = from_pretrained(checkpoint_in(arguments.model or ""))
    if arguments.family is None:
        return lm
    longest = lm.context or LONGEST
    written = as_pretrained(lm.model, lm.tokenizer, lm.generation, family=arguments.family, longest=longest)
    return dataclasses.replace(written, files=lm.files)


def trained(arguments: Arguments) -> Pretrained:
    """Return the language model that was trained here, in the family that the command line asks for."""
    run = find_run(arguments.checkpoint, arguments.task, able=lambda task: hasattr(task, "as_pretrained"))
    write = getattr(run.task, "as_pretrained", None)
    if write is None:
        raise InputError(
            f"{run.folder} is no language model: only these have the shape of a family that can be written"
        )
    return write(run.model, arguments.family)
