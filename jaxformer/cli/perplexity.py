"""`jaxformer perplexity`: how well a language model predicts a text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.language import measure, read_text
from jaxformer.cli.runs import newest_finished, open_run
from jaxformer.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    data: Annotated[Path, tyro.conf.arg(metavar="PATH")]
    """text file, folder of text files, or .jsonl"""
    checkpoint: Annotated[Path | None, terminal.optional("RUN")] = None
    """folder of the run (default: the language model below runs/ that was finished last)"""
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
    run = open_run(arguments.checkpoint or newest_finished(task_name="lm"))
    if run.task_name != "lm":
        raise InputError(f"{run.folder} was trained on the task {run.task_name!r}: give a language model")
    text = read_text(str(arguments.data), arguments.data, run.task, arguments.field)
    found = measure(run.model, text, run.settings)
    print(f"{arguments.data}, read by {run.folder} in windows of {run.settings.model.length} tokens")
    print("\n".join(found.table()))
