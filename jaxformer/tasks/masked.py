"""The task `mlm`: encoders that find masked tokens of a text."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import TransformerConfig
from jaxformer.data import Batch, Tokenizer
from jaxformer.data.masking import mask_tokens
from jaxformer.data.pipeline import IGNORED
from jaxformer.errors import InputError
from jaxformer.layers import Head
from jaxformer.model import Transformer
from jaxformer.pretrained import Pretrained
from jaxformer.pretrained.encoders import MASK, mask_token
from jaxformer.tasks.losses import model_loss, next_token_loss
from jaxformer.tasks.masked_settings import MaskedSettings
from jaxformer.tasks.reading import encoder_tokenizer
from jaxformer.tasks.task import AttentionView, EvalResult, InputKind, Output, first_row, forward
from jaxformer.tasks.text import TextTask
from jaxformer.training import Loss, cast
from jaxformer.visualize import Observation

VALIDATION_KEY = 0  # seed of the masks of validation texts: they are the same at every look


@dataclass(frozen=True)
class Filling(Output):
    """A text whose masked tokens a model has filled.

    Attributes:
        text: The text with masks.
        filled: The text with the most likely tokens in their place.
        probability: The product of their probabilities.
    """

    text: str
    filled: str
    probability: float

    def __str__(self) -> str:
        return self.filled


class MaskedLanguageTask(TextTask[MaskedSettings]):
    """Train an encoder to find masked tokens of a text."""

    name = "mlm"
    defaults = MaskedSettings()
    reads = InputKind("input", f"text with {MASK}", truncate=False, piped=True)
    unit = "masked token"

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return "Train an encoder to find masked tokens of a text."

    @classmethod
    def checkpoint_tokenizer(cls, lm: Pretrained) -> Tokenizer:
        """Return the tokenizer of an encoder."""
        return encoder_tokenizer(lm)

    @cached_property
    def mask_id(self) -> int:
        """The mask token: the checkpoint's, or one behind the vocabulary."""
        return self.tokenizer.vocab_size if self.base is None else mask_token(self.base.lm.tokenizer)[1]

    def check_base(self, lm: Pretrained) -> None:
        """Raise InputError for a checkpoint that is no encoder with a head for masked tokens."""
        if lm.model.decoder is not None or not isinstance(lm.model.head, Head):
            name = self.start.model
            raise InputError(f"{name} is no encoder with a head for masked tokens (ForMaskedLM): --task mlm needs one")
        encoder_tokenizer(lm)
        mask_token(lm.tokenizer)
        self.check_context(lm.model.max_source_length)

    @property
    def fresh_config(self) -> TransformerConfig:
        """The model that the settings name as an encoder, for the vocabulary of the text and the mask token."""
        config = self.settings.model.config(self.texts.tokenizer.vocab_size + 1)
        return dataclasses.replace(config, encoder=config.decoder, decoder=None)

    def masked(self, batch: Any, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return inputs, labels and the mask of real tokens, [B, T] each, of a batch of windows."""
        tokenizer, share = self.tokenizer, self.settings.mask_probability
        real = batch["labels"] != IGNORED
        special = (*tokenizer.begin, tokenizer.end)
        size = tokenizer.vocab_size if self.base is None else self.base.lm.model.vocab_sizes[0] or 1
        inputs, labels = mask_tokens(
            key, batch["inputs"], mask_id=self.mask_id, vocab_size=size, special=special, share=share
        )
        # A row of padding alone has no key to attend to.
        return inputs, jnp.where(real, labels, IGNORED), real.at[:, 0].set(True)

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the loss of finding the masked tokens."""
        mask_key, key = (jax.random.key(VALIDATION_KEY), None) if key is None else jax.random.split(key)
        inputs, labels, real = self.masked(jax.tree.map(jnp.asarray, batch), mask_key)
        return model_loss(model, inputs, labels=labels, inputs_mask=real, dropout_key=key)

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return how well a model finds masked tokens of the first batches of the validation text."""
        return self.score(cast(model, jnp.dtype(self.settings.dtype)), self.settings.evaluate_batches)

    def score(self, model: Transformer, count: int | None = None) -> dict[str, Any]:
        """Return the mean loss in nats, and the share of masked tokens that are found, of the validation text.

        Args:
            model: A trained model.
            count: How many batches to take. None: all.
        """
        key, batches = jax.random.key(VALIDATION_KEY), islice(self.batches("validation"), count)
        found = [
            self._sums(model, jax.tree.map(jnp.asarray, batch), jax.random.fold_in(key, number))
            for number, batch in enumerate(batches)
        ]
        loss, right, labels = np.array(found, np.float64).sum(axis=0).tolist()
        if not labels:
            raise InputError("no token of the validation text is masked: give a longer text")
        return {"loss": loss / labels, "accuracy": round(right / labels, 4)}

    @cached_property
    def _sums(self) -> Callable[[Transformer, Batch, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
        """A compiled function (model, batch, key) -> summed loss, tokens that are found, tokens that are masked."""

        def sums(model: Transformer, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            inputs, labels, real = self.masked(batch, key)
            logits = model(inputs, inputs_mask=real)
            _, loss = next_token_loss(logits, labels)
            right = (logits.argmax(-1) == labels) & (labels != IGNORED)
            return loss.mean * loss.labels, right.sum(), loss.labels

        return jax.jit(sums)

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return how well a model finds masked tokens of the whole validation text."""
        found = self.score(model)
        line = f"validation text: {found['accuracy']:.1%} of the masked tokens found, loss {found['loss']:.4f} nats"
        return EvalResult({f"validation_{name}": value for name, value in found.items()}, [line], f'--input "{MASK}"')

    # --- use

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text with masks, int32 [T]. Raises InputError for a text without any."""
        if MASK not in text:
            raise InputError(f"the text has no {MASK} to fill: write it where a token is missing")
        tokenizer, ids = self.tokenizer, [*self.tokenizer.begin]
        for number, part in enumerate(text.split(MASK)):
            ids += [self.mask_id] * bool(number) + tokenizer.encode(part).tolist()
        ids += [tokenizer.end]
        if len(ids) > self.context:
            raise InputError(f"the text has {len(ids)} tokens, and the model reads {self.context}: shorten it")
        return np.array(ids, np.int32)

    def example_inputs(self) -> list[str]:
        """Return the beginning of the validation text, with a mask behind it."""
        return [self.tokenizer.decode(self.texts.validation.tokens[: self.context // 2].tolist()) + MASK]

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Filling]]:
        """Check the texts, then return an iterator over the filled ones."""
        if given := settings.keys() - {"seed", "do_sample"}:
            raise InputError(f"masks are filled with their most likely tokens: leave {sorted(given)[0]} out")
        return self._filled(model, inputs, [self.encode(text) for text in inputs])

    def _filled(self, model: Transformer, texts: Sequence[str], rows: list[np.ndarray]) -> Iterator[list[Filling]]:
        tokenizer = self.tokenizer
        for text, row in zip(texts, rows, strict=True):
            logits = np.asarray(forward(model, row[None]))[0, :, : tokenizer.vocab_size]  # [T, V]
            places = np.flatnonzero(row == self.mask_id)
            shares = np.asarray(jax.nn.softmax(logits[places]))
            filled = row.copy()
            filled[places] = shares.argmax(axis=1)
            inside = filled[len(tokenizer.begin) : -1]
            probability = round(float(shares.max(axis=1).prod()), 4)
            yield [Filling(text, tokenizer.decode(inside.tolist()), probability)]

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Return the attention of a model that reads a text with masks, or one of the validation text."""
        ids = self.encode(text or self.example_inputs()[0])
        observed = forward(model, ids[None], return_intermediates=True)
        names = [MASK if token == self.mask_id else self.tokenizer.names([token])[0] for token in ids.tolist()]
        observation = Observation(
            "encoder", "Self-attention", first_row(observed.encoder.attentions), names, query_label="token"
        )
        ((answer,),) = self._filled(model, [text or ""], [ids])
        return AttentionView(answer.filled, (observation,))
