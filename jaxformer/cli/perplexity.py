"""`jaxformer perplexity`: how well a language model predicts a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in, find_run
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.pretrained import from_pretrained
from jaxformer.tasks.language import measure_checkpoint


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    data: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """text file, folder of text files, or .jsonl"""
    model: Annotated[str | None, optional("FOLDER")] = None
    """a checkpoint folder of Hugging Face, or a hub id, with a decoder-only language model, in place of a run"""
    checkpoint: Annotated[Path | None, optional("RUN")] = None
    """folder of the run (default: the language model below runs/ that was finished last)"""
    task: Annotated[str | None, optional("NAME")] = None
    """task of the run; needed for a task of your own, FILE.py:CLASS"""
    field: str = "text"
    """where a line of a .jsonl file has its text"""


def main(argv: list[str]) -> None:
    """Print the loss, the perplexity and the bits per byte of the text that the command line names."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("perplexity"),
        description="Measure how well a language model predicts a text.",
    )
    if arguments.model is not None:
        if arguments.checkpoint or arguments.task:
            raise InputError("--model is no run: leave --checkpoint and --task out")
        lm = from_pretrained(checkpoint_in(arguments.model))
        found, context = measure_checkpoint(lm, arguments.data, arguments.field)
        print(f"{arguments.data}, read by {arguments.model} in windows of {context} tokens")
        print("\n".join(found.table()))
        return
    run = find_run(arguments.checkpoint, arguments.task, able=lambda task: hasattr(task, "measure"))
    measure = getattr(run.task, "measure", None)
    if measure is None:
        raise InputError(f"{run.folder} was trained on the task {run.task.name!r}: give a language model")
    found = measure(run.model, arguments.data, arguments.field)
    print(f"{arguments.data}, read by {run.folder} in windows of {run.task.row_tokens} tokens")
    print("\n".join(found.table()))
