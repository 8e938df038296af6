"""Files that teach a language model to answer: prompts with completions, and conversations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jaxformer.data.rows import json_object, lines_of, parsed, settled
from jaxformer.data.tokenizer import check_text
from jaxformer.errors import InputError
from jaxformer.schema import shown

Kind = Literal["text", "prompts", "conversations"]
Messages = list[dict[str, Any]]


def kind_of(path: Path | None, field: str) -> Kind:
    """Return what a source of text holds, by the first line of a .jsonl file.

    Args:
        path: The source. None: the text that is taken where there is none.
        field: Where a line has its text; if there is such a field, the file holds texts.
    """
    if path is None or path.suffix != ".jsonl" or not path.is_file():
        return "text"
    try:
        row = next((json_object(line) for _, line in lines_of(path)), {})
    except InputError:
        return "text"  # which says what is wrong with it
    if field in row:
        return "text"
    if "messages" in row:
        return "conversations"
    return "prompts" if {"prompt", "completion"} <= row.keys() else "text"


def read_prompts(path: Path, *, skip_bad: bool, say: Callable[[str], None]) -> list[tuple[str, str]]:
    """Return the prompts of a .jsonl file and their completions, with all spaces around them.

    Args:
        path: The file.
        skip_bad: Whether to go on without the lines that are no such pair.
        say: Receives a line for people about what is skipped.

    Raises:
        InputError: The file cannot be read, has no such line, or has another one.
    """
    return settled(path, prompt_row, skip_bad=skip_bad, say=say)


def prompt_row(line: str) -> tuple[str, str]:
    """Return the prompt and the completion of a line. Raises InputError for a line without them."""
    row = json_object(line)
    if "messages" in row:
        raise InputError("messages, where the first line has a prompt and a completion")
    missing = [name for name in ("prompt", "completion") if name not in row]
    if missing:
        raise InputError(f"no {' and '.join(missing)}")
    return some_text("prompt", row["prompt"]), some_text("completion", row["completion"])


def read_conversations(path: Path) -> tuple[list[tuple[int, Messages]], list[tuple[int, str]]]:
    """Return the conversations of a .jsonl file, and what is wrong with other lines, with the numbers of lines.

    Raises:
        InputError: The file cannot be read.
    """
    return parsed(path, conversation_row)


def conversation_row(line: str) -> Messages:
    """Return the messages of a line. Raises InputError for a line without them."""
    row = json_object(line)
    if "prompt" in row and "messages" not in row:
        raise InputError("a prompt, where the first line has messages")
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InputError('no list of messages, such as [{"role": "user", "content": "Hello"}, ...]')
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InputError(f"{shown(message)} is no message with a role")
        if isinstance(message.get("content"), str):
            check_text(message["content"])
    return messages


def some_text(name: str, text: Any) -> str:
    """Return a text. Raises InputError for anything else, and for an empty one."""
    if not isinstance(text, str):
        raise InputError(f"the {name} {shown(text)} is no text")
    if not text.strip():
        raise InputError(f"an empty {name}")
    return check_text(text)
