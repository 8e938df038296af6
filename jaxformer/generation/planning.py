"""From settings and prompts to the plan that a compiled search takes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.errors import InputError, shortened
from jaxformer.generation import processors, warpers
from jaxformer.generation.arrays import MANY, fill_right, round_up, token_array
from jaxformer.generation.automata import check_texts, ends_of, roomy, side_by_side, stop_automaton
from jaxformer.generation.config import GenerationConfig, TokenIds, as_tuple
from jaxformer.generation.plan import Automaton, Phrases, Plan, Processor

SLOTS = 64  # sequences are stored at a multiple of this length, so that a new limit seldom means a new program
Allowed = Automaton | Sequence[Automaton] | None


def make_plan(
    config: GenerationConfig,
    limits: tuple[int, int],
    prompt: np.ndarray,
    mask: np.ndarray,
    *,
    read: Any = None,
    allowed: Allowed = None,
    token_texts: Sequence[str] | None = None,
    key: jax.Array | None = None,
) -> Plan:
    """The settings as the compiled program takes them, for prompts [B, P] with `mask`. read: the source, if any."""
    beams, sample = config.num_beams, config.do_sample and config.temperature > 0
    kept = max(2, len(config.eos_ids) + 1) if beams > 1 else 1
    B, P = prompt.shape
    reads = config.encoder_repetition_penalty != 1 or config.encoder_no_repeat_ngram_size > 0
    source = token_array("inputs", prompt if read is None else read) if reads else np.zeros((B, 0), np.int32)
    return Plan(
        beams=beams,
        copies=beams if beams > 1 else config.num_return_sequences,
        sample=sample,
        processors=active_processors(config, limits[0], sample, constrained=allowed is not None),
        record_scores=config.output_scores,
        record_logits=config.output_logits,
        prompt_length=int32(P),
        prompt_start=int32(mask.argmax(axis=1)),
        source=int32(fill_right(source, round_up(source.shape[1], SLOTS), -1)),
        min_length=int32(limits[0]),
        max_length=int32(limits[1]),
        eos=int32(config.eos_ids),
        forced_eos=int32(as_tuple(config.forced_eos_token_id)),
        forced_bos=int32(config.forced_bos_token_id or 0),
        padding=int32(config.padding),
        length_penalty=float32(config.length_penalty),
        early_stopping=int32(2 if config.early_stopping == "never" else config.early_stopping),
        temperature=float32(config.temperature),
        top_k=int32(max(config.top_k, kept)),
        dropped_mass=float32(1 - config.top_p),
        min_p=float32(config.min_p or 0),
        kept=int32(kept),
        top_h=float32(config.top_h or 0),
        typical_mass=float32(config.typical_p),
        epsilon=float32(config.epsilon_cutoff),
        eta=float32(config.eta_cutoff),
        biased=phrases(weighed(config.sequence_bias)),
        banned=phrases(forbidden(config)),
        repetition_penalty=float32(config.repetition_penalty),
        source_penalty=float32(config.encoder_repetition_penalty),
        ngram_size=int32(config.no_repeat_ngram_size),
        source_ngram_size=int32(config.encoder_no_repeat_ngram_size),
        suppressed=some(config.suppress_tokens),
        begin_suppressed=some(config.begin_suppress_tokens),
        begin=int32(P + (P == 1 and config.forced_bos_token_id is not None)),
        decay=float32(config.exponential_decay_length_penalty or (0, 1)),
        stops=stops(config, token_texts, prompt),
        grammar=None if allowed is None else grammar(config, allowed, B),
        seeds=input_seeds(config.seed, B) if key is None else seeds_from_key(key, B),
    )


def input_seeds(seed: int | Sequence[int], batch: int) -> Any:
    """Seed and stream of each input [B, 2]: one seed and a stream each, or a seed each and the first stream."""
    if isinstance(seed, int):
        return int32([(seed % 2**31, stream) for stream in range(batch)])
    if len(seed) != batch:
        raise InputError(f"there are {batch} inputs, but {len(seed)} seeds")
    return int32([(each % 2**31, 0) for each in seed])


def seeds_from_key(key: jax.Array, batch: int) -> Any:
    """Return what `input_seeds` returns, drawn from a key of `jax.random`."""
    try:
        return int32(jax.random.bits(key, (batch, 2), "uint32") >> 1)
    except TypeError as error:
        raise InputError(f"key must be made by jax.random.key, not {shortened(repr(key), 60)}") from error


def weighed(phrases: Any) -> list[tuple[Sequence[int], float]]:
    """Return token sequences and what completing each adds to a score: of `sequence_bias`, or of `bad_words_ids`.

    Of a sequence that is named twice, the last number counts, as in a mapping.
    """
    pairs = list(phrases.items() if isinstance(phrases, Mapping) else phrases or ())
    named = [(each[0], each[1]) if isinstance(each[0], Sequence) else (each, -math.inf) for each in pairs]
    return list({tuple(tokens): bias for tokens, bias in named}.items())


def forbidden(config: GenerationConfig) -> list[tuple[Sequence[int], float]]:
    """The sequences that may not be completed; EOS tokens alone always may."""
    return [pair for pair in weighed(config.bad_words_ids) if not (len(pair[0]) == 1 and pair[0][0] in config.eos_ids)]


def phrases(weighed: list[tuple[Sequence[int], float]]) -> Phrases:
    """Token sequences as arrays, with room for more, so that another few of them are not another program."""
    n, m = round_up(len(weighed), 8), round_up(max((len(each) for each, _ in weighed), default=0), 4)
    tokens, lengths, bias = np.full((n, m), -1), np.zeros(n, int), np.zeros(n)
    for row, (each, added) in enumerate(weighed):
        tokens[row, m - len(each) :], lengths[row], bias[row] = each, len(each), added
    return Phrases(int32(tokens), int32(lengths), float32(bias))


def some(ids: TokenIds) -> Any:
    """Token ids as an array with room for more; what fills it is beyond any vocabulary."""
    return int32(np.pad(as_tuple(ids), (0, -len(as_tuple(ids)) % 8), constant_values=MANY).astype(np.int32))


def int32(value: Any) -> Any:
    """`value` as an argument of a compiled program: always of one type, so that the program is one."""
    return value.astype(np.int32) if isinstance(value, jax.core.Tracer) else np.asarray(value, np.int32)


def float32(value: Any) -> Any:
    """`value` as an argument of a compiled program, in float32."""
    return np.asarray(value, np.float32)


def stops(config: GenerationConfig, token_texts: Sequence[str] | None, prompt: np.ndarray) -> Automaton | None:
    """What sees the stop strings, where there are any."""
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
    return roomy(stop_automaton(strings, token_texts, prompt), len(prompt))


def machines(allowed: Allowed) -> list[Automaton]:
    """Return the automata of what is allowed, one or one for each input. Raises InputError for anything else."""
    found = [] if allowed is None else [allowed] if isinstance(allowed, Automaton) else allowed
    if not isinstance(found, list | tuple) or not all(isinstance(each, Automaton) for each in found):
        wrong = shortened(repr(allowed), 60)
        raise InputError(
            f"allowed must be made by allow_phrases or allow_regex, one or one for each input, not {wrong}"
        )
    return list(found)


def grammar(config: GenerationConfig, allowed: Automaton | Sequence[Automaton], batch: int) -> Automaton:
    """What each input may say: the same, or something of its own."""
    for machine in machines(allowed):
        ends = ends_of(machine)
        if ends != sorted({*config.eos_ids}):
            raise InputError(f"allowed ends with the EOS tokens {ends}, but eos_token_id is {config.eos_token_id}")
    if isinstance(allowed, Automaton):
        return roomy(allowed, batch)
    if len(allowed) != batch:
        raise InputError(f"there are {batch} inputs, but {len(allowed)} automata of what is allowed")
    return roomy(side_by_side(allowed), batch)


def active_processors(
    config: GenerationConfig, min_length: int, sample: bool, constrained: bool
) -> tuple[Processor, ...]:
    """The processors that the settings call for, in the order in which they apply."""
    table = (
        (bool(config.sequence_bias), processors.add_sequence_bias),
        (config.encoder_repetition_penalty != 1, processors.penalize_source),
        (config.repetition_penalty != 1, processors.penalize_repetition),
        (config.no_repeat_ngram_size > 0, processors.ban_repeated_ngrams),
        (config.encoder_no_repeat_ngram_size > 0, processors.ban_source_ngrams),
        (bool(forbidden(config)), processors.ban_words),
        (bool(config.eos_ids) and min_length > 0, processors.require_min_length),
        (config.forced_bos_token_id is not None, processors.force_bos),
        (config.forced_eos_token_id is not None, processors.force_eos),
        (config.remove_invalid_values, processors.remove_invalid),
        (bool(config.eos_ids) and config.exponential_decay_length_penalty is not None, processors.raise_eos),
        (bool(as_tuple(config.suppress_tokens)), processors.suppress),
        (bool(as_tuple(config.begin_suppress_tokens)), processors.suppress_at_begin),
        (constrained, processors.keep_to_grammar),
        (sample and config.temperature != 1, warpers.scale_by_temperature),
        (sample and config.top_h is not None, warpers.keep_top_h),
        (sample and config.top_k > 0, warpers.keep_top_k),
        (sample and config.top_p < 1, warpers.keep_top_p),
        (sample and config.min_p is not None, warpers.keep_min_p),
        (sample and config.typical_p < 1, warpers.keep_typical),
        (sample and config.epsilon_cutoff > 0, warpers.keep_above_epsilon),
        (sample and config.eta_cutoff > 0, warpers.keep_above_eta),
        (config.renormalize_logits, processors.renormalize),
    )
    return tuple(processor for active, processor in table if active)
