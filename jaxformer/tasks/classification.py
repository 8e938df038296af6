"""The task `classify`: a label for a text, by an encoder or a decoder with a classifier."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxformer import presets, schema
from jaxformer.config import ClassifierConfig, TransformerConfig
from jaxformer.data import Batch, Process, Tokenizer, load_tokenizer
from jaxformer.data.buckets import Buckets, Pair, PairBatches, all_batches, bucket
from jaxformer.data.pipeline import ALONE, IGNORED
from jaxformer.data.rows import RowReader, read_labelled
from jaxformer.errors import InputError, listed
from jaxformer.model import Transformer
from jaxformer.pretrained import TOKENIZER, Pretrained, lora, save_pretrained, with_classifier
from jaxformer.pretrained.arguments import lacks_end
from jaxformer.pretrained.classifying import head_modules
from jaxformer.pretrained.encoders import longest_input
from jaxformer.pretrained.export import task_of
from jaxformer.pretrained.heads import SEQUENCES
from jaxformer.pretrained.tokens import encode
from jaxformer.tasks.classification_settings import ClassificationSettings
from jaxformer.tasks.corpora import tokenizer_of
from jaxformer.tasks.finetuning import MODEL, as_adapter
from jaxformer.tasks.losses import next_token_loss
from jaxformer.tasks.reading import digest_of
from jaxformer.tasks.rows import BATCH, RowTask, say
from jaxformer.tasks.task import AttentionView, EvalResult, InputKind, Output, Split, first_row, forward
from jaxformer.training import Loss, cast, replace_text
from jaxformer.visualize import Observation

LABELS = "labels.json"  # in the folder of a run
MOST_LABELS = 10_000
SIZES = {"layers": 4, "dim": 128, "heads": 4, "dropout": 0.1}


@dataclass(frozen=True)
class Classification(Output):
    """The most likely label of a text.

    Attributes:
        text: The text.
        label: The label.
        probability: Its probability.
    """

    text: str
    label: str
    probability: float

    def __str__(self) -> str:
        return f"{self.text}\n-> {self.label} ({self.probability:.1%})\n"


@dataclass(frozen=True, eq=False)
class TextCoder:
    """Turn texts into tokens for a classifier.

    Attributes:
        backend: The tokenizer.
        begin: The token before every text, whose state a new encoder classifies. None: the tokenizer adds its own ones.
        pad: The token at padding.
    """

    backend: tokenizers.Tokenizer
    begin: int | None
    pad: int

    @property
    def digest(self) -> str:
        """A checksum."""
        return digest_of(self.backend)

    def encode(self, texts: Sequence[str], limit: int | None = None) -> list[np.ndarray]:
        """Return the tokens of texts, int32 [S] each, of at most `limit` tokens."""
        if self.begin is None:
            return [np.array(row, np.int32) for row in encode(self.backend, texts, limit=limit)]
        rows = [[self.begin, *row] for row in encode(self.backend, texts, special_tokens=False)]
        return [np.array(row[:limit], np.int32) for row in rows]

    def save(self, folder: Path) -> None:
        """Write the vocabulary into the folder of a run."""
        replace_text(folder / TOKENIZER, self.backend.to_str(pretty=True) + "\n")


class ClassifyTask(RowTask[ClassificationSettings]):
    """Train an encoder, or a checkpoint's decoder, with a classifier on texts with labels."""

    name = "classify"
    defaults = ClassificationSettings()
    reads = InputKind("input", "text to classify", truncate=True, piped=True)
    unit = "text"
    head = SEQUENCES  # what is classified, by the end of the name of a class of transformers

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return "Train an encoder, or a decoder given by --model, to tell which label a text has."

    # --- data

    @property
    def reader(self) -> RowReader:
        """Reads the texts of a file and their labels."""
        return read_labelled

    @cached_property
    def coder(self) -> TextCoder:
        """The tokenizer of the run. Raises InputError if it is not the one that the model was trained with."""
        if self.base is not None:
            assert self.base.lm.tokenizer is not None, "checked before"
            return TextCoder(self.base.lm.tokenizer, None, max(self.base.lm.generation.padding, 0))
        if self.folder is None:
            made = self._new_tokenizer()
            return TextCoder(made.backend, made.end, made.end)
        kept = load_tokenizer(self.folder / TOKENIZER)
        coder = TextCoder(kept.backend, kept.end, kept.end)
        self.begun_with(coder)
        return coder

    def _new_tokenizer(self) -> Tokenizer:
        texts = [text for text, _ in self.rows["train"]]
        return tokenizer_of(self.text.tokenizer or "bpe", texts, self.text.vocab_size, exactly=False)

    @cached_property
    def labels(self) -> list[str]:
        """The labels of the training texts in the order of their numbers. Raises InputError for a single one."""
        if self.folder is not None:
            labels = schema.load_json(self.folder / LABELS).get("labels")
            if not (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)):
                raise InputError(f'{self.folder / LABELS}: "labels" must be a list of texts')
            return labels
        found = sorted(self._labels_of("train"), key=lambda label: (label.isdecimal() and int(label), label))
        if not 1 < len(found) <= MOST_LABELS:
            raise InputError(f"{self.text.data} has {len(found):,} labels: a classifier needs 2 to {MOST_LABELS:,}")
        if foreign := self._labels_of("validation").difference(found):
            names = listed([schema.shown(label) for label in sorted(foreign)])
            raise InputError(f"no training text has the labels {names} of validation texts")
        return found

    def _labels_of(self, split: Split) -> set[str]:
        return {each for _, label in self.rows[split] for each in self.labels_in(label)}

    def labels_in(self, label: str) -> list[str]:
        """Return the labels in the second column of a row."""
        return [label]

    def save(self, folder: Path) -> None:
        """Write labels, vocabulary and checksums, and what is kept of a checkpoint."""
        super().save(folder)
        replace_text(folder / LABELS, json.dumps({"labels": self.labels}, ensure_ascii=False) + "\n")

    @cached_property
    def longest(self) -> int:
        """The most tokens of a text: those of the settings, and of the checkpoint's positions."""
        limit = None if self.base is None else longest_input(self.base.lm.model)
        return self.text.max_length if limit is None else min(self.text.max_length, limit)

    def pairs(self, split: Split) -> list[Pair]:
        """Return texts as tokens, and the numbers of their labels."""
        texts, labels = zip(*self.rows[split], strict=True)
        numbers = {label: number for number, label in enumerate(self.labels)}
        rows = self.coder.encode(texts)
        long = sum(len(row) > self.longest for row in rows)
        if long:
            say(f"{split}: {long:,} of {len(rows):,} texts have more than {self.longest} tokens: cut")
            rows = self.coder.encode(texts, self.longest)
        return [Pair(row, np.array([numbers[label]], np.int32)) for row, label in zip(rows, labels, strict=True)]

    def amount(self, pairs: int) -> str:
        """Return how much there is to train on, in words."""
        return f"{pairs:,} texts of {len(self.labels)} labels"

    @cached_property
    def training_pairs(self) -> tuple[list[Pair], Buckets]:
        """The training texts, and their buckets."""
        settings, pairs = self.settings, self.pairs("train")
        self.validation_pairs  # noqa: B018  # what is wrong with them is said before training
        buckets = bucket(pairs, tokens=None, rows=settings.batch_size, multiple=settings.accumulate)
        shapes = ", ".join(f"{shape.rows} x {shape.source}" for shape in buckets.shapes)
        say(f"{self.amount(len(pairs))} in batches of {len(buckets.shapes)} shapes, texts x tokens: {shapes}")
        return pairs, buckets

    @cached_property
    def validation_pairs(self) -> list[Pair]:
        """The validation texts."""
        return self.pairs("validation")

    def batches(self, split: Split = "train", process: Process = ALONE) -> Iterator[Batch]:
        """Return batches of texts: "source" [B, S], "source_mask", and "labels" [B, 1], -100 where there is no text."""
        around = {"start": 0, "pad": self.coder.pad}
        if split == "train":
            return PairBatches(*self.training_pairs, self.settings.seed, **around, process=process)
        pairs = self.validation_pairs
        return map(process.part, all_batches(pairs, bucket(pairs, tokens=None, rows=BATCH), **around))

    # --- training

    @property
    def fresh_config(self) -> TransformerConfig:
        """The model that the settings name."""
        sizes = {name: getattr(self.settings.model, name) for name in SIZES}
        sizes = {name: SIZES[name] if value is None else value for name, value in sizes.items()}
        size = self.coder.backend.get_vocab_size()
        config = presets.encoder_only(size, length=self.text.max_length, **sizes)  # pyrefly: ignore
        return dataclasses.replace(config, head=ClassifierConfig(len(self.labels), dropout=sizes["dropout"]))

    def check_base(self, lm: Pretrained) -> None:
        """Raise InputError for a checkpoint without a tokenizer."""
        if lm.tokenizer is None:
            raise InputError("the checkpoint has no tokenizer.json to read texts with: save it with its tokenizer")

    _told = False  # which weights are new

    def prepared(self, lm: Pretrained) -> Pretrained:
        """Return the checkpoint with a classifier of the labels: its own where it has one of them."""
        if task_of(lm.model.config) == self.head and set(self.labels) == set(lm.labels):
            self.labels = lm.labels
            if lm.kind_of_scores == "one":  # else its own is trained, but for one right label
                return lm
        found, new = with_classifier(lm, self.labels, seed=self.settings.seed, head=self.head)
        assert lm.tokenizer is not None, "checked before"
        if (token := lacks_end(found.model, encode(lm.tokenizer, ["a"])[0])) is not None:
            raise InputError(f"the tokenizer ends no text with token {token}, which this classifier reads")
        if new and self.folder is None and not self._told:
            self._told = True
            say(f"new weights, to be trained: {listed(new)}")
        return found

    def adapters(self, lm: Pretrained) -> lora.LoraConfig:
        """Return the settings of adapters, beside which the classifier is trained as a whole."""
        return dataclasses.replace(self.start.adapters, modules_to_save=head_modules(lm))

    def export(self, folder: Path, params: Any, model: Transformer) -> list[str]:
        """Write the model as transformers opens it, and the adapter as peft does."""
        lines = super().export(folder, params, model)
        if self.base is not None and self.start.lora is not None:
            # Into the checkpoint's own weights: those of the run may be of 8 bits.
            merged = lora.merge(self.prepared(self.base.open()), as_adapter(self._adapted[1], params))
            save_pretrained(merged, folder / MODEL)
            lines.append(f"model: {folder / MODEL}, with the adapter in its weights")
        return lines

    @property
    def evaluate_every(self) -> int:
        """Steps between looks at the validation texts."""
        return self.settings.evaluate_every

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the cross-entropy of the labels."""
        logits = model(batch["source"], inputs_mask=batch["source_mask"], dropout_key=key)  # [B, classes]
        return next_token_loss(logits[:, None], batch["labels"])

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return the loss on all validation texts, accuracy and F1."""
        model = cast(model, np.dtype(self.settings.dtype))
        loss, confusion = self.confusion(model)
        return {"loss": loss, "accuracy": round(accuracy(confusion), 4), "f1": round(macro_f1(confusion), 4)}

    def confusion(self, model: Transformer) -> tuple[float, np.ndarray]:
        """Return the mean loss of the validation texts in nats, and how many of each label got each: [label, found]."""
        count, total = len(self.labels), 0.0
        confusion = np.zeros((count, count), np.int64)
        for batch in self.batches("validation"):
            labels = batch["labels"][:, 0]
            real = labels != IGNORED
            logs = np.asarray(log_probabilities(model, batch["source"], batch["source_mask"]), np.float64)[real]
            total -= logs[np.arange(len(logs)), labels[real]].sum()
            np.add.at(confusion, (labels[real], logs.argmax(axis=1)), 1)
        return total / confusion.sum(), confusion

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return loss, accuracy, macro F1 and the confusion matrix of all validation texts."""
        loss, confusion = self.confusion(model)
        right, f1 = accuracy(confusion), macro_f1(confusion)
        count = int(confusion.sum())
        line = f"validation, {count:,} texts: accuracy {right:.1%}, macro F1 {f1:.4f}, loss {loss:.4f} nats"
        metrics = {"validation_texts": count, "validation_loss": loss, "accuracy": right, "macro_f1": f1}
        return EvalResult(metrics, [line, *confusion_lines(self.labels, confusion)], "")

    # --- use

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Return the attention of a model that reads a text (None: the first validation text)."""
        text = self.example_inputs()[0] if text is None else text
        (ids,) = self.coder.encode([text], self.longest)
        observed = forward(model, ids[None], return_intermediates=True)
        stack, side = (observed.decoder, "decoder") if model.encoder is None else (observed.encoder, "encoder")
        names = Tokenizer("file", self.coder.backend).names(ids)
        maps = first_row(stack.attentions)
        answer = f"{text}  ->  {self.told(model, text, ids)}"
        return AttentionView(answer, (Observation(side, "Self-attention", maps, names, query_label="token"),))

    def told(self, model: Transformer, text: str, ids: np.ndarray) -> str:
        """Return what the model makes of a text, in a few words."""
        ((found,),) = self._labelled(model, [text], [ids])
        return f"{found.label} ({found.probability:.1%})"

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text, int32 [S]."""
        return self.coder.encode([text])[0]

    def example_inputs(self) -> list[str]:
        """Return the first validation texts."""
        return [text for text, _ in self.rows["validation"][:8]]

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Output]]:
        """Check the texts, then return an iterator over the label of each."""
        if given := settings.keys() - {"seed", "do_sample"}:
            raise InputError(f"a classifier generates nothing: leave {listed(sorted(given))} out")
        rows = self.coder.encode(inputs)
        for text, row in zip(inputs, rows, strict=True):
            if len(row) > self.longest and not truncate:
                raise InputError(
                    f"{schema.shown(text)} has {len(row)} tokens, and the model was trained with at most "
                    f"{self.longest}: shorten it, or --truncate"
                )
        return self._labelled(model, inputs, self.coder.encode(inputs, self.longest))

    def _labelled(self, model: Transformer, texts: Sequence[str], rows: list[np.ndarray]) -> Iterator[list[Any]]:
        """Classify texts of like lengths together, and yield their labels in the order of the texts."""
        pairs = [Pair(row, np.array([index], np.int32)) for index, row in enumerate(rows)]
        found: dict[int, Classification] = {}
        for batch in all_batches(pairs, bucket(pairs, tokens=None, rows=BATCH), start=0, pad=self.coder.pad):
            logs = np.asarray(log_probabilities(model, batch["source"], batch["source_mask"]))
            for index, log in zip(batch["labels"][:, 0].tolist(), logs, strict=True):
                if index != IGNORED:
                    best = int(log.argmax())
                    found[index] = Classification(texts[index], self.labels[best], round(float(np.exp(log[best])), 4))
        return iter([found[index]] for index in range(len(texts)))


@jax.jit
def log_probabilities(model: Transformer, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the logarithms of the probabilities of the classes [B, classes] of texts [B, S]."""
    return jax.nn.log_softmax(jnp.asarray(model(tokens, inputs_mask=mask), jnp.float32))


def accuracy(confusion: np.ndarray) -> float:
    """Return the share of texts that got their label, of a matrix [label, found]."""
    return float(np.trace(confusion) / confusion.sum())


def macro_f1(confusion: np.ndarray) -> float:
    """Return the mean F1 over labels, of a matrix [label, found]; labels that neither occur nor are found do not count.

    F1 is 2 true / (occurrences + findings), the harmonic mean of precision and recall.
    """
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    known = total > 0
    return float(np.mean(2 * np.diag(confusion)[known] / total[known]))


def confusion_lines(labels: Sequence[str], confusion: np.ndarray, most: int = 12) -> list[str]:
    """Return the matrix [label, found] as lines; of more labels than `most`, the pairs that were confused most."""
    if len(labels) > most:
        wrong = confusion - np.diag(np.diag(confusion))
        order = np.argsort(wrong, axis=None)[::-1][:5]
        pairs = [divmod(int(place), len(labels)) for place in order if wrong.flat[place]]
        return [f"  {wrong[own, other]:,} of {labels[own]} were taken for {labels[other]}" for own, other in pairs]
    names = [label if len(label) <= 16 else f"{label[:15]}…" for label in labels]
    width = max(len(name) for name in (*names, "label"))
    head = f"  {'label':{width}}  found: " + "  ".join(f"{name:>6}" for name in names)
    rows = [
        f"  {name:{width}}         "
        + "  ".join(f"{n:>{max(6, len(other))},}" for n, other in zip(row, names, strict=True))
        for name, row in zip(names, confusion.tolist(), strict=True)
    ]
    return [head, *rows]
