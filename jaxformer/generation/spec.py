"""What a compiled search knows of its settings: the mode, which selects the program, and numbers, which do not."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError, shortened
from jaxformer.generation import processors, warpers
from jaxformer.generation.arrays import MANY, fill_right, round_up, token_array
from jaxformer.generation.automata import Automaton, check_texts, ends_of, pad_to_bucket, side_by_side, stop_automaton
from jaxformer.generation.config import GenerationConfig, TokenIds, as_tuple
from jaxformer.generation.processors import Context, LogitsProcessor

SLOTS = 64  # sequences are stored at a multiple of this length, so that a new limit seldom means a new program
Allowed = Automaton | Sequence[Automaton] | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SearchSpec:
    """Settings of a search as one pytree: the first five fields are static, all others are traced.

    So a program is compiled once per mode, and once per number of EOS tokens, a shape; lengths, penalties, thresholds
    and seeds may change from call to call.

    Attributes:
        beams: Number of beams W of each input.
        copies: Rows of each input: beams or samples.
        sample: Whether tokens are drawn.
        record_scores: Whether the processed scores of every step are kept.
        record_logits: Whether the model's logits of every step are kept.
        processors: What changes scores, in order.
        prompt_length: Number of tokens of the prompts, left padding included.
        max_length: Most tokens of a sequence, prompt included.
        eos: EOS tokens, int32 [n].
        padding: Token after a sequence's end.
        length_penalty: Exponent of the length that beam scores are divided by.
        early_stopping: 0 False, 1 True, 2 "never".
        stop_fsm: Automaton that sees stop strings. None: there are none.
        constraint_fsm: Automaton of what may be generated. None: anything.
        seeds: Numbers that each input's random keys come from, int32 [B, 2].
    """

    beams: int = field(metadata={"static": True})
    copies: int = field(metadata={"static": True})
    sample: bool = field(metadata={"static": True})
    record_scores: bool = field(metadata={"static": True})
    record_logits: bool = field(metadata={"static": True})
    processors: tuple[LogitsProcessor, ...]
    prompt_length: Any
    max_length: Any
    eos: Any
    padding: Any
    length_penalty: Any
    early_stopping: Any
    stop_fsm: Automaton | None
    constraint_fsm: Automaton | None
    seeds: Any


class FSMStates(NamedTuple):
    """States of the automata after every sequence.

    Attributes:
        stop: int32 [...], of the automaton that sees stop strings. None: there is none.
        constraint: int32 [...], of the automaton of allowed sequences. None: there is none.
    """

    stop: jax.Array | None
    constraint: jax.Array | None


def make_spec(
    config: GenerationConfig,
    limits: tuple[int, int],
    prompt: np.ndarray,
    mask: np.ndarray,
    *,
    source: Any = None,
    allowed: Allowed = None,
    token_texts: Sequence[str] | None = None,
    key: jax.Array | None = None,
    logits_processors: tuple[LogitsProcessor, ...] = (),
) -> SearchSpec:
    """Return the settings as the compiled program takes them.

    Args:
        config: The settings.
        limits: Least and most tokens of a sequence, prompt included.
        prompt: Token ids [B, P].
        mask: Boolean [B, P], True at real tokens.
        source: Token ids [B, S] of an encoder-decoder.
        allowed: What may be generated, an automaton for all inputs or one for each.
        token_texts: The text of each token, for stop strings.
        key: Key of `jax.random` in place of the setting `seed`.
        logits_processors: The user's, applied after those of the settings and before temperature and truncations.
    """
    beams, B, P = config.num_beams, *prompt.shape
    reads = config.encoder_repetition_penalty != 1 or config.encoder_no_repeat_ngram_size > 0
    text = token_array("inputs", prompt if source is None else source) if reads else np.zeros((B, 0), np.int32)
    text = int32(fill_right(text, round_up(text.shape[1], SLOTS), -1))
    rules = score_rules(config, limits, P, mask, text)
    rules += logits_processors
    if allowed is not None:  # whatever the others do
        rules.append(processors.Constraint())
    if config.do_sample and config.temperature > 0:
        rules += sampling_warpers(config)
    if config.renormalize_logits:
        rules.append(processors.LogitNormalization())
    return SearchSpec(
        beams=beams,
        copies=beams if beams > 1 else config.num_return_sequences,
        sample=config.do_sample and config.temperature > 0,
        record_scores=config.output_scores,
        record_logits=config.output_logits,
        processors=tuple(rules),
        prompt_length=int32(P),
        max_length=int32(limits[1]),
        eos=int32(config.eos_ids),
        padding=int32(config.padding),
        length_penalty=float32(config.length_penalty),
        early_stopping=int32(2 if config.early_stopping == "never" else config.early_stopping),
        stop_fsm=stop_fsm(config, token_texts, prompt),
        constraint_fsm=None if allowed is None else constraint_fsm(config, allowed, B),
        seeds=input_seeds(config.seed, B) if key is None else seeds_from_key(key, B),
    )


def score_rules(
    config: GenerationConfig, limits: tuple[int, int], prompt_length: int, mask: np.ndarray, source: Any
) -> list[LogitsProcessor]:
    """Return the processors that the settings ask for, whatever the search, in the order in which they apply."""
    eos, begin = int32(config.eos_ids), prompt_length + (prompt_length == 1 and config.forced_bos_token_id is not None)
    decay = config.exponential_decay_length_penalty
    start, factor = decay or (0, 1.0)
    table = (
        (bool(config.sequence_bias), lambda: processors.SequenceBias(*phrases(as_pairs(config.sequence_bias)))),
        (
            config.encoder_repetition_penalty != 1,
            lambda: processors.EncoderRepetitionPenalty(float32(config.encoder_repetition_penalty), source),
        ),
        (
            config.repetition_penalty != 1,
            lambda: processors.RepetitionPenalty(float32(config.repetition_penalty), int32(mask.argmax(axis=1))),
        ),
        (config.no_repeat_ngram_size > 0, lambda: processors.NoRepeatNGram(int32(config.no_repeat_ngram_size))),
        (
            config.encoder_no_repeat_ngram_size > 0,
            lambda: processors.EncoderNoRepeatNGram(int32(config.encoder_no_repeat_ngram_size), source),
        ),
        (bool(forbidden(config)), lambda: processors.SequenceBias(*phrases(forbidden(config)))),
        (bool(config.eos_ids) and limits[0] > 0, lambda: processors.MinLength(int32(limits[0]), eos)),
        (config.forced_bos_token_id is not None, lambda: processors.ForcedBOS(int32(config.forced_bos_token_id))),
        (
            config.forced_eos_token_id is not None,
            lambda: processors.ForcedEOS(int32(as_tuple(config.forced_eos_token_id)), int32(limits[1])),
        ),
        (config.remove_invalid_values, processors.InfNanRemove),
        (
            bool(config.eos_ids) and decay is not None,
            lambda: processors.ExponentialDecayLength(float32(start), float32(factor), eos),
        ),
        (
            bool(as_tuple(config.suppress_tokens)),
            lambda: processors.SuppressTokens(pad_token_ids(config.suppress_tokens)),
        ),
        (
            bool(as_tuple(config.begin_suppress_tokens)),
            lambda: processors.SuppressTokensAtBegin(pad_token_ids(config.begin_suppress_tokens), int32(begin)),
        ),
    )
    return [make() for active, make in table if active]


def sampling_warpers(config: GenerationConfig) -> list[LogitsProcessor]:
    """Return temperature and truncations as the settings ask for them, in the order in which they apply."""
    least = max(2, len(config.eos_ids) + 1) if config.num_beams > 1 else 1  # tokens that every truncation leaves
    kept = int32(least)
    table = (
        (config.temperature != 1, lambda: warpers.Temperature(float32(config.temperature))),
        (config.top_h is not None, lambda: warpers.TopH(float32(config.top_h))),
        (config.top_k > 0, lambda: warpers.TopK(int32(max(config.top_k, least)))),
        (config.top_p < 1, lambda: warpers.TopP(float32(1 - config.top_p), kept)),
        (config.min_p is not None, lambda: warpers.MinP(float32(config.min_p), kept)),
        (config.typical_p < 1, lambda: warpers.TypicalP(float32(config.typical_p), kept)),
        (config.epsilon_cutoff > 0, lambda: warpers.EpsilonCutoff(float32(config.epsilon_cutoff), kept)),
        (config.eta_cutoff > 0, lambda: warpers.EtaCutoff(float32(config.eta_cutoff), kept)),
    )
    return [make() for active, make in table if active]


def input_seeds(seed: int | Sequence[int], batch: int) -> Any:
    """Return seed and stream of each input [B, 2]: one seed and a stream each, or a seed each and the first stream."""
    if isinstance(seed, int):
        return int32([(seed % 2**31, stream) for stream in range(batch)])
    if len(seed) != batch:
        raise InputError(f"there are {batch} inputs, but {len(seed)} seeds")
    return int32([(each % 2**31, 0) for each in seed])


def seeds_from_key(key: jax.Array, batch: int) -> Any:
    """Return what `input_seeds` returns, drawn from a key of `jax.random`."""
    try:
        return int32(jax.random.bits(key, (batch, 2), "uint32") >> 1)
    except (TypeError, ValueError) as error:
        raise InputError(f"key must be one key, made by jax.random.key, not {shortened(repr(key), 60)}") from error


def check_one_source(key: Any, settings: Mapping[str, Any]) -> None:
    """Raise InputError where a key and a seed are given."""
    if key is not None and settings.get("seed") is not None:
        raise InputError("give key or seed, not both")


def as_pairs(phrases: Any) -> list[tuple[Sequence[int], float]]:
    """Return token sequences and what completing each adds to a score: of `sequence_bias`, or of `bad_words_ids`.

    Of a sequence that is named twice, the last number counts, as in a mapping.
    """
    pairs = list(phrases.items() if isinstance(phrases, Mapping) else phrases or ())
    named = [(each[0], each[1]) if isinstance(each[0], Sequence) else (each, -math.inf) for each in pairs]
    return list({tuple(tokens): bias for tokens, bias in named}.items())


def forbidden(config: GenerationConfig) -> list[tuple[Sequence[int], float]]:
    """Return the sequences that may not be completed; EOS tokens alone always may."""
    return [pair for pair in as_pairs(config.bad_words_ids) if not (len(pair[0]) == 1 and pair[0][0] in config.eos_ids)]


def phrases(pairs: list[tuple[Sequence[int], float]]) -> tuple[Any, Any, Any]:
    """Return token sequences as arrays: tokens [n, m], lengths [n] and biases [n], see `processors.SequenceBias`.

    They have room for more, so that another few of them are not another program.
    """
    n, m = round_up(len(pairs), 8), round_up(max((len(each) for each, _ in pairs), default=0), 4)
    tokens, lengths, bias = np.full((n, m), -1), np.zeros(n, int), np.zeros(n)
    for row, (each, added) in enumerate(pairs):
        tokens[row, m - len(each) :], lengths[row], bias[row] = each, len(each), added
    return int32(tokens), int32(lengths), float32(bias)


def pad_token_ids(ids: TokenIds) -> Any:
    """Return token ids as an array, padded to a multiple of 8 with an id outside of any vocabulary."""
    return int32(np.pad(as_tuple(ids), (0, -len(as_tuple(ids)) % 8), constant_values=MANY).astype(np.int32))


def int32(value: Any) -> Any:
    """Return an argument of a compiled program: always of one type, so that the program is one."""
    return value.astype(np.int32) if isinstance(value, jax.core.Tracer) else np.asarray(value, np.int32)


def float32(value: Any) -> Any:
    """Return an argument of a compiled program in float32."""
    return np.asarray(value, np.float32)


def stop_fsm(config: GenerationConfig, token_texts: Sequence[str] | None, prompt: np.ndarray) -> Automaton | None:
    """Return the automaton that sees the stop strings, if there are any."""
    if config.stop_strings is None:
        return None
    if token_texts is None:
        raise InputError("stop_strings need the text of each token: give token_texts, or a checkpoint with a tokenizer")
    if isinstance(prompt, jax.core.Tracer):
        raise InputError(
            "stop_strings need to know the prompt: leave them out inside jax.jit, or generate outside of it"
        )
    check_texts(token_texts)
    unsaid = prompt[prompt >= len(token_texts)]
    if unsaid.size:
        raise InputError(f"the prompt has token {unsaid[0]}, but token_texts are {len(token_texts)}: give one for each")
    strings = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings
    return pad_to_bucket(stop_automaton(strings, token_texts, prompt), len(prompt))


def machines(allowed: Allowed) -> list[Automaton]:
    """Return the automata of what is allowed, one or one for each input. Raises InputError for anything else."""
    found = [] if allowed is None else [allowed] if isinstance(allowed, Automaton) else allowed
    if not isinstance(found, list | tuple) or not all(isinstance(each, Automaton) for each in found):
        wrong = shortened(repr(allowed), 60)
        raise InputError(
            f"allowed must be made by allow_phrases or allow_regex, one or one for each input, not {wrong}"
        )
    return list(found)


def constraint_fsm(config: GenerationConfig, allowed: Automaton | Sequence[Automaton], batch: int) -> Automaton:
    """Return the automaton of what each input may generate: the same, or one of its own."""
    for machine in machines(allowed):
        ends = ends_of(machine)
        if ends != sorted({*config.eos_ids}):
            raise InputError(f"allowed ends with the EOS tokens {ends}, but eos_token_id is {config.eos_token_id}")
    if isinstance(allowed, Automaton):
        return pad_to_bucket(allowed, batch)
    if len(allowed) != batch:
        raise InputError(f"there are {batch} inputs, but {len(allowed)} automata of what is allowed")
    return pad_to_bucket(side_by_side(allowed), batch)


def is_any(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Return whether each token [...] is one of the `ids` [n]: boolean [...]."""
    return (tokens[..., None] == ids.reshape((1,) * tokens.ndim + (-1,))).any(-1)  # [..., n] -> [...]


def make_context(spec: SearchSpec, tokens: jax.Array, length: jax.Array, states: FSMStates) -> Context:
    """Return what processors may look at, for sequences [R, L] of which the first `length` tokens count."""
    return Context(tokens, length, spec.prompt_length, spec.constraint_fsm, states.constraint)


def first_states(spec: SearchSpec) -> FSMStates:
    """Return the states of the automata after the prompts, of which each has `copies` rows: [R]."""
    machines = (spec.stop_fsm, spec.constraint_fsm)
    return FSMStates(*(None if machine is None else jnp.repeat(machine.start, spec.copies) for machine in machines))


def next_states(spec: SearchSpec, states: FSMStates, tokens: jax.Array) -> FSMStates:
    """Return the states after one more token of each sequence, [...]; a forbidden token leads to the first state."""

    def read(machine: Automaton | None, state: jax.Array | None) -> jax.Array | None:
        if machine is None or state is None:
            return None
        return jnp.maximum(machine.next[state, machine.columns[tokens]], 0)

    return FSMStates(read(spec.stop_fsm, states.stop), read(spec.constraint_fsm, states.constraint))


def ends_with(spec: SearchSpec, states: FSMStates, tokens: jax.Array) -> jax.Array:
    """Return whether sequences end with their last tokens, boolean [...]: an EOS token, or a stop string in it."""
    ends = is_any(tokens, spec.eos)
    return ends if spec.stop_fsm is None or states.stop is None else ends | spec.stop_fsm.final[states.stop]
