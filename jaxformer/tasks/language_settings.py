"""Settings of the task `lm`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

from jaxformer import presets, schema
from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.tasks.settings import TrainSettings, check_dropout, check_sizes
from jaxformer.tasks.start import StartSettings
from jaxformer.training import BalanceConfig, OptimizerConfig

MAX_CONTEXT = 1 << 20


class Preset(NamedTuple):
    """A model that a run can begin with.

    Attributes:
        context: The context that it is trained with unless told otherwise.
        sizes: Its layers, dim and heads. None: they are no numbers that can be chosen.
        make: (vocabulary, length, dropout, **sizes) -> configuration.
    """

    context: int
    sizes: dict[str, int] | None
    make: Callable[..., TransformerConfig]


def plain(vocab_size: int, length: int, dropout: float, **sizes: int) -> TransformerConfig:
    """Return a model shaped as GPT-2."""
    return presets.decoder_only(vocab_size, length=length, dropout=dropout, **sizes)


def modern(vocab_size: int, _: int, dropout: float, **sizes: int) -> TransformerConfig:
    """Return a model shaped as Llama, with a third as many heads of keys and values as of queries, where that divides.

    It has no table of positions, so that the length is no part of it.
    """
    kv_heads = next(count for count in range(max(1, sizes["heads"] // 3), 0, -1) if sizes["heads"] % count == 0)
    return presets.modern_decoder_only(vocab_size, kv_heads=kv_heads, dropout=dropout, **sizes)


MODELS: dict[str, Preset] = {
    "tiny": Preset(64, {"layers": 2, "dim": 128, "heads": 2}, plain),
    "small": Preset(256, {"layers": 6, "dim": 384, "heads": 6}, plain),
    "small-modern": Preset(256, {"layers": 6, "dim": 384, "heads": 6}, modern),
    "gpt2": Preset(1024, {"layers": 12, "dim": 768, "heads": 12}, plain),
    "deepseek-tiny": Preset(128, None, lambda vocab_size, _, dropout: presets.deepseek_tiny(vocab_size, dropout)),
}


@dataclass(frozen=True)
class TextSettings:
    """The text, and how it is cut into tokens."""

    data: Annotated[str | None, optional("PATH")] = None
    """text file, folder of text files, or .jsonl (default: the language reference that comes with Python); lines of
    JSON with prompt and completion, or with messages, teach answers alone"""
    field: str = "text"
    """where a line of a .jsonl file has its text"""
    validation: Annotated[str | None, optional("PATH")] = None
    """text to validate on (default: the last tenth of the documents, or of the text)"""
    skip_bad: bool = False
    """go on without the lines of a .jsonl file that hold no prompt with completion, or no conversation"""
    tokenizer: Annotated[str | None, optional("char|word|bpe|PATH")] = None
    """characters, words or byte-level BPE, found in the text; or a tokenizer.json (default: char, or --model's)"""
    vocab_size: int = 4096
    """the most tokens of a vocabulary that is made from the text"""


@dataclass(frozen=True)
class LanguageModelSettings:
    """The model."""

    preset: Annotated[
        Literal["tiny", "small", "small-modern", "gpt2", "deepseek-tiny"] | None,
        optional("tiny|small|small-modern|gpt2|deepseek-tiny"),
    ] = None
    """a new model, layers x width: 2 x 128 (the default), 6 x 384, 6 x 384 with rotary positions and SwiGLU, 12 x 768,
    4 x 160 with experts"""
    layers: Annotated[int | None, optional("INT")] = None
    """layers of a new model (default: the preset's)"""
    dim: Annotated[int | None, optional("INT")] = None
    """width of a new model (default: the preset's)"""
    heads: Annotated[int | None, optional("INT")] = None
    """attention heads of a new model (default: the preset's)"""
    context: Annotated[int | None, optional("INT")] = None
    """tokens that the model looks back on (default: 64 of tiny, 1024 of gpt2, 128 of deepseek-tiny, else 256; of
    --model as many as it was made for, up to 1024)"""
    dropout: Annotated[float | None, optional("FLOAT")] = None
    """dropout rate on embeddings, sub-layers and attention weights (default: 0, or the checkpoint's rate)"""
    rematerialize: bool = False
    """compute each block twice instead of storing what is inside it: slower, in less memory"""

    def __post_init__(self) -> None:
        """Raise InputError for a context without anything to predict from, and an impossible rate."""
        schema.check_range("--context", self.length, 2, MAX_CONTEXT)
        check_dropout(self.dropout)
        check_sizes(self)
        if self.given and self.base.sizes is None:
            raise InputError(f"--{next(iter(self.given))} is for the other presets: {self.preset} has sizes of its own")
        sizes = (self.base.sizes or {}) | self.given
        if sizes and sizes["dim"] % sizes["heads"]:
            raise InputError(f"--dim {sizes['dim']} is no multiple of {sizes['heads']} heads: change one of them")

    @property
    def base(self) -> Preset:
        """The preset."""
        return MODELS[self.preset or "tiny"]

    @property
    def given(self) -> dict[str, int]:
        """Sizes that are not the preset's."""
        sizes = {"layers": self.layers, "dim": self.dim, "heads": self.heads}
        return {name: size for name, size in sizes.items() if size is not None}

    @property
    def length(self) -> int:
        """How many tokens a new model looks back on."""
        return self.base.context if self.context is None else self.context

    def config(self, vocab_size: int) -> TransformerConfig:
        """Return a new model for a vocabulary."""
        return self.base.make(vocab_size, self.length, self.dropout or 0.0, **(self.base.sizes or {}) | self.given)


@dataclass(frozen=True)
class LanguageSettings(TrainSettings):
    """Settings of a run on text.

    Attributes:
        text: The text, and how it is cut into tokens.
        model: The model.
        balance: Settings that keep the experts of a mixture equally busy; of no effect on other models.
    """

    text: TextSettings = field(default_factory=TextSettings)
    start: StartSettings = field(default_factory=StartSettings)
    model: LanguageModelSettings = field(default_factory=LanguageModelSettings)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, beta2=0.99)
    )
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    batch_size: int = 32
    """windows of text per step"""
    seed: int = 0
    """seed of the initial weights, the order of the data and dropout"""
    save_every: int = 250
    """steps between checkpoints"""
    evaluate_every: int = 250
    """steps between evaluations on the validation text"""
    evaluate_batches: int = 20
    """batches of the validation text per evaluation; the report at the end takes all"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        super().__post_init__()
        for name in ("evaluate_every", "evaluate_batches"):
            schema.check_range(name, getattr(self, name), 1)
        schema.check_range("--vocab-size", self.text.vocab_size, 1)
        sizes = {f"--{name}": size for name, size in self.model.given.items()}
        given = {"--preset": self.model.preset, "--tokenizer": self.text.tokenizer, **sizes}
        if self.start.model is not None and any(given.values()):
            own = next(flag for flag, value in given.items() if value)
            raise InputError(f"{own} is for new models, and --model has its own: leave one of them out")
