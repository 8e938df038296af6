"""Files of questions about texts that have the answers, as SQuAD has them."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.rows import filled, json_object, settled
from jaxformer.errors import InputError
from jaxformer.schema import is_integer, shown


class Question(NamedTuple):
    """A question about a text.

    Attributes:
        question: The question.
        context: The text.
        answers: Parts of the text, any of which is right.
        start: Place of the first character of the first answer in the text.
    """

    question: str
    context: str
    answers: tuple[str, ...]
    start: int


def read_questions(path: Path, *, skip_bad: bool = False, say: Callable[[str], None] | None = None) -> list[Question]:
    """Return the questions in a .jsonl file.

    A line is an object with question, context and answers, which is {"text": [...], "answer_start": [...]}, a list of
    {"text": ..., "answer_start": ...}, or a list of texts; without answer_start the first place of the text is meant.

    Args:
        path: The file.
        skip_bad: Whether to go on without the lines that are no question with an answer in its text.
        say: Receives a line for people about what is skipped.

    Raises:
        InputError: The file cannot be read, has no such line, or has another one.
    """
    return settled(path, question_row, skip_bad=skip_bad, say=say)


def question_row(line: str) -> Question:
    """Return the question in a line of JSON. Raises InputError for a line without one, or without an answer."""
    row = json_object(line)
    if missing := [key for key in ("question", "context", "answers") if key not in row]:
        raise InputError(f"no {missing[0]}")
    question, context = filled(row["question"]), row["context"]
    filled(context)  # as it is: places count its characters
    texts, starts = answers_in(row["answers"])
    if not texts:
        raise InputError("no answer: questions without one are not learned")
    start = context.find(texts[0]) if starts[0] is None else starts[0]
    if start < 0 or context[start : start + len(texts[0])] != texts[0]:
        raise InputError(f"the answer {shown(texts[0])} is not in the context" + ("" if start < 0 else f" at {start}"))
    return Question(question, context, tuple(texts), start)


def answers_in(answers: Any) -> tuple[list[str], list[int | None]]:
    """Return the texts of answers and their places, None where none is given."""
    if isinstance(answers, dict):
        given, places = answers.get("text"), answers.get("answer_start")
        given = given if isinstance(given, list) else [given]
        places = places if isinstance(places, list) else [places] * len(given)
        if len(given) != len(places):
            raise InputError(f"{len(given)} answers, but {len(places)} answer_start")
        answers = [{"text": text, "answer_start": place} for text, place in zip(given, places, strict=True)]
    if not isinstance(answers, list):
        raise InputError("answers must be a list, or an object of text and answer_start")
    pairs = [
        (each.get("text"), each.get("answer_start")) if isinstance(each, dict) else (each, None) for each in answers
    ]
    texts: list[str] = []
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"the answer {shown(text)} is no text")
        if start is not None and not (is_integer(start) and start >= 0):
            raise InputError(f"answer_start={shown(start)} is no place")
        texts.append(text)
    return texts, [start for _, start in pairs]


def plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and articles, as SQuAD compares them."""
    kept = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def agreement(found: str, answers: Sequence[str]) -> tuple[bool, float]:
    """Return whether an answer is one of the right ones, and the F1 of its words against the nearest of them."""
    ours, best = plain_words(found), 0.0
    for answer in answers:
        theirs = plain_words(answer)
        common = sum((Counter(ours) & Counter(theirs)).values())
        same = 1.0 if ours == theirs else 0.0
        best = max(best, same, 2 * common / max(len(ours) + len(theirs), 1))
    return any(ours == plain_words(answer) for answer in answers), best
