"""How to generate: the settings, under the names and with the defaults of Hugging Face `generate()`."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxformer.errors import InputError, listed, shortened
from jaxformer.schema import INT32_MAX, is_integer, is_number

DEFAULT_NEW_TOKENS = 20
SMALLEST = 1e-37  # of the numbers above 0 that float32 can hold, and divide by
LIKENESS = 0.75  # of a name to that of a setting, for it to be a slip
ELSEWHERE = {"streamer": "use jaxformer.stream, which yields tokens as they come"}
TokenIds = int | Sequence[int] | None


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation, under the names and with the defaults of `generate()` of transformers.

    Attributes:
        max_length: Most tokens of a whole sequence of the decoder, prompt included. None: 20 new tokens.
        max_new_tokens: Most tokens after the prompt; goes before `max_length`.
        min_length: No EOS before a sequence, prompt included, has this length.
        min_new_tokens: Number of new tokens before the first EOS; above `max_new_tokens`, no EOS is generated.
        do_sample: Draw tokens instead of taking the best.
        num_beams: Beams of a beam search; with `do_sample`, of beam sampling. 1: greedy decoding or sampling.
        num_return_sequences: Sequences returned for each input.
        early_stopping: End a beam search when `num_beams` sequences are finished (True), when the best running beam
            looks unable to win at its present length (False), or at any length ("never").
        length_penalty: A finished beam scores its log-probability / generated length ** length_penalty.
        temperature: Divisor of the logits; 0 is greedy.
        top_k: Draw from the k best tokens; 0: all.
        top_p: Draw from the smallest set of tokens with this probability.
        min_p: Draw from tokens with at least this share of the best one's probability.
        top_h: Draw from the likeliest tokens, up to this share of the entropy.
        typical_p: Draw from the most typical tokens, up to this probability.
        epsilon_cutoff: Draw from tokens of at least this probability.
        eta_cutoff: The same, with a bound that a high entropy lowers.
        sequence_bias: ((tokens, bias), ...): terms on the scores of tokens that complete a sequence.
        bad_words_ids: Sequences that may not be completed.
        repetition_penalty: Divisor of the scores of tokens that have occurred.
        encoder_repetition_penalty: Above 1 in favor of tokens of the source; of the prompt where there is no source.
        no_repeat_ngram_size: No sequence of this many tokens occurs twice; 0: any may.
        encoder_no_repeat_ngram_size: No sequence of this many tokens of the source occurs; 0: any may.
        suppress_tokens: Tokens that are never generated.
        begin_suppress_tokens: Tokens that are not generated first.
        exponential_decay_length_penalty: (start, factor): raise the score of EOS after `start` new tokens.
        remove_invalid_values: Turn NaN and infinite scores into numbers.
        renormalize_logits: Take log_softmax after all processors.
        forced_bos_token_id: The first token after the start token.
        forced_eos_token_id: The last token at `max_length`.
        eos_token_id: Token or tokens that end a sequence.
        stop_strings: Text or texts that end a sequence, with the token within which one ends.
        pad_token_id: Token after the end of a sequence.
        bos_token_id: Token that begins a sequence without a prompt.
        decoder_start_token_id: First token of the decoder of an encoder-decoder.
        seed: Equal seeds draw equal tokens; with a seed for each input, each draws what it would draw alone.
        output_attentions: Return the attention maps of every token too.
        output_scores: Return the processed scores of every step.
        output_logits: Return the model's own scores of every step.

    Raises:
        InputError: A value is out of range, or values contradict each other.
    """

    max_length: int | None = None
    max_new_tokens: int | None = None
    min_length: int = 0
    min_new_tokens: int | None = None
    do_sample: bool = False
    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | Literal["never"] = False
    length_penalty: float = 1.0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float | None = None
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    sequence_bias: Sequence[tuple[Sequence[int], float]] | Mapping[tuple[int, ...], float] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    repetition_penalty: float = 1.0
    encoder_repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    exponential_decay_length_penalty: tuple[int, float] | None = None
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    forced_bos_token_id: int | None = None
    forced_eos_token_id: TokenIds = None
    eos_token_id: TokenIds = None
    stop_strings: str | Sequence[str] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    seed: int | Sequence[int] = 0
    output_attentions: bool = False
    output_scores: bool = False
    output_logits: bool = False

    def __post_init__(self) -> None:
        """Refuse values out of range and values that contradict each other. NumPy's numbers become Python's."""
        for name, (holds, rule) in RULES.items():
            value = plain(getattr(self, name))
            object.__setattr__(self, name, value)
            if not holds(value):
                raise InputError(f"{name} must be {rule}, not {shortened(repr(value), 60)}")
        if self.num_return_sequences > self.num_beams and (self.num_beams > 1 or not self.do_sample):
            raise InputError(
                f"num_return_sequences={self.num_return_sequences} needs as many beams, or sampling with one beam; "
                f"num_beams is {self.num_beams}"
            )
        counted = self.min_new_tokens is None and self.max_new_tokens is None
        if counted and self.max_length is not None and self.min_length > self.max_length:
            raise InputError(f"min_length={self.min_length} is more than max_length={self.max_length}")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            forced = as_tuple(getattr(self, name))
            if forced and {*forced} <= {*as_tuple(self.suppress_tokens)}:
                raise InputError(
                    f"{name}={listed(forced)} is among suppress_tokens: no token would be left, take it out"
                )

    @classmethod
    def of(cls, config: "GenerationConfig | None", settings: Mapping[str, Any]) -> "GenerationConfig":
        """Return `config`, or the defaults, with some settings changed. Raises InputError as `replace`."""
        if config is None:
            config = cls()
        if not isinstance(config, cls):
            raise InputError(f"config must be a GenerationConfig or None, not {shortened(repr(config), 60)}")
        return config.replace(**settings)

    def replace(self, **settings: Any) -> "GenerationConfig":
        """Return these settings with some of them changed; None turns one off. Raises InputError for unknown ones."""
        names = [field.name for field in dataclasses.fields(self)]
        for name in settings:
            if name not in names:
                raise InputError(f"unknown generation setting {shortened(repr(name), 60)}: {advice(name, names)}")
            if settings[name] is None and not RULES[name][0](None):
                settings[name] = OFF.get(name, DEFAULTS[name])
        return dataclasses.replace(self, **settings)

    def length_limits(self, prompt: int, longest: int | None = None) -> tuple[int, int]:
        """Return least and greatest length of a sequence, both with its prompt.

        Args:
            prompt: Number of tokens of the prompt.
            longest: Length that the model's positions allow (None: any length); it cuts the default, and a setting
                beyond it is an error.

        Raises:
            InputError: Nothing can be generated.
        """
        if self.max_new_tokens is not None:
            greatest = prompt + self.max_new_tokens
        elif self.max_length is not None:
            greatest = self.max_length
        else:
            greatest = prompt + DEFAULT_NEW_TOKENS
            greatest = greatest if longest is None else min(greatest, longest)
        least = self.min_length if self.min_new_tokens is None else prompt + self.min_new_tokens
        if longest is not None and greatest > longest:
            raise InputError(
                f"{prompt} prompt tokens and {greatest - prompt} new ones exceed the {longest} positions of the model: "
                "shorten the prompt or lower max_new_tokens"
            )
        if prompt >= greatest:
            raise InputError(f"the prompt has {prompt} tokens and at most {greatest} are allowed: raise max_new_tokens")
        if greatest >= 2**31:
            raise InputError(f"{greatest} tokens are too many: lower max_new_tokens")
        if self.min_new_tokens is None and least > greatest:
            raise InputError(f"at least {least} tokens are asked for, but at most {greatest} are allowed")
        return min(least, 2**31 - 1), greatest

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """The tokens that end a sequence."""
        return as_tuple(self.eos_token_id)

    @property
    def padding(self) -> int:
        """The token behind the end of a sequence: the pad token, else the first EOS token.

        As in `generate()`, beam search takes pad token 0 for none, and writes -1 where there is no EOS token at all.
        """
        if self.num_beams > 1 and not self.eos_ids:
            return -1
        if self.pad_token_id is None or (self.pad_token_id == 0 and self.num_beams > 1):
            return self.eos_ids[0] if self.eos_ids else 0
        return self.pad_token_id


def advice(name: str, names: Sequence[str]) -> str:
    """Return what to do about an unknown setting: the one that is meant if one is spelled alike."""
    if name in ELSEWHERE:
        return ELSEWHERE[name]
    meant = difflib.get_close_matches(name, names, n=1, cutoff=LIKENESS)
    return f"did you mean {meant[0]!r}?" if meant else "the fields of jaxformer.GenerationConfig are known"


def as_tuple(ids: TokenIds) -> tuple[int, ...]:
    """Return one token id, several or none, as a tuple."""
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else tuple(ids)


def plain(value: Any) -> Any:
    """Return the value with Python's lists and numbers in place of arrays and NumPy's."""
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return type(value)([plain(each) for each in value])
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    return value


def whole(least: int) -> tuple[Callable[[Any], bool], str]:
    """Return the rule of a whole number of at least `least`, and no more than 32 bits hold."""
    return lambda value: is_whole(value, least), f"a whole number from {least} to 2^31 - 1"


def number(holds: Callable[[float], bool], rule: str) -> tuple[Callable[[Any], bool], str]:
    """Return the rule of a finite number for which `holds` is true."""
    return lambda value: is_number(value) and holds(value), rule


def optional(rule: tuple[Callable[[Any], bool], str]) -> tuple[Callable[[Any], bool], str]:
    """Return the same rule, which also accepts None."""
    return lambda value: value is None or rule[0](value), f"{rule[1]} or None"


def token_ids(value: Any) -> bool:
    """Return whether `value` is a token id, a sequence of at least one, or None."""
    return value is None or is_whole(value) or (is_sequence(value) and len(value) > 0 and all(map(is_whole, value)))


def any_token_ids(value: Any) -> bool:
    """Return whether `value` is a token id, a sequence of them, be it empty, or None."""
    return token_ids(value) or (isinstance(value, list | tuple) and not value)


def phrases(value: Any) -> bool:
    """Return whether `value` is a sequence of sequences of token ids."""
    return is_sequence(value) and all(is_sequence(each) and token_ids(each) for each in value)


def biases(value: Any) -> bool:
    """Return whether `value` is a sequence of pairs of a sequence of token ids and a number, or such a mapping."""
    value = list(value.items()) if isinstance(value, Mapping) else value
    pairs = is_sequence(value) and all(is_sequence(each) and len(each) == 2 for each in value)
    return pairs and phrases([each[0] for each in value]) and all(is_number(each[1]) for each in value)


def decay(value: Any) -> bool:
    """Return whether `value` is a number of tokens and a factor above 0."""
    pair = is_sequence(value) and len(value) == 2
    return pair and is_whole(value[0]) and is_number(value[1]) and value[1] >= SMALLEST


def is_whole(value: Any, least: int = 0) -> bool:
    """Return whether `value` is a whole number from `least` to 2^31 - 1."""
    return is_integer(value) and least <= value <= INT32_MAX


def is_sequence(value: Any) -> bool:
    """Return whether `value` is a sequence, and no text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def strings(value: Any) -> bool:
    """Return whether `value` is a string or several, none of them empty."""
    several = [value] if isinstance(value, str) else value
    return is_sequence(several) and len(several) > 0 and all(isinstance(s, str) and s for s in several)


def seeds(value: Any) -> bool:
    """Return whether `value` is a seed or a sequence of them."""
    several = value if is_sequence(value) and len(value) > 0 else [value]
    return all(is_integer(seed) and seed >= 0 for seed in several)


TRUTH = (lambda value: type(value) is bool, "True or False")
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_length": optional(whole(1)),
    "max_new_tokens": optional(whole(1)),
    "min_length": whole(0),
    "min_new_tokens": optional(whole(0)),
    "do_sample": TRUTH,
    "num_beams": whole(1),
    "num_return_sequences": whole(1),
    "early_stopping": (lambda value: type(value) is bool or value == "never", "True, False or 'never'"),
    "length_penalty": number(lambda value: True, "a number"),
    "temperature": number(lambda value: value == 0 or value >= SMALLEST, "a number of at least 0 (0 is greedy)"),
    "top_k": whole(0),
    "top_p": number(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "min_p": optional(number(lambda value: 0 <= value <= 1, "from 0 to 1")),
    "repetition_penalty": number(lambda value: value >= SMALLEST, "above 0"),
    "encoder_repetition_penalty": number(lambda value: value >= SMALLEST, "above 0"),
    "no_repeat_ngram_size": whole(0),
    "encoder_no_repeat_ngram_size": whole(0),
    "top_h": optional(number(lambda value: 0 < value <= 1, "above 0 and at most 1")),
    "typical_p": number(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "epsilon_cutoff": number(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "eta_cutoff": number(lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "sequence_bias": optional((biases, "pairs of token ids and a number")),
    "bad_words_ids": optional((phrases, "sequences of token ids")),
    "suppress_tokens": (any_token_ids, "token ids or None"),
    "begin_suppress_tokens": (any_token_ids, "token ids or None"),
    "exponential_decay_length_penalty": optional((decay, "a number of tokens and a factor")),
    "remove_invalid_values": TRUTH,
    "renormalize_logits": TRUTH,
    "forced_bos_token_id": optional(whole(0)),
    "forced_eos_token_id": (token_ids, "a token id, several or None"),
    "eos_token_id": (token_ids, "a token id, several or None"),
    "stop_strings": optional((strings, "a string or several, not empty,")),
    "pad_token_id": optional(whole(0)),
    "bos_token_id": optional(whole(0)),
    "decoder_start_token_id": optional(whole(0)),
    "output_attentions": TRUTH,
    "output_scores": TRUTH,
    "output_logits": TRUTH,
    "seed": (seeds, "a whole number of at least 0, or one for each input"),
}
DEFAULTS = {field.name: field.default for field in dataclasses.fields(GenerationConfig)}
OFF = {"top_k": 0}  # where None means something else than the default
