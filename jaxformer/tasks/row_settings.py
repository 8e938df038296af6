"""Settings of tasks whose data are rows of a file: pairs of texts, texts with labels."""

from dataclasses import dataclass
from typing import Annotated

from jaxformer import schema
from jaxformer.flags import optional


@dataclass(frozen=True)
class RowSettings:
    """The rows, and how their texts are cut into tokens."""

    data: Annotated[str | None, optional("FILE")] = None
    """rows to train on: .tsv or .jsonl"""
    validation: Annotated[str | None, optional("FILE")] = None
    """rows to validate on (default: every twentieth row of --data, at most 1,000)"""
    skip_bad: bool = False
    """go on without the lines that are no such row"""
    tokenizer: Annotated[str | None, optional("char|word|bpe|PATH")] = None
    """characters, words or byte-level BPE, found in the texts; or a tokenizer.json (default: bpe, or --model's)"""
    vocab_size: int = 8000
    """the most tokens of a vocabulary that is made from the texts"""
    max_length: int = 128
    """the most tokens of a text"""

    def __post_init__(self) -> None:
        """Raise InputError for lengths and sizes below 1."""
        schema.check_range("--max-length", self.max_length, 2)
        schema.check_range("--vocab-size", self.vocab_size, 1)
