"""Settings of the task `answer`."""

from dataclasses import dataclass, field
from typing import Annotated

from jaxformer.flags import optional
from jaxformer.tasks.classification_settings import ClassificationSettings
from jaxformer.tasks.row_settings import RowSettings


@dataclass(frozen=True)
class AskedSettings(RowSettings):
    """The questions with texts and answers, and how they are cut into tokens."""

    data: Annotated[str | None, optional("FILE")] = None
    """questions to train on: .jsonl as SQuAD has them, with question, context and answers in each line"""
    max_length: int = 384
    """the most tokens of a question with its text; a longer text is read in windows"""


@dataclass(frozen=True)
class AnsweringSettings(ClassificationSettings):
    """Settings of a run on questions."""

    text: AskedSettings = field(default_factory=AskedSettings)  # pyrefly: ignore
