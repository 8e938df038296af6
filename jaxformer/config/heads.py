"""Heads: from hidden states to logits of the vocabulary, of classes, or to scores of tokens."""

from dataclasses import dataclass
from typing import Literal

from jaxformer.config.attention import NormConfig, check_rate
from jaxformer.config.layers import TransformConfig
from jaxformer.errors import InputError
from jaxformer.ops.activations import Activation
from jaxformer.schema import check_range


@dataclass(frozen=True)
class HeadConfig:
    """Map from hidden states to logits.

    Attributes:
        tied: Whether it is the token embedding's table (section 3.4), else a matrix.
        bias: Whether there is a number per token.
        scale: Factor on the hidden states.
        transform: Layer before the map. None: none.
        softcap: Logits are squashed into (-softcap, softcap) by tanh. None: they are not.
    """

    tied: bool = True
    bias: bool = False
    scale: float = 1.0
    transform: TransformConfig | None = None
    softcap: float | None = None


@dataclass(frozen=True)
class LastToken:
    """Classify a sequence by the state of its last real token, which alone has seen all of a decoder's input.

    Attributes:
        pad_id: Token that is padding wherever it stands. None: only the mask tells what is padding.
    """

    pad_id: int | None = None

    def __post_init__(self) -> None:
        """Refuse an impossible token."""
        if self.pad_id is not None:
            check_range("pad_id", self.pad_id, 0)


@dataclass(frozen=True)
class EndOfText:
    """Classify a sequence by the decoder's state at the last place where the encoder reads the end of the text.

    Attributes:
        eos_id: The token that ends a text. A sequence without it is classified by its first token.
    """

    eos_id: int

    def __post_init__(self) -> None:
        """Refuse an impossible token."""
        check_range("eos_id", self.eos_id, 0)


Pooled = Literal["first", "mean", "mean_logits"] | LastToken | EndOfText


@dataclass(frozen=True)
class ClassifierConfig:
    """Class of a whole sequence from a state x: norm(activation(x W + b)) W_out + b_out.

    Attributes:
        classes: Number of classes.
        activation: Name of the activation. None: there is no inner layer, x W_out + b_out.
        dropout: Rate on the inner units.
        pooled: The state: that of the "first" token, as most encoders have it, of the last one, as decoders have it, or
            the "mean" over all real tokens; "mean_logits" averages the logits of the tokens instead.
        bias: Whether there is b_out.
        norm: Norm of the inner units. None: none.
        hidden_bias: Whether there is b.
    """

    classes: int
    activation: Activation | None = "tanh"
    dropout: float = 0.0
    pooled: Pooled = "first"
    bias: bool = True
    norm: NormConfig | None = None
    hidden_bias: bool = True

    def __post_init__(self) -> None:
        """Refuse no classes and an impossible rate."""
        check_rate(self.dropout)
        check_classes(self.classes)


@dataclass(frozen=True)
class TokenClassifierConfig:
    """Class of each token from its state x: norm(activation(x W + b)) W_out + b_out.

    Attributes:
        classes: Number of classes.
        activation: Name of the activation. None: there is no inner layer, x W_out + b_out.
        dropout: Rate on the inner units.
        bias: Whether there is b_out.
        norm: Norm of the inner units. None: none.
        hidden_bias: Whether there is b.
    """

    classes: int
    activation: Activation | None = None
    dropout: float = 0.0
    bias: bool = True
    norm: NormConfig | None = None
    hidden_bias: bool = True

    def __post_init__(self) -> None:
        """Refuse no classes and an impossible rate."""
        check_rate(self.dropout)
        check_classes(self.classes)


@dataclass(frozen=True)
class SpanConfig:
    """Two logits of each token: that the answer to a question begins there, and that it ends there.

    Attributes:
        activation: Name of the activation. None: there is no inner layer, x W_out + b_out.
        dropout: Rate on the inner units.
        norm: Norm of the inner units. None: none.
        hidden_bias: Whether the inner layer has a bias.
    """

    activation: Activation | None = None
    dropout: float = 0.0
    norm: NormConfig | None = None
    hidden_bias: bool = True

    def __post_init__(self) -> None:
        """Refuse an impossible rate."""
        check_rate(self.dropout)

    @property
    def classes(self) -> int:
        """The number of logits of a token."""
        return 2

    @property
    def bias(self) -> bool:
        """Whether there is b_out."""
        return True


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Score of each token, that it is none of the text's, as in ELECTRA: activation(x W + b) W_out + b_out.

    Attributes:
        activation: Name of the activation.
    """

    activation: Activation = "gelu"


AnyClassifierConfig = ClassifierConfig | TokenClassifierConfig | SpanConfig
AnyHeadConfig = HeadConfig | AnyClassifierConfig | DiscriminatorConfig


def check_classes(classes: int) -> None:
    """Raise InputError where there are no classes."""
    if classes < 1:
        raise InputError(f"a classifier needs at least one class, not classes={classes}")
