"""What tasks on running text have in common: their tokenizer, their windows, knowing the text again."""

import json
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from jaxformer import presets, schema
from jaxformer.config import TransformerConfig
from jaxformer.data import Batch, Corpus, Process, Tokenizer, load_tokenizer, text_batches, windows
from jaxformer.data.pipeline import ALONE
from jaxformer.errors import InputError
from jaxformer.pretrained import TOKENIZER, Pretrained
from jaxformer.tasks.corpora import Texts, read_texts
from jaxformer.tasks.finetuning import FineTuningTask
from jaxformer.tasks.language_settings import LanguageSettings
from jaxformer.tasks.reading import checkpoint_tokenizer
from jaxformer.tasks.task import Split
from jaxformer.training import replace_text

TEXT = "text.json"  # in the folder of a run
MOST_CONTEXT = 1024  # of a checkpoint, unless told otherwise
S = TypeVar("S", bound=LanguageSettings)


class TextTask(FineTuningTask[S]):
    """A task on windows of running text."""

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run. Raises InputError if it is not the one that the model was trained with."""
        if self.folder is None:
            return self.texts.tokenizer
        own = None if self.base is None else self.checkpoint_tokenizer(self.base.lm)
        tokenizer = own or load_tokenizer(self.folder / TOKENIZER)
        if tokenizer.digest != read_description(self.folder)["tokenizer"]:
            wrong = f"{self.folder / TOKENIZER} is not the tokenizer that the model was trained with"
            raise InputError(f"{wrong}: put that back")
        return tokenizer

    @cached_property
    def texts(self) -> Texts:
        """The tokenizer, and the text as it reads it."""
        if self.folder is not None:
            return self.read(self.tokenizer)
        return self.read(None if self.base is None else self.checkpoint_tokenizer(self.base.lm))

    def read(self, tokenizer: Tokenizer | None) -> Texts:
        """Return the text of the settings, read by a tokenizer (None: by the one that the settings ask for)."""
        return read_texts(self.settings.text, tokenizer)

    @property
    def chats(self) -> bool:
        """Whether the model is trained on conversations."""
        return False

    @classmethod
    def checkpoint_tokenizer(cls, lm: Pretrained) -> Tokenizer:
        """Return the tokenizer of a checkpoint. Raises InputError where it cannot separate documents."""
        return checkpoint_tokenizer(lm)

    @property
    def context(self) -> int:
        """The tokens that the model looks back on in training."""
        model = self.settings.model
        if self.base is None or model.context is not None:
            return model.length
        return min(self.base.lm.context or MOST_CONTEXT, MOST_CONTEXT)

    def check_context(self, limit: int | None) -> None:
        """Raise InputError for a context of more positions than a checkpoint has."""
        context = self.settings.model.context
        if context is not None and limit is not None and context > limit:
            raise InputError(f"--context {context} exceeds the {limit} positions of {self.start.model}")

    def batches(self, split: Split = "train", process: Process = ALONE) -> Iterator[Batch]:
        """Return windows of the text: "inputs", and "labels" one token further, both [B, T]."""
        length, rows = self.context, self.settings.batch_size
        if split == "train":
            return text_batches(self.texts.training, length, rows, self.settings.seed, process)
        return map(process.part, windows(self.texts.validation, length, rows))

    def changed_data(self) -> list[str]:
        """Return which of tokenizer, text and validation text changed since the run in `folder` began."""
        assert self.folder is not None, "of a run that has begun"
        before, names = read_description(self.folder), {"validation": "validation text"}
        now = self._checksums().items()
        return [names.get(name, name) for name, value in now if before[name] not in (value, None)]

    def save(self, folder: Path) -> None:
        """Write the tokenizer, the checksums of tokenizer and text, and the checkpoint without its weights."""
        super().save(folder)
        if self.base is None:
            replace_text(folder / TOKENIZER, self.texts.tokenizer.to_json())
        replace_text(folder / TEXT, json.dumps(self._checksums() | {"chat": self.chats}) + "\n")

    def _checksums(self) -> dict[str, Any]:
        texts = self.texts
        parts = {"text": checksum(texts.training), "validation": checksum(texts.validation)}
        return {"tokenizer": texts.tokenizer.digest, **parts}

    @property
    def config(self) -> TransformerConfig:
        """The model to train."""
        config = super().config
        return presets.rematerialised(config) if self.settings.model.rematerialize else config

    @property
    def row_tokens(self) -> int:
        """The tokens of a window."""
        return self.context

    @property
    def evaluate_every(self) -> int:
        """Steps between looks at the validation text."""
        return self.settings.evaluate_every


def checksum(text: Corpus) -> int:
    """Return a number that another text, or other parts of it to learn, would not have."""
    found = zlib.crc32(text.tokens.tobytes())
    return found if text.learned is None else zlib.crc32(text.learned.tobytes(), found)


def read_description(folder: Path) -> dict[str, Any]:
    """Return the checksums of the tokenizer and the text of a run. Raises InputError if they cannot be read."""
    path = folder / TEXT
    description = schema.load_json(path)
    with schema.located(path):
        schema.require(description, "tokenizer", "text")
        crc = schema.integer(0, 0, 2**32 - 1)
        fields = {"tokenizer": schema.text(""), "text": crc, "chat": schema.flag(False)}
        return schema.read(description, fields | {"validation": schema.integer(None, 0, 2**32 - 1)})
