"""The task `lm`: language models on text."""

import dataclasses
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import MoEConfig, TransformerConfig
from jaxformer.data import Batch, Corpus, Process, Tokenizer, windows
from jaxformer.data.examples import kind_of
from jaxformer.data.packing import PackedBatches, Spans, all_packed, spans
from jaxformer.data.pipeline import ALONE
from jaxformer.errors import InputError, listed
from jaxformer.generation import GenerationConfig, generate, stream
from jaxformer.generation.arrays import pad, until_end
from jaxformer.layers import Head
from jaxformer.model import Transformer
from jaxformer.pretrained import Pretrained, as_pretrained, tokens
from jaxformer.tasks.corpora import Texts, read_text
from jaxformer.tasks.examples import read_corpus, read_examples
from jaxformer.tasks.language_settings import LanguageSettings
from jaxformer.tasks.losses import model_loss
from jaxformer.tasks.perplexity import Measure, measure
from jaxformer.tasks.prompts import BATCH, fit_prompt, pieces, room
from jaxformer.tasks.reading import checkpoint_tokenizer
from jaxformer.tasks.rows import say
from jaxformer.tasks.task import AttentionView, EvalResult, InputKind, Output, Split, first_row, forward
from jaxformer.tasks.text import MOST_CONTEXT, TextTask, read_description
from jaxformer.training import Loss, cast, update_router_biases
from jaxformer.visualize import Observation

SAMPLE, PROMPT = 120, 16  # tokens of a sample drawn during training, and of the held-out text that it continues
MANY_TOKENS = 512  # a window of more is read alone
SHOWN = 48  # tokens of the validation text that a model reads to be drawn, where none are given


@dataclass(frozen=True)
class Continuation(Output):
    """A text that a model generated after a prompt.

    Attributes:
        prompt: The prompt.
        continuation: The generated text, without the end token.
        score: Score of the sequence, see `Generated.sequences_scores`, rounded to 4 decimals.
    """

    prompt: str
    continuation: str
    score: float

    def __str__(self) -> str:
        return f"{self.prompt}{self.continuation}\n"


@dataclass(frozen=True)
class Reply(Continuation):
    """The assistant's answer to a message. The attributes are those of a continuation."""

    def __str__(self) -> str:
        return f"{self.prompt}\n-> {self.continuation}\n"


class LanguageTask(TextTask[LanguageSettings]):
    """Train a decoder-only language model on text."""

    name = "lm"
    defaults = LanguageSettings()
    reads = InputKind("prompt", "text to continue", truncate=True, piped=True)

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return "Train a decoder-only language model on text."

    # --- training

    def check_base(self, lm: Pretrained) -> None:
        """Raise InputError for a checkpoint that is no language model, or has fewer positions than the context."""
        if lm.model.encoder is not None or not isinstance(lm.model.head, Head):
            raise InputError(f"{self.start.model} is no decoder-only language model: --task lm needs one")
        checkpoint_tokenizer(lm)
        self.check_context(lm.model.max_length)

    @property
    def fresh_config(self) -> TransformerConfig:
        """The model that the settings name, for the vocabulary of the text."""
        return self.settings.model.config(self.texts.tokenizer.vocab_size)

    @property
    def adjust(self) -> Callable[[Any, Any], Any] | None:
        """The update of the biases of routers, if there are experts and they are trained."""
        if self.start.lora is not None or self.start.freeze or not has_experts(self.config):
            return None
        return partial(update_router_biases, speed=self.settings.balance.router_bias_speed)

    @cached_property
    def chats(self) -> bool:
        """Whether the model is trained on conversations."""
        if self.folder is not None:
            return read_description(self.folder)["chat"]
        text = self.settings.text
        return kind_of(None if text.data is None else Path(text.data), text.field) == "conversations"

    def read(self, tokenizer: Tokenizer | None) -> Texts:
        """Return the text of the settings, or the examples that their file holds."""
        text = self.settings.text
        kind = kind_of(None if text.data is None else Path(text.data), text.field)
        if kind == "text":
            return super().read(tokenizer)
        return read_examples(text, kind, tokenizer, None if self.base is None else self.base.lm)

    @cached_property
    def spans(self) -> dict[Split, Spans]:
        """The examples, cut to the context. Raises InputError where nothing of them is left to learn."""
        found: dict[Split, Spans] = {}
        parts: tuple[tuple[Split, Corpus], ...] = (
            ("train", self.texts.training),
            ("validation", self.texts.validation),
        )
        for split, corpus in parts:
            found[split] = here = spans(corpus, self.context)
            name, count = f"{len(corpus.ends):,} examples for {'training' if split == 'train' else split}", here.empty
            if not len(here.starts):
                raise InputError(f"none of {name} answers within {self.context} tokens: raise --context")
            if here.cut or count:
                say(f"of {name}, {here.cut:,} are cut at {self.context} tokens, and {count:,} left out: no answer fits")
        return found

    def batches(self, split: Split = "train", process: Process = ALONE) -> Iterator[Batch]:
        """Return windows of the text, or rows of packed examples, which have "segment_ids" [B, T] beside."""
        corpus = self.texts.training if split == "train" else self.texts.validation
        if corpus.learned is None:
            return super().batches(split, process)
        shape = (self.context, self.settings.batch_size)
        if split == "train":
            return PackedBatches(corpus, self.spans[split], *shape, seed=self.settings.seed, process=process)
        return map(process.part, all_packed(corpus, self.spans[split], *shape))

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the loss of predicting each next token, and how experts were used."""
        marks = {"segment_ids": batch.get("segment_ids"), "dropout_key": key}
        return model_loss(model, batch["inputs"], labels=batch["labels"], balance=self.settings.balance, **marks)

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return how well a model predicts the first batches of the validation text, and a sample."""
        found = self.validation_loss(model)
        figures = {"loss": found.loss, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
        return {**figures, "sample": self.draw_sample(model)}

    def validation_loss(self, model: Transformer) -> Measure:
        """Return how well a model predicts the first batches of the validation text."""
        batches = islice(self.batches("validation"), self.settings.evaluate_batches)
        return measure(cast(model, jnp.dtype(self.settings.dtype)), self.texts.validation, batches)

    def draw_sample(self, model: Transformer) -> str:
        """Return some of the validation text, of examples the first prompt, continued at temperature 0.8."""
        text, context = self.texts.validation, self.context
        if text.learned is None:
            middle, length = len(text.tokens) // 2, min(PROMPT, context // 2)
            ids, ends = text.tokens[middle : middle + length], None
        else:
            ids, ends = self.first_prompt(text)[-max(1, context // 2) :], list(self.generation.eos_ids)
        prompt = np.asarray(ids, np.int32)[None]  # [1, T]
        limit = min(SAMPLE, context - prompt.shape[1])
        sampling = {"do_sample": True, "temperature": 0.8, "top_k": 0, "seed": self.settings.seed}
        config = GenerationConfig(max_new_tokens=limit, eos_token_id=ends, pad_token_id=self.tokenizer.end, **sampling)
        sequence = generate(model, prompt, config).sequences[0]
        return self.tokenizer.decode([*prompt[0], *until_end(sequence[prompt.shape[1] :], config)])

    def first_prompt(self, examples: Corpus) -> np.ndarray:
        """Return the tokens of the first of the validation examples up to its answer, [T]."""
        assert examples.learned is not None, "of examples"
        start = int(self.spans["validation"].starts[0])
        return examples.tokens[start : start + int(np.argmax(examples.learned[start:]))]

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return how well a model predicts all of the validation text, of examples their answers."""
        found = measure(model, self.texts.validation, self.batches("validation"))
        names = ("tokens", "loss", "perplexity", "bits_per_byte")
        text = self.texts.validation
        answers = "" if text.learned is None else f", the answers of {len(self.spans['validation'].starts):,} examples"
        lines = [f"validation text{answers}:", *(f"  {line}" for line in found.table())]
        metrics = {f"validation_{name}": getattr(found, name) for name in names}
        if text.learned is None:
            return EvalResult(metrics, lines, "--prompt The --temperature 0.8")
        known = "Hello" if self.chats else self.tokenizer.decode(self.first_prompt(text)[len(self.tokenizer.begin) :])
        return EvalResult(metrics, lines, f"--prompt {shlex.quote(known.partition(chr(10))[0][:60])}")

    # --- use

    @property
    def generation(self) -> GenerationConfig:
        """Greedy decoding for half of the context; with a checkpoint, by its own settings."""
        end, half = self.tokenizer.end, max(1, self.context // 2)
        if self.base is not None:
            own = self.base.lm.generation.replace(max_new_tokens=half)
            return own if own.pad_token_id is not None else own.replace(pad_token_id=end)
        return GenerationConfig(max_new_tokens=half, eos_token_id=end, pad_token_id=end, bos_token_id=end)

    def encode(self, text: str) -> np.ndarray:
        """Return the tokens of a prompt, int32 [T]; those of an empty one begin a document.

        A model that was trained on conversations reads it as the user's message of one.

        Raises:
            InputError: The text holds characters or words that the model never saw: they have no token.
        """
        if self.chats:
            lm = None if self.base is None else self.base.lm
            assert lm is not None, "conversations need a checkpoint"
            assert lm.tokenizer is not None, "and one with a tokenizer"
            written = lm.chat([{"role": "user", "content": text}])
            return np.array(tokens.encode(lm.tokenizer, [written], special_tokens=False)[0], np.int32)
        unknown = self.tokenizer.unknown(text)
        if unknown:
            raise InputError(f"the model never saw {listed(map(repr, unknown))}: leave that out")
        tokenizer = self.tokenizer
        ids = np.array([*tokenizer.begin, *tokenizer.encode(text)], np.int32)
        return ids if ids.size else np.array([tokenizer.end], np.int32)

    def example_inputs(self) -> list[str]:
        """Return an empty prompt, which begins a document."""
        return [""]

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Continuation]]:
        """Check the prompts, then return an iterator over the continuations of each, best first."""
        config, rows = self._fitted(inputs, settings, truncate=truncate)
        return self._continuations(model, inputs, rows, config)

    def stream(self, model: Transformer, text: str, *, truncate: bool = False, **settings: Any) -> Iterator[str]:
        """Return a prompt and its continuation, as parts of a text."""
        config, (row,) = self._fitted([text], settings, truncate=truncate)
        parts = (part[0] for part in stream(model, row[None], config))
        begin = f"{text}\n-> " if self.chats else text
        return chain([begin], pieces(lambda ids: self.tokenizer.decode(until_end(ids, config)), parts))

    def _fitted(
        self, inputs: Sequence[str], settings: dict[str, Any], *, truncate: bool
    ) -> tuple[GenerationConfig, list[np.ndarray]]:
        """Return settings, and the tokens of prompts that leave room for what is to be generated.

        Where the settings do not say how much that is: as much as fits, up to half of the context. Rotary positions
        could go on beyond the context, but what a model writes there is no language.
        """
        config, context = self.generation.replace(**settings), self.context
        rows = [self.encode(text) for text in inputs]
        new_tokens = settings.get("max_new_tokens")
        if new_tokens is None:
            new_tokens = room(config.max_new_tokens or 1, rows, context, truncate=truncate)
        rows = [fit_prompt(row, new_tokens, context, truncate=truncate) for row in rows]
        return config.replace(max_new_tokens=new_tokens), rows

    def _continuations(
        self, model: Transformer, inputs: Sequence[str], rows: list[np.ndarray], config: GenerationConfig
    ) -> Iterator[Sequence[Continuation]]:
        copies = config.num_return_sequences
        for first in range(0, len(rows), BATCH):
            batch, mask = pad(rows[first : first + BATCH], max(config.padding, 0), side="left")
            seeds = [config.seed] * len(batch)  # each prompt draws what it would draw alone
            generated = generate(model, batch, config, inputs_mask=mask, seed=seeds)
            new = generated.sequences[:, batch.shape[1] :]
            texts = [self.tokenizer.decode(until_end(ids, config)) for ids in new]
            scores = [round(float(score), 4) for score in generated.sequences_scores]
            make = Reply if self.chats else Continuation
            for index, prompt in enumerate(inputs[first : first + BATCH]):
                part = slice(index * copies, (index + 1) * copies)
                yield [make(prompt, *pair) for pair in zip(texts[part], scores[part], strict=True)]

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Return the attention of a model that reads a text, or the beginning of its validation text."""
        shown = self.texts.validation.tokens[:SHOWN] if text is None else self.encode(text)
        ids = np.asarray(shown, np.int32)
        limit = model.max_length
        if limit is not None and len(ids) > limit:
            raise InputError(f"{len(ids)} tokens exceed the model's {limit} positions: give a shorter text")
        observed = forward(model, ids[None], return_intermediates=True)
        maps, names = first_row(observed.decoder.attentions), self.tokenizer.names(ids)
        observation = Observation("decoder", "Self-attention", maps, names, query_label="token that the model reads")
        return AttentionView(self.tokenizer.decode(ids), (observation,))

    def measure(self, model: Transformer, source: Path, field: str) -> Measure:
        """Return how well a model predicts the text in a file or a folder, in windows of its context.

        Of prompts and conversations it is how well it predicts the answers.
        """
        lm = None if self.base is None else self.base.lm
        return measure_file(model, source, field, self.tokenizer, lm, self.context, self.settings.batch_size)[0]

    def as_pretrained(self, model: Transformer, family: str | None = None) -> Pretrained:
        """Return a model as a checkpoint of a Hugging Face family, see `jaxformer.as_pretrained`."""
        if self.base is not None and family is None:
            return dataclasses.replace(self.base.lm, model=model)
        return as_pretrained(model, self.tokenizer.backend, self.generation, family=family, longest=self.context)


def measure_checkpoint(lm: Pretrained, source: Path, field: str) -> tuple[Measure, int]:
    """Return how well a checkpoint predicts the text in a file or a folder, and the tokens of the windows it reads.

    Args:
        lm: A decoder-only language model.
        source: The text.
        field: Where a line of a .jsonl file has its text.

    Raises:
        InputError: The model is no language model, has no tokenizer, or the text cannot be read.
    """
    if lm.model.encoder is not None or not isinstance(lm.model.head, Head):
        raise InputError("the perplexity is that of decoder-only language models, and this model is none")
    context = min(lm.context or MOST_CONTEXT, MOST_CONTEXT)
    rows = 1 if context > MANY_TOKENS else 8
    return measure_file(lm.model, source, field, checkpoint_tokenizer(lm), lm, context, rows)


def measure_file(
    model: Transformer,
    source: Path,
    field: str,
    tokenizer: Tokenizer,
    lm: Pretrained | None,
    context: int,
    rows: int,
) -> tuple[Measure, int]:
    """Return how well a model predicts a text, or the answers of examples, and the tokens of the windows it reads.

    Args:
        model: The model.
        source: A file or a folder.
        field: Where a line of a .jsonl file has its text.
        tokenizer: Reads it.
        lm: The checkpoint whose chat template writes conversations. None: there is none.
        context: The most tokens of a window; a shorter text is one.
        rows: Windows that are read together.

    Raises:
        InputError: The source cannot be read, or no answer fits into the context.
    """
    kind = kind_of(source, field)
    if kind == "text":
        text = read_text(str(source), source, tokenizer, field)
        context = min(context, max(len(text.tokens) - 1, 1))
        return measure(model, text, windows(text, context, rows)), context
    examples = read_corpus(source, kind, tokenizer, lm)
    parts = spans(examples, context)
    if not len(parts.starts):
        raise InputError(f"none of the examples in {source} answers within {context} tokens")
    if parts.cut or parts.empty:
        say(f"{source}: {parts.cut:,} examples are cut at {context} tokens, {parts.empty:,} left out: no answer fits")
    return measure(model, examples, all_packed(examples, parts, context, rows)), context


def has_experts(config: TransformerConfig) -> bool:
    """Return whether any layer is a mixture of experts."""
    return any(isinstance(block.feed_forward, MoEConfig) for block in config.main.blocks)
