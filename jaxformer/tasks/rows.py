"""What tasks on rows of a file have in common: reading them, holding some out, knowing them again."""

import json
import sys
import zlib
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jaxformer import schema
from jaxformer.data.rows import RowReader
from jaxformer.errors import InputError
from jaxformer.tasks.finetuning import FineTuningTask
from jaxformer.tasks.row_settings import RowSettings
from jaxformer.tasks.settings import TrainSettings
from jaxformer.tasks.task import Split
from jaxformer.training import replace_text

DATA = "rows.json"  # in the folder of a run
FEWEST, SHARE, MOST = 2, 20, 1000  # rows at all; every twentieth one is for validation, up to so many
BATCH = 32  # texts that are read together where nothing is trained
S = TypeVar("S", bound=TrainSettings)
Row = tuple[str, str]


class Coder(Protocol):
    """Vocabularies of a run."""

    @property
    def digest(self) -> str:
        """A checksum."""
        ...

    def save(self, folder: Path) -> None:
        """Write the vocabularies into the folder of a run."""
        ...


class RowTask(FineTuningTask[S]):
    """A task on rows of two texts. Its settings have the field `text`, of `RowSettings`."""

    @property
    @abstractmethod
    def reader(self) -> RowReader:
        """Reads the rows of a file."""

    @property
    @abstractmethod
    def coder(self) -> Coder:
        """The vocabularies of the run. Raises InputError if they are not those that the model was trained with."""

    @property
    def text(self) -> RowSettings:
        """The settings of the rows."""
        return self.settings.text  # pyrefly: ignore

    @cached_property
    def rows(self) -> dict[Split, list[Row]]:
        """The rows to train and to validate on."""
        text = self.text
        if text.data is None:
            raise InputError(f"--task {self.name} needs --data: a .tsv or .jsonl file")
        rows = self.reader(Path(text.data), skip_bad=text.skip_bad, say=say)
        if text.validation is not None:
            return {"train": rows, "validation": self.reader(Path(text.validation), skip_bad=text.skip_bad, say=say)}
        if len(rows) < FEWEST:
            raise InputError(f"{text.data} has one row: give more, or others to validate on with --validation")
        held = set(range(0, len(rows), max(SHARE, len(rows) // MOST + 1)))
        return {
            "train": [row for index, row in enumerate(rows) if index not in held],
            "validation": [rows[index] for index in sorted(held)],
        }

    def begun_with(self, coder: Coder) -> None:
        """Raise InputError for another vocabulary than that of the run in `folder`."""
        assert self.folder is not None, "of a run that has begun"
        if coder.digest != read_about(self.folder)["tokenizer"]:
            raise InputError(f"the tokenizer in {self.folder} is not the one that the model was trained with")

    def changed_data(self) -> list[str]:
        """Return which rows changed since the run in `folder` began."""
        assert self.folder is not None, "of a run that has begun"
        before, names = read_about(self.folder), {"rows": "training rows", "validation": "validation rows"}
        return [names[name] for name, value in self._checksums().items() if before[name] not in (value, None)]

    def save(self, folder: Path) -> None:
        """Write the vocabularies, the checksums of vocabularies and rows, and what is kept of a checkpoint."""
        super().save(folder)
        if self.base is None:
            self.coder.save(folder)
        about = {"tokenizer": self.coder.digest, **self._checksums()}
        replace_text(folder / DATA, json.dumps(about) + "\n")

    def _checksums(self) -> dict[str, int]:
        parts: dict[str, Split] = {"rows": "train", "validation": "validation"}
        return {name: zlib.crc32(json.dumps(self.rows[split]).encode()) for name, split in parts.items()}


def read_about(folder: Path) -> dict[str, Any]:
    """Return the checksums of the vocabularies and the rows of a run. Raises InputError if they cannot be read."""
    about = schema.load_json(folder / DATA)
    with schema.located(folder / DATA):
        schema.require(about, "tokenizer", "rows")
        checksums = {"rows": schema.integer(0, 0, 2**32 - 1), "validation": schema.integer(None, 0, 2**32 - 1)}
        return schema.read(about, {"tokenizer": schema.text(""), **checksums})


def say(line: str) -> None:
    """Tell people something that is no result."""
    print(line, file=sys.stderr)
