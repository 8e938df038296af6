"""The task `tag`: a label for each word of a text, by an encoder or a decoder with a classifier of tokens."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np
import tokenizers

from jaxformer.config import TokenClassifierConfig, TransformerConfig
from jaxformer.data.buckets import Pair
from jaxformer.data.pipeline import IGNORED
from jaxformer.data.rows import RowReader, read_tagged
from jaxformer.errors import InputError
from jaxformer.model import Transformer
from jaxformer.pretrained.heads import TOKENS
from jaxformer.pretrained.tagging import OUTSIDE, Entity, entities_of, split_label
from jaxformer.pretrained.tokens import encodings
from jaxformer.tasks.classification import ClassifyTask, TextCoder, log_probabilities
from jaxformer.tasks.losses import next_token_loss
from jaxformer.tasks.rows import say
from jaxformer.tasks.tagging_settings import TaggingSettings
from jaxformer.tasks.task import EvalResult, InputKind, Output, Split
from jaxformer.training import Loss, cast

Spans = set[tuple[str, int, int]]  # label, first token, token behind the last


@dataclass(frozen=True)
class Tagging(Output):
    """The entities of a text.

    Attributes:
        text: The text.
        entities: Label, text, score and place of each.
    """

    text: str
    entities: list[dict[str, Any]]

    def __str__(self) -> str:
        return "\t".join(f"{each['label']}: {each['text']}" for each in self.entities)


class TagTask(ClassifyTask):
    """Train an encoder, or a checkpoint's decoder, with a classifier of tokens on words with tags."""

    name = "tag"
    defaults = TaggingSettings()
    reads = InputKind("input", "text to tag", truncate=True, piped=True)
    unit = "token"
    head = TOKENS

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return "Train an encoder, or a decoder given by --model, to tell which label each word of a text has."

    # --- data

    @property
    def reader(self) -> RowReader:
        """Reads the words of a file and their tags, each side with spaces between them."""
        return read_tagged

    @cached_property
    def coder(self) -> TextCoder:
        """The tokenizer of the run, which adds no token of its own for a new model."""
        return dataclasses.replace(super().coder, begin=None)

    def labels_in(self, label: str) -> list[str]:
        """Return the tags of a row, and for each B- the I- that the further tokens of a word have."""
        tags = label.split(" ")
        return [*tags, *(f"I-{tag[2:]}" for tag in tags if tag.startswith("B-"))]

    def pairs(self, split: Split) -> list[Pair]:
        """Return texts as tokens, and the numbers of their tags."""
        texts, tags = zip(*self.rows[split], strict=True)
        numbers = {label: number for number, label in enumerate(self.labels)}
        found = encodings(self.coder.backend, texts)
        long = sum(len(encoding.ids) > self.longest for encoding in found)
        if long:
            say(f"{split}: {long:,} of {len(found):,} texts have more than {self.longest} tokens: cut")
            found = encodings(self.coder.backend, texts, limit=self.longest)
        rows = zip(texts, tags, found, strict=True)
        return [
            Pair(ids_of(encoding), token_labels(text, row.split(" "), encoding, numbers))
            for text, row, encoding in rows
        ]

    # --- training

    @property
    def fresh_config(self) -> TransformerConfig:
        """The model that the settings name."""
        config = super().fresh_config
        rate = config.head.dropout  # pyrefly: ignore
        return dataclasses.replace(config, head=TokenClassifierConfig(len(self.labels), dropout=rate))

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the cross-entropy of the tags of the tokens."""
        logits = model(batch["source"], inputs_mask=batch["source_mask"], dropout_key=key)  # [B, S, classes]
        return next_token_loss(logits, batch["labels"])

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return the loss on all validation texts, the accuracy of tokens and the F1 of entities."""
        loss, right, f1, _ = self.measured(cast(model, np.dtype(self.settings.dtype)))
        return {"loss": loss, "accuracy": round(right, 4), "f1": round(f1, 4)}

    def measured(self, model: Transformer) -> tuple[float, float, float, int]:
        """Return loss in nats, accuracy of tokens, F1 of entities and number of tokens, of the validation texts."""
        total, right, count, both, known, told = 0.0, 0, 0, 0, 0, 0
        for batch in self.batches("validation"):
            logs = np.asarray(log_probabilities(model, batch["source"], batch["source_mask"]), np.float64)
            for labels, row in zip(batch["labels"], logs, strict=True):
                real = labels != IGNORED
                labels, row = labels[real], row[real]
                found = row.argmax(axis=1)
                total -= row[np.arange(len(labels)), labels].sum()
                right, count = right + int((found == labels).sum()), count + len(labels)
                ours, theirs = (spans_of([self.labels[each] for each in side]) for side in (found, labels))
                both, known, told = both + len(ours & theirs), known + len(theirs), told + len(ours)
        if not count:
            raise InputError("no validation text has a token with a tag: give others with --validation")
        return total / count, right / count, 2 * both / max(known + told, 1), count

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return loss, accuracy and entity F1 of all validation texts."""
        loss, right, f1, count = self.measured(model)
        line = f"validation, {count:,} tokens: accuracy {right:.1%}, entity F1 {f1:.4f}, loss {loss:.4f} nats"
        metrics = {"validation_tokens": count, "validation_loss": loss, "accuracy": right, "entity_f1": f1}
        return EvalResult(metrics, [line], "")

    # --- use

    def told(self, model: Transformer, text: str, ids: np.ndarray) -> str:
        """Return what the model makes of a text, in a few words."""
        return "  ".join(f"{each.label}: {each.text}" for each in self.entities(model, text)) or "nothing"

    def entities(self, model: Transformer, text: str) -> list[Entity]:
        """Return the entities of a text, cut to the longest that the model reads."""
        (encoding,) = encodings(self.coder.backend, [text], limit=self.longest)
        ids = ids_of(encoding)[None]
        logs = np.asarray(log_probabilities(model, ids, np.ones(ids.shape, bool)))[0]
        return entities_of(text, encoding, np.exp(logs), self.labels)

    def _labelled(self, model: Transformer, texts: Sequence[str], rows: list[np.ndarray]) -> Iterator[list[Tagging]]:
        """Yield the entities of each text."""
        for text in texts:
            found = [each._asdict() | {"score": round(each.score, 4)} for each in self.entities(model, text)]
            yield [Tagging(text, found)]


def ids_of(encoding: tokenizers.Encoding) -> np.ndarray:
    """Return the token ids of an encoding, int32 [S]. Raises InputError where there are none."""
    if not encoding.ids:
        raise InputError("a text has no token that the tokenizer knows: leave it out")
    return np.array(encoding.ids, np.int32)


def token_labels(text: str, tags: Sequence[str], encoding: tokenizers.Encoding, numbers: dict[str, int]) -> np.ndarray:
    """Return the numbers of the tags of tokens, int32 [S]; -100 at special tokens.

    All tokens of a word have its tag, as has the space before it. Behind the first of them, B- becomes I-.

    Args:
        text: Words with spaces between them.
        tags: The tag of each word.
        encoding: The text as tokens.
        numbers: The numbers of tags.
    """
    word_of = np.cumsum([character == " " for character in text])  # the word of each character
    found, before = np.full(len(encoding.ids), IGNORED, np.int32), None
    for token, (special, (start, end)) in enumerate(zip(encoding.special_tokens_mask, encoding.offsets, strict=True)):
        if special or start >= end:
            continue
        word = int(word_of[start])
        begins, label = split_label(tags[word])
        found[token] = numbers[f"I-{label}" if begins and word == before else tags[word]]
        before = word
    return found


def spans_of(tags: Sequence[str]) -> Spans:
    """Return the entities in the tags of tokens."""
    found: Spans = set()
    start, label = 0, OUTSIDE
    for place, tag in enumerate([*tags, OUTSIDE]):
        begins, other = split_label(tag)
        if begins or other != label:
            if label != OUTSIDE:
                found.add((label, start, place))
            start, label = place, other
    return found
