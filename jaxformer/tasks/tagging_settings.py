"""Settings of the task `tag`."""

from dataclasses import dataclass, field
from typing import Annotated

from jaxformer.flags import optional
from jaxformer.tasks.classification_settings import ClassificationSettings
from jaxformer.tasks.row_settings import RowSettings


@dataclass(frozen=True)
class TaggedSettings(RowSettings):
    """The words with tags, and how they are cut into tokens."""

    data: Annotated[str | None, optional("FILE")] = None
    """words with tags to train on: .jsonl with tokens (or words) and tags, two lists of one length, in each line"""
    max_length: int = 128
    """the most tokens of a text; what is beyond is cut off, and counted"""


@dataclass(frozen=True)
class TaggingSettings(ClassificationSettings):
    """Settings of a run on words with tags."""

    text: TaggedSettings = field(default_factory=TaggedSettings)  # pyrefly: ignore
