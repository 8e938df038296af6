"""The task `answer`: the part of a text that answers a question, by a checkpoint with a head for answers."""

import json
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxformer.config import TransformerConfig
from jaxformer.data.buckets import Pair
from jaxformer.data.pipeline import IGNORED
from jaxformer.data.questions import Question, agreement, read_questions
from jaxformer.data.rows import RowReader
from jaxformer.errors import InputError, listed
from jaxformer.model import Transformer
from jaxformer.pretrained import Pretrained, with_classifier
from jaxformer.pretrained.answering import Answer, answers_of, windows_of
from jaxformer.pretrained.export import task_of
from jaxformer.pretrained.heads import SPANS
from jaxformer.pretrained.tokens import gives_types
from jaxformer.schema import located, parse_json
from jaxformer.tasks.answering_settings import AnsweringSettings
from jaxformer.tasks.classification import ClassifyTask
from jaxformer.tasks.losses import next_token_loss
from jaxformer.tasks.rows import say
from jaxformer.tasks.task import AttentionView, EvalResult, InputKind, Output, Split, Task
from jaxformer.training import Loss, cast

BOTH = 2  # begin and end, which stand before the types of the tokens in what is learned of a window


@dataclass(frozen=True)
class Answered(Output):
    """The answer to a question.

    Attributes:
        question: The question.
        answer: The part of the text.
        score: Its score.
    """

    question: str
    answer: str
    score: float

    def __str__(self) -> str:
        return self.answer


class AnswerTask(ClassifyTask):
    """Train a checkpoint with a head for answers on questions about texts that have the answers."""

    name = "answer"
    defaults = AnsweringSettings()
    reads = InputKind("input", 'question to answer, as {"question": ..., "context": ...}', piped=True)
    unit = "begin and end"
    head = SPANS

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return "Train a checkpoint, given by --model, to answer questions with a part of a text."

    # --- data

    @property
    def reader(self) -> RowReader:
        """Reads the questions of a file."""
        return read_questions  # pyrefly: ignore

    @cached_property
    def labels(self) -> list[str]:
        """There are none: the two logits of a token are begin and end."""
        return []

    @property
    def questions(self) -> dict[Split, list[Question]]:
        """The questions to train and to validate on."""
        return typing.cast(dict[Split, list[Question]], self.rows)

    def amount(self, pairs: int) -> str:
        """Return how many windows there are to train on, in words."""
        return f"{len(self.rows['train']):,} questions in {pairs:,} windows"

    def pairs(self, split: Split) -> list[Pair]:
        """Return windows of questions with their texts as tokens; begin and end of the answers, and types of tokens."""
        found: list[Pair] = []
        types = self._tells_types
        for number, row in enumerate(self.questions[split]):
            name = f"{split} question {number}"
            for window in windows_of(self.coder.backend, row.question, row.context, self.longest, name):
                begin, end = places_of(window, row.start, row.start + len(row.answers[0]))
                kinds = window.type_ids if types else [0] * len(window.ids)
                found.append(Pair(np.array(window.ids, np.int32), np.array([begin, end, *kinds], np.int32)))
        if split == "train" and all((pair.target[:BOTH] == IGNORED).all() for pair in found):
            raise InputError("no answer is whole in a window of tokens: raise --max-length")
        return found

    @property
    def _tells_types(self) -> bool:
        return self.base is not None and gives_types(self.base.lm.files)

    # --- training

    @property
    def fresh_config(self) -> TransformerConfig:
        """Raise InputError: a model that has not read much answers nothing."""
        raise InputError("--task answer needs --model: a checkpoint, such as BERT")

    def prepared(self, lm: Pretrained) -> Pretrained:
        """Return the checkpoint with a head for answers: its own where it has one."""
        if self.folder is None:
            self.rows  # noqa: B018  # what is wrong with them is said first
        if task_of(lm.model.config) == SPANS:
            return lm
        found, new = with_classifier(lm, [], seed=self.settings.seed, head=SPANS)
        if new and self.folder is None and not self._told:
            self._told = True
            say(f"new weights, to be trained: {listed(new)}")
        return found

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the mean cross-entropy of begins and ends over the tokens of a window."""
        kinds = None
        if model.encoder is not None and (model.config.main.embedding.types or 1) > 1:
            kinds = jnp.maximum(batch["labels"][:, BOTH : BOTH + batch["source"].shape[1]], 0)  # [B, S]
        source, mask = batch["source"], batch["source_mask"]
        logits = model(source, inputs_mask=mask, token_types=kinds, dropout_key=key)  # [B, S, 2]
        return next_token_loss(jnp.moveaxis(logits, 2, 1), batch["labels"][:, :BOTH])

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return the loss on all validation questions, the share of right answers and the F1 of their words."""
        model = cast(model, np.dtype(self.settings.dtype))
        total, count = 0.0, 0
        for batch in self.batches("validation"):
            objective, found = self._validation_loss(model, batch)
            total, count = total + float(objective) * int(found.labels), count + int(found.labels)
        right, f1 = self.measured(model)
        return {"loss": total / max(count, 1), "exact_match": round(right, 4), "f1": round(f1, 4)}

    @cached_property
    def _validation_loss(self) -> Any:
        return jax.jit(lambda model, batch: self.loss(model, batch, None))

    def measured(self, model: Transformer) -> tuple[float, float]:
        """Return the share of validation questions with a right answer, and the mean F1 of words."""
        rows = self.questions["validation"]
        answers = self.answers(model, [(row.question, row.context) for row in rows])
        found = [agreement(answer.text, row.answers) for answer, row in zip(answers, rows, strict=True)]
        return float(np.mean([right for right, _ in found])), float(np.mean([f1 for _, f1 in found]))

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return exact match and F1 of all validation questions, as SQuAD counts them."""
        right, f1 = self.measured(model)
        count = len(self.rows["validation"])
        line = f"validation, {count:,} questions: exact match {right:.1%}, F1 {f1:.4f}"
        return EvalResult({"validation_questions": count, "exact_match": right, "f1": f1}, [line], "")

    # --- use

    def answers(self, model: Transformer, pairs: Sequence[tuple[str, str]]) -> list[Answer]:
        """Return the best answer to each question about its text."""
        found = answers_of(model, self.coder.backend, pairs, types=self._tells_types)
        return [each[0] for each in found]

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a question, int32 [S]. Raises InputError for what is no question with a text."""
        return super().encode(asked(text)[0])

    def example_inputs(self) -> list[str]:
        """Return the first validation questions."""
        rows = self.questions["validation"][:8]
        return [json.dumps({"question": row.question, "context": row.context}, ensure_ascii=False) for row in rows]

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Output]]:
        """Check the questions, then return an iterator over the answer to each."""
        if given := settings.keys() - {"seed", "do_sample"}:
            raise InputError(f"a head for answers generates nothing: leave {listed(sorted(given))} out")
        pairs = [asked(text) for text in inputs]
        rows = zip(pairs, self.answers(model, pairs), strict=True)
        return iter([[Answered(question, found.text, round(found.score, 4))] for (question, _), found in rows])

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Raise InputError: the attention of this task is not drawn."""
        return Task.observe(self, model, text)


def asked(text: str) -> tuple[str, str]:
    """Return the question and the text in an object of JSON. Raises InputError where it has none."""
    with located("the input"):
        row = parse_json(text)
        question, context = row.get("question"), row.get("context")
        if not (isinstance(question, str) and isinstance(context, str)):
            raise InputError('must have "question" and "context", two texts')
        return question, context


def places_of(window: tokenizers.Encoding, start: int, end: int) -> tuple[int, int]:
    """Return the first and the last token of an answer in a window.

    Where the answer is not whole in it, both are the first token if that is special, else -100, which does not count.

    Args:
        window: A question and a part of its text as tokens.
        start: Place of the answer's first character in the text.
        end: Place behind its last character.
    """
    inside = [token for token, sequence in enumerate(window.sequence_ids) if sequence == 1]
    touched = [token for token in inside if window.offsets[token][0] < end and window.offsets[token][1] > start]
    whole = touched and window.offsets[inside[0]][0] <= start and window.offsets[inside[-1]][1] >= end
    if whole:
        return touched[0], touched[-1]
    return (0, 0) if window.special_tokens_mask[0] else (IGNORED, IGNORED)
