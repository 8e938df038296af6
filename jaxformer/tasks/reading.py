"""The tokenizer of a checkpoint, as tasks read text with it."""

import hashlib

import tokenizers

from jaxformer.data import Tokenizer
from jaxformer.errors import InputError
from jaxformer.pretrained import Pretrained
from jaxformer.pretrained.tokens import encode

PROBE = "a"  # a text, to see which tokens stand around one


def checkpoint_tokenizer(lm: Pretrained) -> Tokenizer:
    """Return the tokenizer of a checkpoint: documents begin as it begins texts, and end with the EOS token.

    Raises:
        InputError: The checkpoint has no tokenizer, or names no EOS token.
    """
    if lm.tokenizer is None:
        raise InputError("the checkpoint has no tokenizer.json to read texts with: save it with its tokenizer")
    ends = lm.generation.eos_ids
    if not ends:
        raise InputError("the checkpoint names no EOS token: add eos_token_id to its generation_config.json")
    return Tokenizer("file", plain(lm.tokenizer), tokens_before(lm.tokenizer), ends[0])


def encoder_tokenizer(lm: Pretrained) -> Tokenizer:
    """Return the tokenizer of an encoder's checkpoint: documents begin and end as it begins and ends texts.

    Raises:
        InputError: The checkpoint has no tokenizer, or its tokenizer puts no token behind a text.
    """
    if lm.tokenizer is None:
        raise InputError("the checkpoint has no tokenizer.json to read texts with: save it with its tokenizer")
    (whole,), (inside,) = (encode(lm.tokenizer, [PROBE], special_tokens=special) for special in (True, False))
    begin = tokens_before(lm.tokenizer)
    behind = whole[len(begin) + len(inside) :]
    if not behind:
        raise InputError("the checkpoint's tokenizer puts no token behind a text, such as [SEP]: documents have no end")
    return Tokenizer("file", plain(lm.tokenizer), begin, behind[0])


def plain(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """Return a copy that pads and cuts nothing, and reads special tokens of a text as letters."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True
    return backend


def digest_of(backend: tokenizers.Tokenizer) -> str:
    """Return a checksum of a tokenizer."""
    return hashlib.sha256(backend.to_str().encode()).hexdigest()


def tokens_before(tokenizer: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the special tokens that a tokenizer puts before a text."""
    (whole,), (inside,) = (encode(tokenizer, [PROBE], special_tokens=special) for special in (True, False))
    starts = range(len(whole) - len(inside) + 1)
    return tuple(whole[: next((start for start in starts if whole[start : start + len(inside)] == inside), 0)])
