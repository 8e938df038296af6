"""Settings of the task `translate`."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from jaxformer import schema
from jaxformer.config import NormOrder
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.tasks.row_settings import RowSettings
from jaxformer.tasks.settings import TrainSettings, check_dropout, check_sizes
from jaxformer.tasks.start import StartSettings
from jaxformer.training import OptimizerConfig

MOST_TOKENS = 1 << 20  # of a batch


@dataclass(frozen=True)
class PairSettings(RowSettings):
    """The pairs of texts, and how they are cut into tokens."""

    data: Annotated[str | None, optional("FILE")] = None
    """pairs to train on: .tsv (source TAB target), or .jsonl (source and target, prompt and completion, or
    translation)"""
    max_length: int = 128
    """the most tokens of a source, and of a target"""
    separate_vocabularies: bool = False
    """one vocabulary for sources and one for targets, instead of one for both"""
    source_prefix: str = ""
    """text before every source, such as "translate English to German: " of T5"""
    long: Literal["drop", "cut"] = "drop"
    """what happens to training pairs with more tokens"""


@dataclass(frozen=True)
class TranslationModelSettings:
    """The model."""

    preset: Annotated[
        Literal["small-translate", "paper-base", "paper-big"] | None, optional("small-translate|paper-base|paper-big")
    ] = None
    """a new model, layers x width: 4 + 4 x 128 with dropout 0.3 (the default), or the paper's 6 + 6 x 512 and 6 + 6 x
    1024, whose learning rates are the paper's: 7e-4 and 5e-4"""
    layers: Annotated[int | None, optional("INT")] = None
    """layers of the encoder, and as many of the decoder (default: the preset's)"""
    dim: Annotated[int | None, optional("INT")] = None
    """model width (default: the preset's)"""
    heads: Annotated[int | None, optional("INT")] = None
    """attention heads (default: the preset's)"""
    d_ff: Annotated[int | None, optional("INT")] = None
    """inner width of the feed-forward network (default: the preset's)"""
    norm_order: Annotated[NormOrder | None, optional("pre|post|post_sublayer")] = None
    """norm before each sub-layer (the default of small-translate, which trains at a high rate), after each residual sum
    as in the paper (that of paper-base and paper-big), or after each sub-layer"""
    positions: Literal["sinusoidal", "relative", "rotary"] = "sinusoidal"
    """positions of a new model: the paper's, T5's relative bias, or rotary"""
    dropout: Annotated[float | None, optional("FLOAT")] = None
    """dropout rate on embeddings, sub-layers and attention weights (default: the preset's, or that of --model)"""
    rematerialize: bool = False
    """compute each block twice instead of storing what is inside it: slower, in less memory"""

    def __post_init__(self) -> None:
        """Raise InputError for impossible sizes and rates."""
        check_sizes(self)
        check_dropout(self.dropout)


@dataclass(frozen=True)
class TranslationSettings(TrainSettings):
    """Settings of a run on pairs of texts."""

    text: PairSettings = field(default_factory=PairSettings)
    start: StartSettings = field(default_factory=StartSettings)
    model: TranslationModelSettings = field(default_factory=TranslationModelSettings)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=5e-3, warmup_ratio=0.25, schedule="inverse-sqrt")
    )
    steps: int = 8000
    """training steps"""
    batch_tokens: int = 4096
    """tokens of the longer side in a batch of pairs of about equal lengths; 0: batches of --batch-size pairs"""
    label_smoothing: float = 0.1
    """share of the target probability spread over all tokens, as in the paper"""
    average: int = 5
    """last checkpoints whose parameters are averaged at the end, as in the paper; 1: the last one as it is"""
    save_every: int = 250
    """steps between checkpoints"""
    evaluate_every: int = 500
    """steps between evaluations on the validation pairs"""
    evaluate_pairs: int = 200
    """validation pairs translated per evaluation; the report at the end takes all"""
    bleu_tokens: Literal["13a", "none", "intl", "char", "zh", "ja-mecab"] = "13a"
    """how sacrebleu cuts texts for BLEU; none: at the spaces of texts that are cut into tokens already"""

    def __post_init__(self) -> None:
        """Raise InputError for settings that cannot be trained."""
        super().__post_init__()
        for name in ("evaluate_every", "evaluate_pairs"):
            schema.check_range(name, getattr(self, name), 1)
        schema.check_range("--batch-tokens", self.batch_tokens, 0, MOST_TOKENS)
        if self.batch_tokens and self.batch_size != TrainSettings.batch_size:
            raise InputError("--batch-size needs --batch-tokens 0: else batches have about equal numbers of tokens")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must be at least 0 and below 1, not {self.label_smoothing}")
        model = self.model
        sizes = {f"--{name.replace('_', '-')}": getattr(model, name) for name in ("layers", "dim", "heads", "d_ff")}
        given = {"--preset": model.preset, "--tokenizer": self.text.tokenizer, **sizes}
        given["--separate-vocabularies"] = self.text.separate_vocabularies
        if self.start.model is not None and any(given.values()):
            own = next(flag for flag, value in given.items() if value)
            raise InputError(f"{own} is for new models, and --model has its own: leave one of them out")
