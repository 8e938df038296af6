"""`jaxformer answer`: the part of a text that answers a question, from a checkpoint with a head for answers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in
from jaxformer.cli.streams import STANDARD_INPUT, opened, read_lines
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.pretrained import from_pretrained
from jaxformer.schema import located, parse_json, shown


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """folder of a checkpoint of Hugging Face, or its id on the hub, with a head for answers"""
    question: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """a question; may be given several times"""
    context: Annotated[Path | None, optional("FILE")] = None
    """text file that has the answers; - is standard input"""
    input_file: Annotated[Path | None, optional("FILE")] = None
    """a question per line about --context; without that, an object of JSON per line with question and context; - is
    standard input"""
    max_answer_len: int = 15
    """the most tokens of an answer"""
    top_k: int = 1
    """answers to each question, each in a line"""
    json: bool = False
    """print one JSON object per answer, with its score and place"""


def main(argv: list[str]) -> None:
    """Print the answers to the questions that the command line names."""
    arguments = terminal.parse(
        Arguments, argv, prog=command_line("answer"), description="Answer questions with parts of a text."
    )
    pairs, names = questions_of(arguments)
    lm = from_pretrained(checkpoint_in(arguments.model))
    found = lm.answers(pairs, top_k=arguments.top_k, max_answer_len=arguments.max_answer_len, name=names.__getitem__)
    if not np.isfinite([answer.score for answers in found for answer in answers]).all():
        raise InputError(f"{arguments.model} gives an answer no finite score: its weights are damaged")
    for (question, _), answers in zip(pairs, found, strict=True):
        for answer in answers:
            if arguments.json:
                about = answer._asdict() | {"score": round(answer.score, 4)}
                print(json.dumps({"question": question} | about, ensure_ascii=False))
            else:
                print(f"{' '.join(answer.text.split())}\t{answer.score:.4f}")


def questions_of(arguments: Arguments) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the questions with their texts, and what to call each in messages. Raises InputError for none."""
    if bool(arguments.question) == (arguments.input_file is not None):
        raise InputError("give --question, or --input-file with questions")
    if arguments.context is not None and arguments.context == arguments.input_file == STANDARD_INPUT:
        raise InputError("questions and text cannot both come from standard input: give a file for one of them")
    if arguments.context is None and arguments.input_file is None:
        raise InputError("--question needs the text that it is about: give --context FILE")
    text = None if arguments.context is None else whole_text(arguments.context)
    if arguments.input_file is None:
        assert text is not None, "checked above"
        given = [terminal.argument_text("--question", question) for question in arguments.question]
        return [(question, text) for question in given], [f"--question {shown(question)}" for question in given]
    lines = read_lines(arguments.input_file)
    names = [f"line {number}" for number, _ in lines]
    pairs = [
        (line, text) if text is not None else pair_in(line, name) for (_, line), name in zip(lines, names, strict=True)
    ]
    return pairs, names


def pair_in(line: str, name: str) -> tuple[str, str]:
    """Return the question and the text in a line of JSON. Raises InputError where it has none."""
    with located(name):
        row = parse_json(line)
        question, context = row.get("question"), row.get("context")
        if not (isinstance(question, str) and isinstance(context, str)):
            raise InputError('must have "question" and "context", two texts; or give --context FILE')
        return question, context


def whole_text(file: Path) -> str:
    """Return all of a text file. Raises InputError where it is no text in UTF-8."""
    name = "standard input" if file == STANDARD_INPUT else str(file)
    try:
        with opened(file, name) as text:
            return text.read()
    except UnicodeDecodeError:
        raise InputError(f"{name} is not text in UTF-8") from None
