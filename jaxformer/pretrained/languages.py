"""Languages of translation models: tokens that stand around a source, and before a translation."""

import re

import numpy as np
import tokenizers

from jaxformer.errors import InputError, listed
from jaxformer.schema import shown

CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}|__[a-z]{2,4}__")  # en_XX, eng_Latn, __en__


def token_of(tokenizer: tokenizers.Tokenizer | None, language: str) -> int:
    """Return the token of a language, whose name is "en_XX", "eng_Latn", or for "__en__" also "en".

    Raises:
        InputError: The tokenizer has no such language.
    """
    known = codes(tokenizer)
    found = known.get(language, known.get(f"__{language}__"))
    if found is None:
        there = f"there are {listed(sorted(known))}" if known else "it knows none"
        raise InputError(f"the tokenizer has no language {shown(language)}: {there}")
    return found


def with_source(tokenizer: tokenizers.Tokenizer | None, ids: np.ndarray, language: str) -> np.ndarray:
    """Return sources [B, S] in another language than the one that the tokenizer writes around them.

    Raises:
        InputError: The tokenizer has no such language, or writes none.
    """
    token, written = token_of(tokenizer, language), np.isin(ids, list(codes(tokenizer).values()))
    if not written.any(axis=1).all():
        raise InputError("the tokenizer writes no language around sources: leave src_lang out")
    return np.where(written, np.int32(token), ids)


def codes(tokenizer: tokenizers.Tokenizer | None) -> dict[str, int]:
    """Return the tokens of languages by their names."""
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    return {name: token for name, token in vocabulary.items() if CODE.fullmatch(name)}
