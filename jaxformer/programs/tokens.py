"""Texts to token ids and back, with a tokenizer from outside that may be damaged."""

from collections.abc import Sequence

import tokenizers

from jaxformer.data.tokenizer import library_errors


def encode(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], *, special_tokens: bool = True, limit: int | None = None
) -> list[list[int]]:
    """Return the token ids of each text, without the padding and the truncation that the file asks for.

    Args:
        tokenizer: It stays as it is.
        texts: What to read.
        special_tokens: Whether to add the special tokens that the tokenizer puts around a text.
        limit: Cut texts to this number of tokens, special ones included (None: as they are).

    Raises:
        InputError: The tokenizer cannot read one of the texts.
    """
    with library_errors("cannot read these texts"):
        plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
        plain.no_padding()
        plain.no_truncation()
        if limit is not None:
            plain.enable_truncation(limit)
        return [encoding.ids for encoding in plain.encode_batch(list(texts), add_special_tokens=special_tokens)]


def decode(tokenizer: tokenizers.Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of token ids, without special tokens. Raises InputError where the tokenizer cannot write it."""
    with library_errors("cannot write these tokens"):
        return tokenizer.decode(ids, skip_special_tokens=True)
