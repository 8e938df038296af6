"""Prompts of language models: fitted into a context; and the text of tokens as they come."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxformer.errors import InputError
from jaxformer.generation.automata import HALF

BATCH = 16  # prompts that are continued at once


def room(most: int, rows: Sequence[Any], context: int | None, *, truncate: bool) -> int:
    """Return how many tokens to generate where no number is given.

    Args:
        most: The answer where there is room.
        rows: The prompts, as tokens.
        context: How many tokens the model can read (None: any number).
        truncate: Prompts may be cut: then no less than half of the context.
    """
    if context is None:
        return most
    fitting = context - max(map(len, rows))
    return max(1, min(most, max(fitting, context // 2) if truncate else fitting))


def fit_prompt(row: Any, new_tokens: int, context: int | None, *, truncate: bool) -> Any:
    """Return a prompt that leaves room for new tokens: as it is, or its end. Raises InputError where it does not."""
    if context is None or len(row) + new_tokens <= context:
        return row
    if not truncate or new_tokens >= context:
        and_new, lower = (f" and {new_tokens} new ones", "lower --max-new-tokens, ") if new_tokens else ("", "")
        raise InputError(
            f"{len(row)} tokens of prompt{and_new} exceed the model's context of {context}: shorten the prompt, "
            f"{lower}or --truncate to read the end of the prompt"
        )
    return row[len(row) + new_tokens - context :]


def pieces(decode: Callable[[np.ndarray], str], parts: Iterable[np.ndarray]) -> Iterator[str]:
    """Return the text of token ids that come in parts, each piece as soon as its characters are complete."""
    ids, sent, text = np.zeros(0, np.int32), 0, ""
    for part in parts:
        ids = np.concatenate([ids, part])
        text = decode(ids)
        whole = len(text.rstrip(HALF))
        yield text[sent:whole]
        sent = max(sent, whole)
    yield text[sent:]
