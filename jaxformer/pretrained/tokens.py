"""Tokenizers from outside: reading a tokenizer.json, and encoding and decoding with it.

The library is written in Rust. What it does not expect in a file ends in a panic, a BaseException, or in the abort of
the process. So a file is checked before the library reads it, and whatever the library raises becomes an InputError.
"""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from jaxformer import schema
from jaxformer.data.tokenizer import library_errors
from jaxformer.errors import InputError

MAX_PADDING = 2**20
Text = str | tuple[str, str]  # one text, or a pair of them


def read_tokenizer(path: Path, vocab_size: int) -> tokenizers.Tokenizer:
    """Return the tokenizer in a tokenizer.json.

    Raises:
        InputError: The file is damaged, or has tokens beyond a vocabulary of `vocab_size`.
    """
    parts = schema.load_json(path)
    with schema.located(path):
        check_parts(parts, vocab_size)
        with library_errors("is damaged"):
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
            check_ids(tokenizer.get_vocab().values(), vocab_size)
    return tokenizer


def encode(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[str], *, special_tokens: bool = True, limit: int | None = None
) -> list[list[int]]:
    """Return the token ids of texts, without the padding and the truncation that the tokenizer's file asks for.

    Args:
        tokenizer: A tokenizer as `read_tokenizer` returns it.
        texts: What to encode.
        special_tokens: Whether the tokenizer adds the tokens that begin and end a text.
        limit: How many tokens each text may have; what is beyond is cut off. None: any number.

    Raises:
        InputError: The tokenizer cannot encode a text.
    """
    return [encoding.ids for encoding in encodings(tokenizer, texts, special_tokens=special_tokens, limit=limit)]


def encodings(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[Text],
    *,
    special_tokens: bool = True,
    limit: int | None = None,
    stride: int | None = None,
) -> list[tokenizers.Encoding]:
    """Return texts, or pairs of texts, as tokens with their types and places in the text. See `encode`.

    Args:
        tokenizer: A tokenizer as `read_tokenizer` returns it.
        texts: What to encode.
        special_tokens: Whether the tokenizer adds the tokens that begin and end a text.
        limit: How many tokens each text or pair may have; what is beyond is cut off. None: any number.
        stride: With it, what is beyond the limit of a pair's second text follows in its `overflowing`, which repeat so
            many tokens of the part before. None: it is cut off.

    Raises:
        InputError: The tokenizer cannot encode a text, or the first text of a pair leaves no room for its second.
    """
    for text in chain.from_iterable((text,) if isinstance(text, str) else text for text in texts):
        check_text(text)
    with library_errors("the tokenizer cannot encode the text"):
        if tokenizer.padding is not None or tokenizer.truncation is not None or limit is not None:
            tokenizer = tokenizers.Tokenizer.from_str(tokenizer.to_str())
            tokenizer.no_padding()
            tokenizer.no_truncation()
            if limit is not None and stride is not None:
                tokenizer.enable_truncation(limit, stride=stride, strategy="only_second")
            elif limit is not None:
                tokenizer.enable_truncation(limit)
        return tokenizer.encode_batch(list(texts), add_special_tokens=special_tokens)


def check_text(text: str) -> None:
    """Raise InputError for half a surrogate pair, which no tokenizer reads."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise InputError(
            f"{half!a} (character {error.start + 1}) is half a surrogate pair, no text: leave it out"
        ) from None


def gives_types(files: Mapping[str, str]) -> bool:
    """Return whether a folder's tokenizer tells the first text of a pair from the second, for models that know both.

    So do classes of transformers that are made for such a model, and none that is made for any.

    Args:
        files: Texts of the tokenizer's other files, by name.
    """
    settings = schema.parse_json(files.get("tokenizer_config.json", "{}"))
    names = settings.get("model_input_names")
    if isinstance(names, list):
        return "token_type_ids" in names
    return settings.get("tokenizer_class") not in ("TokenizersBackend", "PreTrainedTokenizerFast")


def decode(tokenizer: tokenizers.Tokenizer, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """Return the text of token ids. Raises InputError where the tokenizer cannot decode them."""
    with library_errors("the tokenizer cannot decode the tokens"):
        return tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)


def check_ids(ids: Iterable[Any], vocab_size: int) -> None:
    """Raise InputError for a token that the model's embedding lacks."""
    most = max((index for index in ids if schema.is_integer(index)), default=-1) + 1
    if most > vocab_size:
        raise InputError(
            f"has {most:,} tokens, but the model's embedding only {vocab_size:,}: they do not belong together"
        )


def check_parts(parts: dict[str, Any], vocab_size: int) -> None:
    """Raise InputError for what the library panics at, hangs in or aborts for; it refuses all else by itself."""
    model = parts.get("model")
    if isinstance(model, dict):
        vocabulary = model.get("vocab")
        check_ids(vocabulary.values() if isinstance(vocabulary, dict) else (), vocab_size)
        check_merges(model)
    padding = parts.get("padding")
    if isinstance(padding, dict):
        strategy = padding.get("strategy")
        fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
        for length in (fixed, padding.get("pad_to_multiple_of")):
            if isinstance(length, int) and length > MAX_PADDING:
                raise InputError(f"padding to {schema.shown(length)} tokens: at most {MAX_PADDING:,} are supported")
    for part in typed(parts.get("normalizer"), "normalizers"):
        if part["type"] == "Precompiled":
            check_charsmap(part.get("precompiled_charsmap"))
    for part in typed(parts.get("post_processor"), "processors"):
        if part["type"] == "TemplateProcessing":
            check_template(part)


def typed(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """Yield a part of a tokenizer and the parts that it consists of, those that have a type."""
    if isinstance(part, dict):
        if isinstance(part.get("type"), str):
            yield part
        for each in part[inner] if isinstance(part.get(inner), list) else ():
            yield from typed(each, inner)


def check_merges(model: dict[str, Any]) -> None:
    """Raise InputError where a merge lacks the prefix that the library cuts off its second half."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not (isinstance(prefix, str) and prefix and isinstance(merges, list)):
        return
    for merge in merges:
        halves = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(halves, list) and all(isinstance(half, str) for half in halves)):
            continue
        if not halves[-1].startswith(prefix):
            raise InputError(f"continuing_subword_prefix={schema.shown(prefix)} is no prefix in the merge {merge!r}")


def check_template(part: dict[str, Any]) -> None:
    """Raise InputError where a post-processor adds a special token that it does not declare."""
    known = part.get("special_tokens")
    for name in ("single", "pair"):
        pieces = part.get(name)
        for piece in pieces if isinstance(pieces, list) else ():
            token = piece.get("SpecialToken") if isinstance(piece, dict) else None
            token = token.get("id") if isinstance(token, dict) else None
            if isinstance(token, str) and isinstance(known, dict) and token not in known:
                raise InputError(f"post_processor: {schema.shown(token)} is not among its special_tokens")


def check_charsmap(charsmap: Any) -> None:
    """Raise InputError unless a `precompiled_charsmap` is what SentencePiece compiles.

    It is the size of a double-array trie in bytes, the trie, and the texts that its values point to, each ended by 0. A
    unit of the trie is a value, if its highest bit is set. Else it has the offset of its children from its own place,
    and a bit that tells whether the first of these is a value.
    """
    damaged = InputError("normalizer: its precompiled_charsmap is damaged")
    try:
        data = base64.b64decode(charsmap, validate=True) if isinstance(charsmap, str) else b""
        size = int.from_bytes(data[:4], "little")
        units = np.frombuffer(data[4 : 4 + size], "<u4")
        texts = np.frombuffer(data[4 + size :], np.uint8)
        texts.tobytes().decode("utf-8")
    except ValueError:
        raise damaged from None
    if not (units.size and texts.size and units.nbytes == size):
        raise damaged
    is_value = units >> 31 == 1
    children = np.arange(len(units), dtype=np.uint32) ^ (units >> 10 << ((units & 0x200) >> 6))
    has_value = ~is_value & (units & 0x100 > 0)
    values = units[is_value] & 0x7FFFFFFF
    inside = (children[~is_value] | 255 < len(units)).all() and (values < len(texts)).all()
    if not (
        inside and not is_value[0] and is_value[children[has_value]].all() and (texts[values] & 0xC0 != 0x80).all()
    ):
        raise damaged
