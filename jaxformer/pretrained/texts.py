"""Texts to batches of token ids as a model reads them, and back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from jaxformer.errors import InputError, shortened
from jaxformer.generation import GenerationConfig
from jaxformer.pretrained.tokens import decode, encode


def text_list(texts: Any) -> list[str]:
    """Return one text or several as a list. Raises InputError for anything else, and for none."""
    found = [texts] if isinstance(texts, str) else texts
    several = isinstance(found, Sequence) and all(isinstance(text, str) for text in found)
    if not several or not found:
        raise InputError(f"give a text, or a list of texts, not {shortened(repr(texts), 60)}")
    return list(found)


def token_rows(
    tokenizer: tokenizers.Tokenizer | None,
    texts: Sequence[str],
    config: GenerationConfig,
    *,
    begins: bool,
    special_tokens: bool = True,
) -> list[list[int]]:
    """Return the token ids of each text; those of an empty one begin a text.

    Args:
        tokenizer: The tokenizer. None: there is none.
        texts: The texts.
        config: Settings of generation, which have the token that begins a text.
        begins: Whether that token may stand for an empty text.
        special_tokens: Whether the tokenizer adds the tokens that begin and end a text.

    Raises:
        InputError: There is no tokenizer, or it cannot encode a text, or makes no tokens of it.
    """
    if tokenizer is None:
        raise InputError("the folder has no tokenizer.json to read texts with: give token ids")
    rows = encode(tokenizer, texts, special_tokens=special_tokens)
    for text, row in zip(texts, rows, strict=True):
        if not row and config.bos_token_id is not None and begins:
            row.append(config.bos_token_id)
        if not row:
            given = shortened(repr(text), 100)
            raise InputError(f"the tokenizer makes no tokens of {given}, and the model has no token to begin with")
    return rows


def text_of(tokenizer: tokenizers.Tokenizer | None, ids: np.ndarray) -> str:
    """Return the text of token ids [T], without special tokens. Raises InputError where there is no tokenizer."""
    if tokenizer is None:
        raise InputError("the folder has no tokenizer.json to write texts with")
    return decode(tokenizer, ids.tolist())
