"""Text as token ids: characters, words or byte-level BPE, found in the text itself, or a ready tokenizer.json."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from jaxformer.errors import InputError, shortened
from jaxformer.interrupts import FAREWELL

END, UNKNOWN = "<|endoftext|>", "<unk>"
SPECIAL = {"char": [END, UNKNOWN], "word": [END, UNKNOWN], "bpe": [END]}  # a byte is never unknown
FEWEST = {"char": 3, "word": 3, "bpe": 257}  # special tokens with one more, or with all bytes
WORD = r"\w+|\s|[^\w\s]"  # a word, or a single space or sign: nothing between tokens is lost
# Long texts are read in blocks. One ends where space follows a word: no token of ours reaches over that.
BLOCK = re.compile(r".{65536}.*?\S(?=[ \n])|.+", re.DOTALL)
PIECE = 128  # tokens after which a text may be cut
SURROGATE = re.compile("[\ud800-\udfff]")
HALF = "\N{REPLACEMENT CHARACTER}"  # what stands for bytes that are no whole character
PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that byte-level BPE writes as they are
OTHERS = sorted(set(range(256)) - set(PRINTED))  # and those for which it takes the characters from 256 on
BYTES = {chr(byte): byte for byte in PRINTED} | {chr(256 + place): byte for place, byte in enumerate(OTHERS)}


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Text to token ids and back.

    Names of special tokens that a text happens to contain are text: no text is encoded to `end`.

    Attributes:
        kind: "char", "word" and "bpe" are trained by `train_tokenizer`; "file" is any other tokenizer.json.
        backend: The tokenizer of the library.
        begin: The tokens before every document.
        last: The token behind every document. None: "<|endoftext|>".
    """

    kind: str
    backend: tokenizers.Tokenizer
    begin: tuple[int, ...] = ()
    last: int | None = None

    @cached_property
    def vocab_size(self) -> int:
        """How many ids there are, special tokens included."""
        return max(self.backend.get_vocab().values()) + 1

    @cached_property
    def end(self) -> int:
        """The id of the token behind every document."""
        return self.backend.get_vocab()[END] if self.last is None else self.last

    @cached_property
    def digest(self) -> str:
        """A checksum: equal for tokenizers that do the same."""
        around = "" if self.last is None else f"{self.begin} {self.last}"
        return hashlib.sha256(f"{around}{self.backend.to_str()}".encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a text, int32 [T].

        Raises InputError for half a surrogate pair, which is no character.
        """
        return np.concatenate([np.zeros(0, np.int32), *(ids for ids, _ in self.pieces(text))])

    def pieces(self, text: str) -> Iterator[tuple[np.ndarray, str]]:
        """Yield the tokens of a text, part by part, and the characters that each part stands for.

        Raises as `encode` does.
        """
        for block in self.blocks(text):
            encoding = self._encoded(block)
            ids, begin = np.array(encoding.ids, np.int32), 0
            for start in range(0, max(len(ids), 1), PIECE):
                place = encoding.token_to_chars(start + PIECE)
                end = len(block) if place is None else place[0]
                yield ids[start : start + PIECE], block[begin:end]
                begin = end

    def blocks(self, text: str) -> Iterator[str]:
        """Return the text in blocks that can be encoded one by one.

        All of it where nobody knows how tokens are found.
        """
        check_text(text)
        return iter([text]) if self.kind == "file" else blocks(text)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of tokens. Special tokens show as their names; bytes that make no character, as U+FFFD."""
        with library_errors("the tokenizer cannot write these tokens"):
            return self.backend.decode([int(index) for index in ids], skip_special_tokens=False)

    def _encoded(self, text: str) -> tokenizers.Encoding:
        """Return the encoding that the library makes of a text."""
        with library_errors("the tokenizer cannot read this text"):
            return self.backend.encode(text, add_special_tokens=False)

    def names(self, ids: Iterable[int]) -> list[str]:
        """Return a readable string for each token: spaces shown as ␣, what cannot be printed escaped as in Python."""
        return [self._name(int(index)) for index in ids]

    def _name(self, index: int) -> str:
        token, text = self.backend.id_to_token(index) or "", self.decode([index])
        if HALF in text and BYTES.keys() >= set(token):
            text = bytes(BYTES[char] for char in token).decode(errors="backslashreplace")
        shown = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text or token)
        return "".join(shown).replace(" ", "␣")

    def unknown(self, text: str) -> list[str]:
        """Return the different characters or words of a text that have no token, in order of appearance."""
        return list(dict.fromkeys(self.each_unknown(text)))

    def each_unknown(self, text: str) -> Iterator[str]:
        """Yield every character or word of a text that has no token, in order."""
        for block in self.blocks(text):
            encoding = self._encoded(block)
            for index, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if index == self.unknown_id:
                    yield block[begin:end]

    @cached_property
    def unknown_id(self) -> int | None:
        """The token of what has none of its own; None where everything has."""
        model = json.loads(self.backend.to_str())["model"]
        token = model.get("unk_token")
        return model.get("unk_id") if token is None else self.backend.token_to_id(token)

    def save(self, path: Path) -> None:
        """Write the tokenizer as a tokenizer.json."""
        path.write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """Return the text of a tokenizer.json."""
        return self.backend.to_str(pretty=True) + "\n"


@contextmanager
def library_errors(problem: str) -> Iterator[None]:
    """Raise an InputError that begins with `problem` for every error of the tokenizers library in this block.

    Its panics are no `Exception`, and print on standard error: that is closed meanwhile.
    """
    try:
        with silenced():
            yield
    except (InputError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{problem}: {shortened(str(error), 150)}") from None


@contextmanager
def silenced() -> Iterator[None]:
    """Let nothing that is written to standard error appear, except the farewell of a signal."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    FAREWELL.errors = kept
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        FAREWELL.errors = 2
        os.close(kept)
        os.close(nowhere)


def train_tokenizer(kind: str, documents: Iterable[str], vocab_size: int, *, exactly: bool = True) -> Tokenizer:
    """Return the tokenizer of the most frequent tokens of texts.

    Args:
        kind: "char", "word" or "bpe" (byte-level byte-pair encoding, which has all bytes).
        documents: The texts.
        vocab_size: Number of tokens. There are fewer where a text has not as many characters.
        exactly: Whether to refuse a number of words or pairs of bytes that the text does not have.

    Raises:
        InputError: The size is impossible.
    """
    if kind not in SPECIAL:
        raise InputError(f"no tokenizer {kind!r} can be trained: choose from {', '.join(SPECIAL)}")
    if vocab_size < FEWEST[kind]:
        raise InputError(f"a {kind} vocabulary of {vocab_size} is too small: it needs at least {FEWEST[kind]} tokens")
    backend = untrained(kind)
    texts = (block for text in documents for block in blocks(check_text(text)))
    backend.train_from_iterator(texts, trainer(kind, vocab_size))
    found = backend.get_vocab_size()
    if found < FEWEST[kind]:
        raise InputError("there is no text to find tokens in")
    if exactly and found < vocab_size and kind != "char":
        raise InputError(f"a {kind} vocabulary of {vocab_size} is too large: the text supports {found} tokens")
    return Tokenizer(kind, backend)


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json, of its old kind if it was trained here.

    It encodes no more than the text: padding, truncation and special tokens that the file asks for are left out.
    A vocabulary without "<|endoftext|>" gets that token. Raises InputError for a file that cannot be read.
    """
    if path.exists() and not path.is_file():  # a device has no end
        raise InputError(f"{path} is no file: give a tokenizer.json")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise InputError(f"{path} is no tokenizer.json: it is not text in UTF-8") from None
    with library_errors(f"{path} is no tokenizer.json"):
        backend = tokenizers.Tokenizer.from_str(text)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # special tokens that a text holds are the letters they are written in
    if backend.token_to_id(END) is None:
        if (
            max(backend.get_vocab().values(), default=-1) >= backend.get_vocab_size()
        ):  # the library would give an id twice
            raise InputError(f"{path} has gaps between its ids and no token {END!r}: add that to it")
        backend.add_special_tokens([END])
    does = outline(backend)
    return Tokenizer(next((kind for kind in SPECIAL if outline(untrained(kind)) == does), "file"), backend)


def untrained(kind: str) -> tokenizers.Tokenizer:
    """Return a tokenizer that knows its special tokens and how to cut a text, but no vocabulary yet."""
    backend = tokenizers.Tokenizer(models.BPE() if kind == "bpe" else models.WordLevel(unk_token=UNKNOWN))
    match kind:
        case "char":
            backend.pre_tokenizer, backend.decoder = pre_tokenizers.FixedLength(1), decoders.Fuse()
        case "word":
            backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split(Regex(WORD), "isolated"), decoders.Fuse()
        case _:
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL[kind])
    backend.encode_special_tokens = True  # those that a text holds are the letters they are written in
    return backend


def trainer(kind: str, vocab_size: int) -> trainers.Trainer:
    """Return the trainer of a vocabulary.

    BPE merges no pair that occurs only once: nothing could be learned about it.
    """
    if kind == "bpe":
        return trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=SPECIAL[kind],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    return trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=SPECIAL[kind], show_progress=False)


def outline(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    """Return the settings of a tokenizer, without its vocabulary."""
    parts = json.loads(backend.to_str())
    return parts | {"model": {**parts["model"], "vocab": None, "merges": None}}


def blocks(text: str) -> Iterator[str]:
    """Return the text in blocks, for tokenizers that are trained here."""
    return (found.group() for found in BLOCK.finditer(text))


def check_text(text: str) -> str:
    """Return the text itself. Raises InputError for half a surrogate pair."""
    found = SURROGATE.search(text)
    if found:
        raise InputError(
            f"{found.group()!a} (character {found.start() + 1}) is half a surrogate pair, no text: leave it out"
        )
    return text
