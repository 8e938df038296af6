"""Training language models on text."""

import json
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from jaxformer import presets, schema
from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.kind import Kind, Outcome, Prepared, Run, check_settings, predicting
from jaxformer.config import MoEConfig, TransformerConfig
from jaxformer.data import (
    Corpus,
    Tokenizer,
    documents,
    load_tokenizer,
    open_corpus,
    split_corpus,
    text_batches,
    train_tokenizer,
    windows,
)
from jaxformer.data.pipeline import IGNORED
from jaxformer.errors import InputError, listed
from jaxformer.generation import GenerationConfig, generate
from jaxformer.model import Transformer, abstract_model
from jaxformer.ops import Routing, token_cross_entropy
from jaxformer.training import BalanceConfig, OptimizerConfig, cast, replace_text, update_router_biases

TOKENIZER, TEXT = "tokenizer.json", "text.json"
TRAINED = ("char", "word", "bpe")
MAX_CONTEXT = 1 << 20
SAMPLE, PROMPT = 120, 16  # tokens of a sample drawn during training, and of the held-out text that it continues
# The context that each model is trained with unless told otherwise, and its configuration.
MODELS: dict[str, tuple[int, Callable[[int, int, float], TransformerConfig]]] = {
    "tiny": (64, presets.tiny),
    "small": (256, presets.small),
    "small-modern": (256, lambda vocab_size, _, dropout: presets.small_modern(vocab_size, dropout)),
    "gpt2": (1024, presets.gpt2),
    "deepseek-tiny": (128, lambda vocab_size, _, dropout: presets.deepseek_tiny(vocab_size, dropout)),
}


@dataclass(frozen=True)
class TextSettings:
    """The text, and how it is cut into tokens."""

    data: Annotated[str | None, terminal.optional("PATH")] = None
    """text file, folder of text files, or .jsonl (default: the language reference that comes with Python)"""
    field: str = "text"
    """where a line of a .jsonl file has its text"""
    validation: Annotated[str | None, terminal.optional("PATH")] = None
    """text to validate on (default: the last tenth of the documents, or of the text)"""
    tokenizer: Annotated[str, tyro.conf.arg(metavar="char|word|bpe|PATH")] = "char"
    """characters, words or byte-level BPE, found in the text; or a tokenizer.json"""
    vocab_size: int = 4096
    """the most tokens of a vocabulary that is made from the text"""


@dataclass(frozen=True)
class LanguageModelSettings:
    """The model."""

    preset: Literal["tiny", "small", "small-modern", "gpt2", "deepseek-tiny"] = "tiny"
    """layers x width: 2 x 128, 6 x 384, 6 x 384 with rotary positions and SwiGLU, 12 x 768, 4 x 160 with experts"""
    context: Annotated[int | None, terminal.optional("INT")] = None
    """how many tokens the model looks back on (default: 64 of tiny, 1024 of gpt2, 128 of deepseek-tiny, else 256)"""
    dropout: float = 0.0
    """dropout rate on embeddings, sub-layers and attention weights"""
    rematerialise: bool = False
    """compute each block twice instead of storing what is inside it: slower, in less memory"""

    def __post_init__(self) -> None:
        """Refuse a context without anything to predict from."""
        schema.check_range("--context", self.length, 2, MAX_CONTEXT)

    @property
    def length(self) -> int:
        """How many tokens the model looks back on."""
        return MODELS[self.preset][0] if self.context is None else self.context


@dataclass(frozen=True)
class LanguageSettings:
    """All that decides how a run on text goes: equal settings and equal text, equal parameters, bit for bit."""

    text: TextSettings = field(default_factory=TextSettings)
    model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.99)
    )
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    steps: int = 1000
    """training steps"""
    batch_size: int = 32
    """windows of text per step"""
    accumulate: int = 1
    """parts into which a batch is cut, to be computed one after the other in less memory"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """type to compute in; weights are kept in float32"""
    seed: int = 0
    """seed of the initial weights, the order of the data and dropout"""
    save_every: int = 250
    """steps between checkpoints"""
    evaluate_every: int = 250
    """steps between looks at the validation text"""
    evaluate_batches: int = 20
    """batches of it that such a look takes in; the report at the end takes all"""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        check_settings(self)
        for name in ("evaluate_every", "evaluate_batches"):
            schema.check_range(name, getattr(self, name), 1)
        schema.check_range("--vocab-size", self.text.vocab_size, 1)


class Texts(NamedTuple):
    """A tokenizer, and the training and the validation text as it reads them."""

    tokenizer: Tokenizer
    training: Corpus
    validation: Corpus


class Measure(NamedTuple):
    """How well a model predicts a text: so many tokens, at a mean loss in nats each, from a text of so many bytes."""

    tokens: int
    loss: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """Among how many equally likely tokens the model is as unsure."""
        return math.exp(min(self.loss, 700))

    def table(self) -> list[str]:
        """The figures, one a line."""
        return [
            f"{'tokens':15}{self.tokens:,}",
            f"{'loss':15}{self.loss:.4f} nats per token",
            f"{'perplexity':15}{self.perplexity:.2f}",
            f"{'bits per byte':15}{self.bits_per_byte:.4f}",
        ]


def read_texts(settings: TextSettings, folder: Path | None) -> Texts:
    """The text that the settings name, and the tokenizer of the run in `folder`, or else the one they ask for."""
    source = None if settings.data is None else Path(settings.data)
    if source is None:
        print("no --data: the language reference that comes with Python, enough to see a model learn", file=sys.stderr)
    tokenizer = make_tokenizer(settings, source) if folder is None else load_tokenizer(folder / TOKENIZER)
    read = partial(read_text, tokenizer=tokenizer, field=settings.field)
    corpus = read("training text", source)
    if settings.validation is None:
        return Texts(tokenizer, *split_corpus(corpus))
    return Texts(tokenizer, corpus, read("validation text", Path(settings.validation)))


def read_text(name: str, source: Path | None, tokenizer: Tokenizer, field: str) -> Corpus:
    """A text as a tokenizer reads it; how much of it has no token is said on standard error."""
    corpus = open_corpus(source, tokenizer, terminal.cache_folder() / "corpora", field=field)
    unknown = 0 if tokenizer.unknown_id is None else int(np.count_nonzero(corpus.tokens == tokenizer.unknown_id))
    if unknown:
        found = (piece for text in documents(source, field) for piece in tokenizer.each_unknown(text))
        examples = listed(map(repr, dict.fromkeys(islice(found, 3))))
        share = unknown / len(corpus.tokens)
        print(f"{name}: {unknown:,} tokens ({share:.2%}) are unknown to the tokenizer, as {examples}", file=sys.stderr)
    return corpus


def make_tokenizer(settings: TextSettings, source: Path | None) -> Tokenizer:
    """The tokenizer that the settings ask for: one of the text's own, or one from a file."""
    if settings.tokenizer in TRAINED:
        return train_tokenizer(settings.tokenizer, documents(source, settings.field), settings.vocab_size)
    if not Path(settings.tokenizer).exists():
        kinds = ", ".join(TRAINED)
        raise InputError(f"--tokenizer {settings.tokenizer} is neither a file nor one of {kinds}")
    return load_tokenizer(Path(settings.tokenizer))


def default(_: str) -> LanguageSettings:
    """The settings unless flags say otherwise."""
    return LanguageSettings()


def about(_: str) -> str:
    """What the task is, for the help text."""
    return "Train a decoder-only language model on text."


def prepare(_: str, settings: LanguageSettings, folder: Path | None) -> Prepared:
    """Windows of the text; every token predicts the next."""
    texts, model = read_texts(settings.text, folder), settings.model
    config = MODELS[model.preset][1](texts.tokenizer.vocab_size, model.length, model.dropout)
    if model.rematerialise:
        config = presets.rematerialised(config)
    description = {"tokenizer": texts.tokenizer.digest, "text": zlib.crc32(texts.training.tokens.tobytes())}
    if folder is not None:
        check_text(folder, description)
    graphdef = nnx.graphdef(abstract_model(config))

    def evaluate_params(params: Any) -> dict[str, Any]:
        model = nnx.merge(graphdef, cast(params, jnp.dtype(settings.dtype)))
        found = measure(model, texts.validation, settings, limit=settings.evaluate_batches)
        sample = draw_sample(nnx.merge(graphdef, params), texts, settings)
        figures = {"loss": found.loss, "perplexity": found.perplexity, "bits_per_byte": found.bits_per_byte}
        return {**figures, "sample": sample}

    def write(folder: Path) -> None:
        replace_text(folder / TOKENIZER, texts.tokenizer.to_json())
        replace_text(folder / TEXT, json.dumps(description) + "\n")

    return Prepared(
        config=config,
        batches=text_batches(texts.training, model.length, settings.batch_size, settings.seed),
        loss=predicting(forward, settings, balance=settings.balance),
        row_tokens=model.length,
        adjust=partial(update_router_biases, speed=settings.balance.router_bias_speed) if has_experts(config) else None,
        tokens=lambda batch: batch["labels"].size,
        evaluate=evaluate_params,
        evaluate_every=settings.evaluate_every,
        write=write,
    )


def has_experts(config: TransformerConfig) -> bool:
    """Whether any layer is a mixture of experts."""
    return any(isinstance(block.feed_forward, MoEConfig) for block in config.main.blocks)


def forward(model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, dict[int, Routing]]:
    """Logits for a batch of windows, and where layers with experts sent its tokens."""
    if not has_experts(model.config):
        return model(batch["inputs"], dropout_key=key), {}
    seen = model(batch["inputs"], dropout_key=key, return_intermediates=True)  # unused parts cost nothing
    return seen.logits, {layer: routes for layer, routes in enumerate(seen.decoder.routing) if routes is not None}


def read_description(folder: Path) -> dict[str, Any]:
    """Return the checksums of the tokenizer and the text of a run. Raises InputError if they cannot be read."""
    path = folder / TEXT
    description = schema.load_json(path)
    with schema.located(path):
        schema.require(description, "tokenizer", "text")
        return schema.read(description, {"tokenizer": schema.text(""), "text": schema.integer(0, 0, 2**32 - 1)})


def check_text(folder: Path, now: dict[str, Any]) -> None:
    """Raise InputError if the text or the tokenizer is not the one with which the run in `folder` began."""
    before = read_description(folder)
    changed = [name for name, value in now.items() if before[name] != value]
    if changed:
        raise InputError(f"the {' and the '.join(changed)} changed since {folder} began: it cannot be resumed")


def open_task(_: str, settings: LanguageSettings, folder: Path) -> tuple[Tokenizer, GenerationConfig]:
    """The run's own tokenizer. Raises InputError if it is not the one that the model was trained with."""
    tokenizer = load_tokenizer(folder / TOKENIZER)
    if tokenizer.digest != read_description(folder)["tokenizer"]:
        raise InputError(f"{folder / TOKENIZER} is not the tokenizer that the model was trained with: put that back")
    end = tokenizer.end
    room = max(1, settings.model.length // 2)
    return tokenizer, GenerationConfig(max_new_tokens=room, eos_token_id=end, pad_token_id=end, bos_token_id=end)


def measure(model: Transformer, text: Corpus, settings: LanguageSettings, limit: int | None = None) -> Measure:
    """How well a model predicts a text, window by window, or the first `limit` batches of windows."""
    batches: Iterator[Any] = windows(text, settings.model.length, settings.batch_size)
    sums = [total_loss(model, batch) for batch in islice(batches, limit)]
    loss, tokens = np.array(sums, np.float64).sum(axis=0).tolist()
    mean = loss / tokens
    return Measure(int(tokens), mean, mean / math.log(2) * len(text.tokens) / int(np.sum(text.sizes)))


@jax.jit
def total_loss(model: Transformer, batch: Any) -> tuple[jax.Array, jax.Array]:
    """The summed loss of a batch of windows, and how many labels it has."""
    losses = token_cross_entropy(model(batch["inputs"]), batch["labels"], ignore_index=IGNORED)
    return losses.sum(), (batch["labels"] != IGNORED).sum()


def draw_sample(model: Transformer, texts: Texts, settings: LanguageSettings) -> str:
    """What the model makes of a few words from the middle of the validation text, at temperature 0.8."""
    middle, length = len(texts.validation.tokens) // 2, min(PROMPT, settings.model.length // 2)
    prompt = np.asarray(texts.validation.tokens[middle : middle + length], np.int32)[None]
    limit = min(SAMPLE, settings.model.length - prompt.shape[1])
    drawn = generate(model, prompt, do_sample=True, temperature=0.8, top_k=0, max_new_tokens=limit, seed=settings.seed)
    return texts.tokenizer.decode(drawn.sequences[0])


def evaluate(run: Run) -> Outcome:
    """How well the model predicts all of its validation text."""
    texts = read_texts(run.settings.text, run.folder)
    found = measure(run.model, texts.validation, run.settings)
    results = {f"validation_{name}": getattr(found, name) for name in ("tokens", "loss", "perplexity", "bits_per_byte")}
    return Outcome(
        results,
        ["validation text:", *(f"  {line}" for line in found.table())],
        f"{command_line('generate')} --prompt The --temperature 0.8",
    )


CLASSES = (LanguageSettings, TextSettings, LanguageModelSettings, OptimizerConfig, BalanceConfig)
LANGUAGE = Kind(CLASSES, default, about, prepare, open_task, evaluate)
