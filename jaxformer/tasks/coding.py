"""How the texts of pairs become tokens: by vocabularies made from them, or by the tokenizer of a checkpoint."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from jaxformer.data import Tokenizer, load_tokenizer
from jaxformer.errors import InputError
from jaxformer.pretrained import TOKENIZER, Pretrained
from jaxformer.pretrained import tokens as library
from jaxformer.tasks.corpora import TRAINED, tokenizer_of
from jaxformer.tasks.reading import digest_of
from jaxformer.tasks.rows import Coder
from jaxformer.tasks.translation_settings import PairSettings
from jaxformer.training import replace_text

TARGET_TOKENIZER = "target-tokenizer.json"


class PairCoder(Coder, Protocol):
    """Texts to tokens and back."""

    @property
    def start(self) -> int:
        """The token that the decoder begins with."""
        ...

    @property
    def end(self) -> int:
        """The token that ends a target."""
        ...

    @property
    def pad(self) -> int:
        """The token at padding."""
        ...

    @property
    def source_size(self) -> int:
        """Tokens of the vocabulary of sources."""
        ...

    @property
    def target_size(self) -> int:
        """Tokens of the vocabulary of targets."""
        ...

    def encode_sources(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of sources, int32 [S] each."""
        ...

    def encode_targets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of targets with the one that ends them, int32 [T] each."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of the tokens of a target, without special tokens."""
        ...

    def source_names(self, ids: np.ndarray) -> list[str]:
        """Return every token of a source as people read it."""
        ...

    def target_names(self, ids: np.ndarray) -> list[str]:
        """Return every token of a target as people read it."""
        ...


@dataclass(frozen=True, eq=False)
class NewCoder:
    """Vocabularies that were made from the pairs, whose end token also begins and pads.

    Attributes:
        sources: The tokenizer of sources.
        targets: The tokenizer of targets; the same object for one vocabulary.
        prefix: Text before every source.
    """

    sources: Tokenizer
    targets: Tokenizer
    prefix: str

    @property
    def end(self) -> int:
        """The token that ends a target."""
        return self.targets.end

    @property
    def start(self) -> int:
        """The token that the decoder begins with."""
        return self.targets.end

    @property
    def pad(self) -> int:
        """The token at padding."""
        return self.targets.end

    @property
    def source_size(self) -> int:
        """Tokens of the vocabulary of sources."""
        return self.sources.vocab_size

    @property
    def target_size(self) -> int:
        """Tokens of the vocabulary of targets."""
        return self.targets.vocab_size

    @property
    def digest(self) -> str:
        """A checksum."""
        return hashlib.sha256(f"{self.sources.digest}{self.targets.digest}".encode()).hexdigest()

    def encode_sources(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of sources, int32 [S] each."""
        return [np.append(self.sources.encode(self.prefix + text), self.sources.end).astype(np.int32) for text in texts]

    def encode_targets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of targets with the one that ends them, int32 [T] each."""
        return [np.append(self.targets.encode(text), self.targets.end).astype(np.int32) for text in texts]

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of the tokens of a target, without special tokens."""
        return self.targets.decode(ids[ids != self.end])

    def source_names(self, ids: np.ndarray) -> list[str]:
        """Return every token of a source as people read it."""
        return self.sources.names(ids)

    def target_names(self, ids: np.ndarray) -> list[str]:
        """Return every token of a target as people read it."""
        return self.targets.names(ids)

    def save(self, folder: Path) -> None:
        """Write the vocabularies into the folder of a run."""
        replace_text(folder / TOKENIZER, self.sources.to_json())
        if self.targets is not self.sources:
            replace_text(folder / TARGET_TOKENIZER, self.targets.to_json())


@dataclass(frozen=True, eq=False)
class CheckpointCoder:
    """The tokenizer of a checkpoint.

    Attributes:
        tokenizer: The tokenizer.
        start: The token that the decoder begins with.
        end: The token that ends a target.
        pad: The token at padding.
        size: Tokens of the vocabulary.
        prefix: Text before every source.
    """

    tokenizer: tokenizers.Tokenizer
    start: int
    end: int
    pad: int
    size: int
    prefix: str

    @property
    def source_size(self) -> int:
        """Tokens of the vocabulary of sources."""
        return self.size

    @property
    def target_size(self) -> int:
        """Tokens of the vocabulary of targets."""
        return self.size

    @property
    def digest(self) -> str:
        """A checksum."""
        return digest_of(self.tokenizer)

    def encode_sources(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of sources with the special ones of the tokenizer, int32 [S] each."""
        return self._encoded([self.prefix + text for text in texts])

    def encode_targets(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return the tokens of targets as transformers makes labels: with the special ones of the tokenizer."""
        rows = self._encoded(texts)
        return [row if row[-1:] == [self.end] else np.append(row, np.int32(self.end)) for row in rows]

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of the tokens of a target, without special tokens."""
        return library.decode(self.tokenizer, ids.tolist())

    def source_names(self, ids: np.ndarray) -> list[str]:
        """Return every token of a source as people read it."""
        return Tokenizer("file", self.tokenizer, last=self.end).names(ids)

    def target_names(self, ids: np.ndarray) -> list[str]:
        """Return every token of a target as people read it."""
        return self.source_names(ids)

    def save(self, folder: Path) -> None:
        """Write nothing: the tokenizer is kept with the checkpoint."""

    def _encoded(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(row, np.int32) for row in library.encode(self.tokenizer, texts)]


def new_coder(settings: PairSettings, pairs: Sequence[tuple[str, str]]) -> NewCoder:
    """Return vocabularies made from pairs, or read from a file, as the settings say."""
    sources, targets = zip(*pairs, strict=True)
    kind, size = settings.tokenizer or "bpe", settings.vocab_size
    prefixed = [settings.source_prefix + text for text in sources]
    if settings.separate_vocabularies and kind not in TRAINED:
        raise InputError(f"--separate-vocabularies makes two vocabularies, and {kind} is one: leave it out")
    if settings.separate_vocabularies:
        source, target = (tokenizer_of(kind, texts, size, exactly=False) for texts in (prefixed, targets))
        return NewCoder(source, target, settings.source_prefix)
    shared = tokenizer_of(kind, [*prefixed, *targets], size, exactly=False)
    return NewCoder(shared, shared, settings.source_prefix)


def load_coder(folder: Path, settings: PairSettings) -> NewCoder:
    """Return the vocabularies of a run."""
    sources = load_tokenizer(folder / TOKENIZER)
    separate = (folder / TARGET_TOKENIZER).exists()
    return NewCoder(sources, load_tokenizer(folder / TARGET_TOKENIZER) if separate else sources, settings.source_prefix)


def checkpoint_coder(lm: Pretrained, prefix: str) -> CheckpointCoder:
    """Return the tokenizer of an encoder-decoder.

    Args:
        lm: The checkpoint.
        prefix: Text before every source.

    Raises:
        InputError: It has no tokenizer, or names no token to begin with, to end with or to pad with.
    """
    if lm.tokenizer is None:
        raise InputError("the checkpoint has no tokenizer.json to read texts with: save it with its tokenizer")
    config = lm.generation
    start, ends, pad = config.decoder_start_token_id, config.eos_ids, config.pad_token_id
    for name, value in (("decoder_start_token_id", start), ("eos_token_id", ends or None), ("pad_token_id", pad)):
        if value is None:
            raise InputError(f"the checkpoint names no {name}: add it to its generation_config.json")
    assert start is not None
    assert pad is not None
    return CheckpointCoder(lm.tokenizer, start, ends[0], pad, lm.model.vocab_sizes[1] or 0, prefix)
