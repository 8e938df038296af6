"""Files of examples with a source and a target: tab-separated lines, or lines of JSON."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from jaxformer.data.text import reading
from jaxformer.data.tokenizer import check_text
from jaxformer.errors import InputError, shortened
from jaxformer.schema import shown

T = TypeVar("T")
RowReader = Callable[..., list[tuple[str, str]]]  # (path, skip_bad=False, say=None) -> rows
SHOWN = 5  # bad lines that a message names
PAIRS = (("source", "target"), ("prompt", "completion"), ("input", "output"))  # keys of a line of JSON
LABELS = (("text", "label"), ("sentence", "label"))


def read_pairs(
    path: Path, *, skip_bad: bool = False, say: Callable[[str], None] | None = None
) -> list[tuple[str, str]]:
    """Return the pairs of a source and a target in a file, without empty lines.

    A line of a .jsonl file is an object with the keys source and target, prompt and completion, or input and output; or
    with "translation", an object of two texts. Lines of other files are two texts with a tab between them.

    Args:
        path: The file.
        skip_bad: Whether to go on without the lines that are no pair.
        say: Receives a line for people about what is skipped.

    Raises:
        InputError: The file cannot be read, has no pair, or has a line that is none.
    """
    return read_rows(path, PAIRS, skip_bad=skip_bad, say=say)


def read_labelled(
    path: Path, *, skip_bad: bool = False, say: Callable[[str], None] | None = None
) -> list[tuple[str, str]]:
    """Return the texts in a file and their labels.

    A line of a .jsonl file is an object with the keys text (or sentence) and label. Lines of other files are a text and
    a label with a tab between them.

    Args:
        path: The file.
        skip_bad: Whether to go on without the lines that are no text with a label.
        say: Receives a line for people about what is skipped.

    Raises:
        InputError: The file cannot be read, has no such line, or has another one.
    """
    return read_rows(path, LABELS, skip_bad=skip_bad, say=say)


def read_tagged(
    path: Path, *, skip_bad: bool = False, say: Callable[[str], None] | None = None
) -> list[tuple[str, str]]:
    """Return the texts in a file and the tags of their words, both with single spaces between words and between tags.

    A line of the .jsonl file is an object with two lists of one length: tokens (or words) and tags.

    Args:
        path: The file.
        skip_bad: Whether to go on without the lines that are no words with tags.
        say: Receives a line for people about what is skipped.

    Raises:
        InputError: The file cannot be read, has no such line, or has another one.
    """
    return settled(path, tagged_row, skip_bad=skip_bad, say=say)


def tagged_row(line: str) -> tuple[str, str]:
    """Return the words and the tags of a line of JSON. Raises InputError for a line without them."""
    row = json_object(line)
    name = next((name for name in ("tokens", "words") if name in row), None)
    if name is None or "tags" not in row:
        raise InputError("no tokens and tags")
    words, tags = row[name], row["tags"]
    if not (isinstance(words, list) and isinstance(tags, list) and words):
        raise InputError(f"{name} and tags must be lists that are not empty")
    if len(words) != len(tags):
        raise InputError(f"{len(words)} {name}, but {len(tags)} tags")
    sides = [[filled(part) for part in side] for side in (words, tags)]
    for part in (part for side in sides for part in side):
        if len(part.split()) != 1:
            raise InputError(f"{shown(part)} has a space inside: divide it")
    return " ".join(sides[0]), " ".join(sides[1])


def read_rows(
    path: Path, keys: tuple[tuple[str, str], ...], *, skip_bad: bool, say: Callable[[str], None] | None
) -> list[tuple[str, str]]:
    """Return the rows of a file, each of two texts. See `read_pairs`."""
    as_json = path.suffix == ".jsonl"
    rows, bad = parsed(path, lambda line: json_row(line, keys) if as_json else tabbed_row(line))
    if rows and not as_json and is_heading(rows[0][1], keys):
        if say is not None:
            say(f"{path}, line {rows[0][0]}: a line of headings, left out")
        rows = rows[1:]
    settle(path, len(rows), bad, skip_bad=skip_bad, say=say)
    return [row for _, row in rows]


def is_heading(row: tuple[str, str], keys: tuple[tuple[str, str], ...]) -> bool:
    """Return whether the first row of a file names its columns, as lines of JSON name them."""
    return tuple(name.strip().lower() for name in row) in keys


def parsed(path: Path, parse: Callable[[str], T]) -> tuple[list[tuple[int, T]], list[tuple[int, str]]]:
    """Return what the lines of a file hold, and what is wrong with those that cannot be read, with their numbers."""
    rows, bad = [], []
    for number, line in lines_of(path):
        try:
            rows.append((number, parse(line)))
        except InputError as error:
            bad.append((number, str(error)))
    return rows, bad


def settled(
    path: Path, parse: Callable[[str], T], *, skip_bad: bool, say: Callable[[str], None] | None = None
) -> list[T]:
    """Return what `parse` makes of the lines of a file; `settle` says what happens to bad ones."""
    rows, bad = parsed(path, parse)
    settle(path, len(rows), bad, skip_bad=skip_bad, say=say)
    return [row for _, row in rows]


def settle(
    path: Path, count: int, bad: list[tuple[int, str]], *, skip_bad: bool, say: Callable[[str], None] | None
) -> None:
    """Raise InputError for bad lines of a file, or tell of them and go on without.

    Args:
        path: The file.
        count: How many lines are good.
        bad: The numbers of the bad ones, and their reasons.
        skip_bad: Whether to go on.
        say: Receives a line for people.
    """
    reasons = [f"line {number}: {reason}" for number, reason in sorted(bad)]
    if bad and not count:
        advice = "; write tabs in place of commas" if path.suffix == ".csv" else ""
        raise InputError(f"{path} has no line that can be read, for example {shortened(reasons[0], 150)}{advice}")
    if bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        named = f"{len(bad):,} bad line{'s' if len(bad) > 1 else ''} in {path}: {'; '.join(reasons[:SHOWN])}{more}"
        if not skip_bad:
            raise InputError(f"{shortened(named, 250)}; --skip-bad goes on without")
        if say is not None:
            say(f"{named}: skipped")
    if not count:
        raise InputError(f"{path} has no rows: write lines of two columns with a tab between them, or JSON in a .jsonl")


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text file that are not blank, with their numbers. Raises InputError for what is no text."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is no file: give a .tsv or a .jsonl file")
    with reading(path), path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def tabbed_row(line: str) -> tuple[str, str]:
    """Return the two columns of a line. Raises InputError for another number of columns, and for an empty one."""
    columns = line.split("\t")
    if len(columns) != 2:
        raise InputError(f"{len(columns)} column{'s' if len(columns) > 1 else ''}, not two with a tab between")
    return filled(columns[0]), filled(columns[1])


def json_row(line: str, keys: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """Return the two texts of a line of JSON. Raises InputError for a line without them."""
    row = json_object(line)
    if keys is PAIRS and isinstance(row.get("translation"), dict):
        row = row["translation"]
        if len(row) != 2:
            raise InputError(f"translation has {len(row)} texts, not two")
        keys = (tuple(row),)  # pyrefly: ignore
    found = next((pair for pair in keys if all(key in row for key in pair)), None)
    if found is None:
        raise InputError(f"no {' and '.join(keys[0])}")
    return filled(row[found[0]]), filled(row[found[1]])


def json_object(line: str) -> dict[str, Any]:
    """Return the object of a line of JSON. Raises InputError for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise InputError("no JSON") from None
    if not isinstance(row, dict):
        raise InputError(f"{shown(row)} is no object")
    return row


def filled(text: Any) -> str:
    """Return a text; numbers are written out. Raises InputError for anything else, and for an empty one."""
    text = str(text) if isinstance(text, int) and not isinstance(text, bool) else text
    if not isinstance(text, str):
        raise InputError(f"{shown(text)} is no text")
    if not text.strip():
        raise InputError("an empty text")
    return check_text(text.strip())
