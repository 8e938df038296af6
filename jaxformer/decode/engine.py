"""The decoding engine: any step function, any cache, one compiled program per mode and shape."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decode import processors, warpers
from jaxformer.decode.automata import roomy, side_by_side, stop_automaton
from jaxformer.decode.beam import BEAM, OUT
from jaxformer.decode.config import GenerationConfig, TokenIds, as_tuple
from jaxformer.decode.loop import Found, Record, Search, Select, Step, Strategy, choose, finish
from jaxformer.decode.observation import AttentionMaps, trimmed
from jaxformer.decode.plan import Automaton, Phrases, Plan, Processor
from jaxformer.decode.sampling import SAMPLING
from jaxformer.errors import InputError

SLOTS = 64  # sequences are stored at a multiple of this length, so that a new limit seldom means a new program
Allowed = Automaton | Sequence[Automaton] | None
MANY = 2**31 - 1  # more than any vocabulary or sequence has


@dataclass(frozen=True)
class Generated:
    """Token ids int32 [R = B * num_return_sequences, length], prompts included, rows that end early padded; and more.

    sequences_scores [R]: in beam search log-probability / generated length ** length_penalty, best first within each
    input, log-probabilities as the processors left them; in greedy decoding and sampling the log-probability that the
    model itself gave to the generated tokens. beam_indices [R, generated length]: the row of the search, of B *
    num_beams, in which each token was chosen, -1 behind the end; None without beams. If asked for: scores, by which the
    tokens were chosen, and logits, which the model gave, float32 [steps, rows of the search, V]; attentions.
    """

    sequences: np.ndarray
    sequences_scores: np.ndarray
    beam_indices: np.ndarray | None = None
    scores: np.ndarray | None = None
    logits: np.ndarray | None = None
    attentions: AttentionMaps | None = None


def select_rows(cache: Any, rows: jax.Array) -> Any:
    """The cache of the batch rows `rows` [R], in that order: axis 0 of every leaf that has axes."""
    return jax.tree.map(lambda leaf: leaf[rows] if jnp.ndim(leaf) else leaf, cache)


def decode(
    step: Any,
    cache: Any,
    prompt: Any,
    config: GenerationConfig | None = None,
    *,
    prompt_mask: Any = None,
    select: Select = select_rows,
    allowed: Allowed = None,
    token_texts: Sequence[str] | None = None,
    **settings: Any,
) -> Generated:
    """Sequences that continue the prompts [B, P], by any model that is a step over a cache.

    step: a *pytree* callable, say `jax.tree_util.Partial(function, parameters)`, so that its weights are arguments of
    the compiled program: step(tokens [R, T], cache) -> (logits [R, V] of the token after the last one, cache). It first
    reads the prompts at once (R = B), then one token at a time with R = B * num_beams (or num_return_sequences) rows.
    cache: the pytree that goes with it, with room for all tokens but the last; select(cache, rows) picks rows of it.
    prompt_mask: boolean [B, P], False at left padding, which repetition penalties skip; what else padding means is up
    to the step. allowed: the only sequences that may be generated, see `allow_phrases` and `allow_regex`; one for all
    inputs or one each. Where there are fewer of them than beams, the sequences left over are empty and score -inf.
    token_texts: what each token says, for stop strings. settings: changes to `config`. Raises InputError for settings
    or prompts that cannot be used.
    """
    if jax.tree_util.all_leaves([step]):
        raise InputError("step must be a pytree: wrap a function as jax.tree_util.Partial(function, parameters)")
    config = (config or GenerationConfig()).replace(**settings)
    if config.output_attentions:
        raise InputError("a step shows no attention: leave output_attentions out, or use generate with a model")
    prompt = token_array("prompt", prompt)
    mask = mask_array("prompt_mask", prompt_mask, prompt)
    limits = config.length_limits(prompt.shape[1])
    plan = make_plan(config, limits, prompt, mask, allowed=allowed, token_texts=token_texts)
    tokens = fill_right(prompt, round_up(int(plan.max_length), SLOTS), config.padding)
    found = decode_compiled(step, cache, tokens, plan, prompt_slots=prompt.shape[1], select=select)
    return returned(found, config, plan)


@partial(jax.jit, static_argnames=("prompt_slots", "select"))
def decode_compiled(
    step: Step, cache: Any, tokens: jax.Array, plan: Plan, *, prompt_slots: int, select: Select
) -> Found:
    """What `decode` compiles: the prompts, the first `prompt_slots` of tokens [B, slots], are read and continued."""
    logits, cache = step(tokens[:, :prompt_slots], cache)
    strategy = strategy_of(plan)
    search = begin(plan, select, tokens, logits, cache)
    search = finish(plan, strategy, in_float32(step), select, search)
    return strategy.result(search.state, search.record)


def strategy_of(plan: Plan) -> Strategy:
    """How to search."""
    return BEAM if plan.beams > 1 else SAMPLING


def begin(plan: Plan, select: Select, tokens: jax.Array, logits: jax.Array, cache: Any) -> Search:
    """A search from the prompts in tokens [B, slots], with their first new token chosen from the logits [B, V]."""
    if plan.copies > 1:
        rows = jnp.repeat(jnp.arange(tokens.shape[0]), plan.copies)
        tokens, logits, cache = tokens[rows], logits[rows], select(cache, rows)
    strategy, logits = strategy_of(plan), logits.astype(jnp.float32)
    pages = jnp.zeros((tokens.shape[1], *logits.shape), jnp.float32)
    record = Record(pages if plan.record_scores else None, pages if plan.record_logits else None)
    return choose(plan, strategy, select, Search(strategy.init(plan, tokens), cache, record), logits)


def in_float32(step: Step) -> Step:
    """The step with its logits in float32, whatever the model computes in."""

    def float32_step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = step(tokens, cache)
        return logits.astype(jnp.float32), cache

    return float32_step


def returned(found: Found, config: GenerationConfig, plan: Plan, maps: Any = None, source_length: int = 0) -> Generated:
    """The sequences asked for, cut to the longest of them, with their share of the maps [rows of the search, ...]."""
    prompt = int(plan.prompt_length)
    copies = config.num_beams if config.num_beams > 1 else config.num_return_sequences
    rows = np.arange(len(found.lengths)).reshape(-1, copies)[:, : config.num_return_sequences].reshape(-1)
    tokens, scores, lengths = (np.asarray(array)[rows] for array in found[:3])
    if plan.grammar is not None and config.num_beams > 1:
        empty = scores < OUT / 2  # places that no allowed sequence took
        scores, lengths = np.where(empty, -np.inf, scores), np.where(empty, prompt, lengths)
        tokens = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, max(config.padding, 0))
    longest, steps = lengths.max(), int(found.length) - prompt
    origins = None if found.origins is None else np.asarray(found.origins)[rows, prompt:longest]
    return Generated(
        tokens[:, :longest],
        scores,
        None if origins is None else np.where(np.arange(prompt, longest) < lengths[:, None], origins, -1),
        *(None if pages is None else np.asarray(pages)[:steps] for pages in found.record),
        attentions=None if maps is None else trimmed(maps, rows, lengths, source_length),
    )


def make_plan(
    config: GenerationConfig,
    limits: tuple[int, int],
    prompt: np.ndarray,
    mask: np.ndarray,
    *,
    read: Any = None,
    allowed: Allowed = None,
    token_texts: Sequence[str] | None = None,
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
        top_k=int32(min(max(config.top_k, kept), MANY)),
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
        ngram_size=int32(min(config.no_repeat_ngram_size, MANY)),
        source_ngram_size=int32(min(config.encoder_no_repeat_ngram_size, MANY)),
        suppressed=some(config.suppress_tokens),
        begin_suppressed=some(config.begin_suppress_tokens),
        begin=int32(P + (P == 1 and config.forced_bos_token_id is not None)),
        decay=float32(config.exponential_decay_length_penalty or (0, 1)),
        stops=stops(config, token_texts, prompt),
        grammar=None if allowed is None else grammar(allowed, B),
        seeds=input_seeds(config.seed, B),
    )


def input_seeds(seed: int | Sequence[int], batch: int) -> Any:
    """Seed and stream of each input [B, 2]: one seed and a stream each, or a seed each and the first stream."""
    if isinstance(seed, int):
        return int32([(seed % 2**31, stream) for stream in range(batch)])
    if len(seed) != batch:
        raise InputError(f"there are {batch} inputs, but {len(seed)} seeds")
    return int32([(each % 2**31, 0) for each in seed])


def weighed(phrases: Any) -> list[tuple[Sequence[int], float]]:
    """Token sequences and what completing each adds to a score: those of `sequence_bias`, or of `bad_words_ids`."""
    pairs = list(phrases.items() if isinstance(phrases, Mapping) else phrases or ())
    return [(each[0], each[1]) if isinstance(each[0], Sequence) else (each, -math.inf) for each in pairs]


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
    return np.asarray(value, np.int32)


def float32(value: Any) -> Any:
    """`value` as an argument of a compiled program, in float32."""
    return np.asarray(value, np.float32)


def stops(config: GenerationConfig, token_texts: Sequence[str] | None, prompt: np.ndarray) -> Automaton | None:
    """What sees the stop strings, where there are any."""
    if config.stop_strings is None:
        return None
    if token_texts is None:
        raise InputError("stop_strings need the text of each token: give token_texts, or a checkpoint with a tokenizer")
    strings = [config.stop_strings] if isinstance(config.stop_strings, str) else config.stop_strings
    return roomy(stop_automaton(strings, token_texts, prompt), len(prompt))


def grammar(allowed: Automaton | Sequence[Automaton], batch: int) -> Automaton:
    """What each input may say: the same, or something of its own."""
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
        (bool(config.suppress_tokens), processors.suppress),
        (bool(config.begin_suppress_tokens), processors.suppress_at_begin),
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


def token_array(name: str, ids: Any) -> np.ndarray:
    """Token ids as an int32 array [B, T]. Raises InputError unless they are whole numbers in rows of one length."""
    try:
        array = np.asarray(ids)
    except ValueError as error:
        raise InputError(f"{name} must be rows of one length: pad the shorter ones") from error
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"{name} must be token ids [batch, length] and not empty, but has shape {array.shape}")
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be whole numbers, not {array.dtype}")
    return array.astype(np.int32)


def mask_array(name: str, mask: Any, tokens: np.ndarray) -> np.ndarray:
    """A mask as a boolean array of the shape of `tokens`; None is all True. Raises InputError for another shape."""
    array = np.ones(tokens.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    if array.shape != tokens.shape:
        raise InputError(f"{name} has shape {array.shape}, but the tokens have {tokens.shape}")
    return array


def fill_right(array: np.ndarray, width: int, value: int) -> np.ndarray:
    """The array [B, T] with `value` to its right, [B, width]."""
    return np.pad(array, ((0, 0), (0, width - array.shape[1])), constant_values=value)


def round_up(length: int, multiple: int, limit: int | None = None) -> int:
    """The next multiple of `multiple` that is no less than `length`, but no more than `limit`."""
    rounded = -(-length // multiple) * multiple
    return rounded if limit is None else min(rounded, limit)
