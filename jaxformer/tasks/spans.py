"""The task `span`: encoder-decoders that write the spans which were taken out of a text, as T5 is trained."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import TransformerConfig
from jaxformer.data import Batch
from jaxformer.data.masking import SpanCounts, corrupt_spans, span_counts
from jaxformer.data.pipeline import IGNORED
from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig, generate
from jaxformer.generation.arrays import until_end
from jaxformer.layers import Head
from jaxformer.model import Transformer
from jaxformer.pretrained import Pretrained
from jaxformer.tasks.losses import model_loss, next_token_loss
from jaxformer.tasks.masked import VALIDATION_KEY, Filling
from jaxformer.tasks.observing import observe_text
from jaxformer.tasks.reading import checkpoint_tokenizer
from jaxformer.tasks.span_settings import SpanSettings
from jaxformer.tasks.task import AttentionView, EvalResult, InputKind
from jaxformer.tasks.text import TextTask
from jaxformer.training import Loss, cast

SENTINEL = "<extra_id_{}>"
FOUND = re.compile(r"<extra_id_(\d+)>")


class SpanTask(TextTask[SpanSettings]):
    """Train an encoder-decoder to write the spans that were taken out of a text."""

    name = "span"
    defaults = SpanSettings()
    reads = InputKind("input", f"text with {SENTINEL.format(0)}", truncate=False, piped=True)

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return "Train a T5 further, to write the spans that were taken out of a text."

    # --- training

    @property
    def fresh_config(self) -> TransformerConfig:
        """No model: there is a task for checkpoints alone."""
        raise InputError("--task span trains a T5 further: give --model, a checkpoint folder")

    def check_base(self, lm: Pretrained) -> None:
        """Raise InputError for a checkpoint that is no encoder-decoder with a head and sentinels."""
        name = self.start.model
        if lm.model.encoder is None or lm.model.decoder is None or not isinstance(lm.model.head, Head):
            raise InputError(f"{name} is no encoder-decoder with a head, such as T5: --task span needs one")
        checkpoint_tokenizer(lm)
        if lm.generation.decoder_start_token_id is None:
            raise InputError(f"{name} names no decoder_start_token_id: add it to its generation_config.json")
        there, spans = len(sentinels_of(lm)), self.counts.spans
        if there < spans:
            raise InputError(
                f"{spans} spans of a window need as many tokens {SENTINEL.format(0)} and so on, and the tokenizer of "
                f"{name} has {there}: lower --context, or raise --mean-span"
            )

    @property
    def context(self) -> int:
        """The tokens of a window before spans are taken out: 512 as in the paper, unless told otherwise."""
        return self.settings.model.context or 512

    @property
    def counts(self) -> SpanCounts:
        """How much is taken out of a window."""
        return span_counts(self.context, self.settings.noise_density, self.settings.mean_span)

    @cached_property
    def sentinels(self) -> np.ndarray:
        """The tokens of sentinels, in order."""
        assert self.base is not None, "the task has no models of its own"
        return np.array(sentinels_of(self.base.lm), np.int32)

    def corrupted(self, batch: Any, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return what the encoder reads [B, S], what the decoder reads, and what it is to write, [B, T] each.

        A window that is not full, at the end of a text, teaches nothing.
        """
        assert self.base is not None, "the task has no models of its own"
        config, tokens = self.base.lm.generation, jnp.asarray(batch["inputs"])
        read, labels = corrupt_spans(
            key, tokens, self.counts, sentinels=jnp.asarray(self.sentinels), end=self.tokenizer.end
        )
        target = jnp.pad(labels[:, :-1], ((0, 0), (1, 0)), constant_values=config.decoder_start_token_id)
        full = (jnp.asarray(batch["labels"]) != IGNORED).all(axis=1, keepdims=True)
        return read, target, jnp.where(full, labels, IGNORED)

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the loss of writing the spans."""
        span_key, key = (jax.random.key(VALIDATION_KEY), None) if key is None else jax.random.split(key)
        read, target, labels = self.corrupted(batch, span_key)
        return model_loss(model, read, target, labels=labels, dropout_key=key)

    def count_tokens(self, batch: Batch) -> int:
        """Return the number of tokens to write, for the speed."""
        return len(batch["inputs"]) * (self.counts.noise + self.counts.spans + 1)

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return how well a model writes the spans of the first batches of the validation text."""
        return self.score(cast(model, jnp.dtype(self.settings.dtype)), self.settings.evaluate_batches)

    def score(self, model: Transformer, count: int | None = None) -> dict[str, Any]:
        """Return the mean loss in nats, and the share of tokens that are right after the right ones before.

        Args:
            model: A trained model.
            count: How many batches of the validation text to take. None: all.
        """
        key, batches = jax.random.key(VALIDATION_KEY), islice(self.batches("validation"), count)
        found = [self._sums(model, batch, jax.random.fold_in(key, number)) for number, batch in enumerate(batches)]
        loss, right, labels = np.array(found, np.float64).sum(axis=0).tolist()
        if not labels:
            raise InputError(f"the validation text has no {self.context} tokens: give a longer one, or lower --context")
        return {"loss": loss / labels, "accuracy": round(right / labels, 4)}

    @cached_property
    def _sums(self) -> Callable[[Transformer, Batch, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        """A compiled function (model, batch, key) -> summed loss, tokens that are right, tokens to write."""

        def sums(model: Transformer, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            read, target, labels = self.corrupted(batch, key)
            logits = model(read, target)
            _, loss = next_token_loss(logits, labels)
            right = (logits.argmax(-1) == labels) & (labels != IGNORED)
            return jnp.where(loss.labels > 0, loss.mean * loss.labels, 0), right.sum(), loss.labels

        return jax.jit(sums)

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return how well a model writes the spans of the whole validation text."""
        found = self.score(model)
        line = f"validation text: {found['accuracy']:.1%} of the tokens of spans right, loss {found['loss']:.4f} nats"
        flags = f'--input "{SENTINEL.format(0)}"'
        return EvalResult({f"validation_{name}": value for name, value in found.items()}, [line], flags)

    # --- use

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text with sentinels, int32 [S]. Raises InputError for a text without any."""
        if not FOUND.search(text):
            raise InputError(f"the text has no {SENTINEL.format(0)} to fill: write it where something is missing")
        assert self.base is not None, "the task has no models of its own"
        return self.base.lm.encode(text)["input_ids"][0]

    def example_inputs(self) -> list[str]:
        """Return the beginning of the validation text, with a sentinel behind it."""
        return [self.tokenizer.decode(self.texts.validation.tokens[:24].tolist()) + SENTINEL.format(0)]

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Filling]]:
        """Check the texts, then return an iterator over the filled ones."""
        assert self.base is not None, "the task has no models of its own"
        config = self.base.lm.generation.replace(**{"max_new_tokens": 64, **settings, "num_return_sequences": 1})
        rows = [self.encode(text) for text in inputs]
        return (self._filled(model, text, row, config) for text, row in zip(inputs, rows, strict=True))

    def _filled(self, model: Transformer, text: str, row: np.ndarray, config: GenerationConfig) -> list[Filling]:
        assert self.base is not None, "the task has no models of its own"
        found = generate(model, row[None], config)
        written = until_end(np.asarray(found.sequences)[0, 1:], config)
        spans: dict[int, list[int]] = {}
        span = -1  # before the first sentinel
        numbers = {token: number for number, token in enumerate(self.sentinels.tolist())}
        for token in written.tolist():
            span = numbers.get(token, span)
            spans.setdefault(span, [])
            if token not in numbers:
                spans[span].append(token)
        decode = self.base.lm.decode
        filled = FOUND.sub(lambda match: decode(spans.get(int(match[1]), [])), text)
        return [Filling(text, filled, round(float(np.exp(found.sequences_scores[0])), 4))]

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Return the attention of a model that fills a text (None: the beginning of the validation text)."""
        assert self.base is not None, "the task has no models of its own"
        text = self.example_inputs()[0] if text is None else text
        return observe_text(dataclasses.replace(self.base.lm, model=model), text)


def sentinels_of(lm: Pretrained) -> list[int]:
    """Return the tokens <extra_id_0>, <extra_id_1> and so on of a tokenizer, as many as follow each other."""
    found: list[int] = []
    while lm.tokenizer is not None:
        token = lm.tokenizer.token_to_id(SENTINEL.format(len(found)))
        if token is None:
            break
        found.append(token)
    return found
