"""The inputs of generate.py: from the command line, a file or a pipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxformer.cli.streams import STANDARD_INPUT, is_piped, read_lines
from jaxformer.cli.terminal import argument_text
from jaxformer.schema import located
from jaxformer.tasks import Task


@dataclass(frozen=True)
class Prompts:
    """The texts to read, given or in a file; none of either is a pipe on standard input, or else nothing.

    Attributes:
        given: Texts from the command line.
        file: A text in each line; "-" is standard input.
        truncate: Of what is too long, read the end.
    """

    given: tuple[str, ...]
    file: Path | None
    truncate: bool

    def read(self) -> list[str]:
        """Return the texts, none where there is no source of any. Raises InputError for what is no text."""
        return [text for _, text in numbered(self.given, self.file, piped=True)]


def numbered(given: Sequence[str], file: Path | None, *, piped: bool) -> list[tuple[int, str]]:
    """Return texts, each with the number of its line; those from the command line have none, which is 0.

    Args:
        given: Texts from the command line.
        file: Read where nothing is given; "-" is standard input.
        piped: Whether a pipe is read where there is neither.
    """
    if given:
        return [(0, argument_text("--prompt", text)) for text in given]
    if file is not None:
        return read_lines(file)
    return read_lines(STANDARD_INPUT, least=0) if piped and is_piped() else []


def read_inputs(task: Task, given: Sequence[str], file: Path | None) -> list[str]:
    """Return inputs for a task, its own examples where there are none. Raises InputError for one that it cannot read.

    Args:
        task: Encodes them.
        given: Inputs from the command line.
        file: An input in each line; "-" is standard input.
    """
    inputs = numbered(given, file, piped=task.reads.piped)
    for number, text in inputs:
        if number:
            with located(f"line {number}"):
                task.encode(text)
    return [text for _, text in inputs] or task.example_inputs()
