"""The text of language tasks: tokenizer, training and validation part."""

import sys
from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxformer.data import Corpus, Tokenizer, documents, load_tokenizer, open_corpus, split_corpus, train_tokenizer
from jaxformer.data.text import others
from jaxformer.errors import InputError, listed
from jaxformer.machine import cache_folder
from jaxformer.tasks.language_settings import TextSettings

TRAINED = ("char", "word", "bpe")


class Texts(NamedTuple):
    """A tokenizer, and texts as it reads them.

    Attributes:
        tokenizer: The tokenizer.
        training: Text to train on.
        validation: Text to validate on.
    """

    tokenizer: Tokenizer
    training: Corpus
    validation: Corpus


def read_texts(settings: TextSettings, tokenizer: Tokenizer | None = None) -> Texts:
    """Return the text that the settings name, read by a tokenizer (None: by the one that the settings ask for)."""
    source = None if settings.data is None else Path(settings.data)
    if source is None:
        print("no --data: the language reference that comes with Python, enough to see a model learn", file=sys.stderr)
    tokenizer = tokenizer or make_tokenizer(settings)
    read = partial(read_text, tokenizer=tokenizer, field=settings.field)
    corpus = read("training text", source)
    if settings.validation is None:
        return Texts(tokenizer, *split_corpus(corpus))
    return Texts(tokenizer, corpus, read("validation text", Path(settings.validation)))


def read_text(name: str, source: Path | None, tokenizer: Tokenizer, field: str) -> Corpus:
    """Return a text as a tokenizer reads it, and report on standard error how much of it has no token."""
    if source is not None and (left := others(source)):
        names = listed([path.name for path in left[:3]])
        print(f"{source}: {len(left):,} files are not read, as {names}: only .txt and .jsonl are", file=sys.stderr)
    corpus = open_corpus(source, tokenizer, cache_folder() / "corpora", field=field)
    say_unknown(name, corpus, tokenizer, documents(source, field))
    return corpus


def say_unknown(name: str, corpus: Corpus, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """Report on standard error how much of a text has no token.

    Args:
        name: What to call the text.
        corpus: The text.
        tokenizer: The tokenizer that it was read with.
        texts: The text again, to name examples of what has no token.
    """
    unknown = 0 if tokenizer.unknown_id is None else int(np.count_nonzero(corpus.tokens == tokenizer.unknown_id))
    if unknown:
        found = (piece for text in texts for piece in tokenizer.each_unknown(text))
        examples = listed(map(repr, dict.fromkeys(islice(found, 3))))
        share = unknown / len(corpus.tokens)
        print(f"{name}: {unknown:,} tokens ({share:.2%}) are unknown to the tokenizer, as {examples}", file=sys.stderr)


def make_tokenizer(settings: TextSettings) -> Tokenizer:
    """Return the tokenizer that the settings ask for."""
    source = None if settings.data is None else Path(settings.data)
    return tokenizer_of(settings.tokenizer or "char", documents(source, settings.field), settings.vocab_size)


def tokenizer_of(kind: str, texts: Iterable[str], vocab_size: int, *, exactly: bool = True) -> Tokenizer:
    """Return a tokenizer that is made from texts, or read from a file.

    Args:
        kind: A kind of `TRAINED`, or a file.
        texts: The texts.
        vocab_size: The most tokens.
        exactly: Whether to refuse a number of words or pairs of bytes that the texts do not have.

    Raises:
        InputError: There is no such kind or file, or the tokenizer cannot be made or read.
    """
    if kind in TRAINED:
        return train_tokenizer(kind, texts, vocab_size, exactly=exactly)
    if not Path(kind).exists():
        kinds = ", ".join(TRAINED)
        raise InputError(f"--tokenizer {kind} is neither a file nor one of {kinds}")
    return load_tokenizer(Path(kind))
