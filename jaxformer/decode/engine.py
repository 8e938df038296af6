"""The decoding engine: any step function, any cache, one compiled program per mode and shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decode import processors, warpers
from jaxformer.decode.beam import BEAM
from jaxformer.decode.config import GenerationConfig, as_tuple
from jaxformer.decode.loop import Found, Search, Select, Step, Strategy, choose, finish
from jaxformer.decode.observation import AttentionMaps, trimmed
from jaxformer.decode.plan import Plan, Processor
from jaxformer.decode.sampling import SAMPLING
from jaxformer.errors import InputError

SLOTS = 64  # sequences are stored at a multiple of this length, so that a new limit seldom means a new program
MANY = 2**31 - 1  # more than any vocabulary or sequence has


@dataclass(frozen=True)
class Generated:
    """Token ids int32 [B * num_return_sequences, length], prompts included, and the score of each sequence.

    Beam search: log-probability / generated length ** length_penalty, best first within each input, log-probabilities
    as the processors left them. Greedy decoding and sampling: log-probability that the model itself gave to the
    generated tokens. Rows that end early are padded. attentions: what the model looked at, if it was asked for.
    """

    sequences: np.ndarray
    scores: np.ndarray
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
    **settings: Any,
) -> Generated:
    """Sequences that continue the prompts [B, P], by any model that is a step over a cache.

    step: a *pytree* callable, say `jax.tree_util.Partial(function, parameters)`, so that its weights are arguments of
    the compiled program: step(tokens [R, T], cache) -> (logits [R, V] of the token after the last one, cache). It first
    reads the prompts at once (R = B), then one token at a time with R = B * num_beams (or num_return_sequences) rows.
    cache: the pytree that goes with it, with room for all tokens but the last; select(cache, rows) picks rows of it.
    prompt_mask: boolean [B, P], False at left padding, which repetition penalties skip; what else padding means is up
    to the step. settings: changes to `config`. Raises InputError for settings or prompts that cannot be used.
    """
    if jax.tree_util.all_leaves([step]):
        raise InputError("step must be a pytree: wrap a function as jax.tree_util.Partial(function, parameters)")
    config = (config or GenerationConfig()).replace(**settings)
    if config.output_attentions:
        raise InputError("a step shows no attention: leave output_attentions out, or use generate with a model")
    prompt = token_array("prompt", prompt)
    mask = mask_array("prompt_mask", prompt_mask, prompt)
    plan = make_plan(config, prompt.shape[1], config.length_limits(prompt.shape[1]), mask)
    tokens = fill_right(prompt, round_up(int(plan.max_length), SLOTS), config.padding)
    found = decode_compiled(step, cache, tokens, plan, prompt_slots=prompt.shape[1], select=select)
    return returned(found, config)


@partial(jax.jit, static_argnames=("prompt_slots", "select"))
def decode_compiled(
    step: Step, cache: Any, tokens: jax.Array, plan: Plan, *, prompt_slots: int, select: Select
) -> Found:
    """What `decode` compiles: the prompts, the first `prompt_slots` of tokens [B, slots], are read and continued."""
    logits, cache = step(tokens[:, :prompt_slots], cache)
    strategy = strategy_of(plan)
    search = begin(plan, select, tokens, logits, cache)
    return strategy.result(finish(plan, strategy, in_float32(step), select, search).state)


def strategy_of(plan: Plan) -> Strategy:
    """How to search."""
    return BEAM if plan.beams > 1 else SAMPLING


def begin(plan: Plan, select: Select, tokens: jax.Array, logits: jax.Array, cache: Any) -> Search:
    """A search from the prompts in tokens [B, slots], with their first new token chosen from the logits [B, V]."""
    if plan.copies > 1:
        rows = jnp.repeat(jnp.arange(tokens.shape[0]), plan.copies)
        tokens, logits, cache = tokens[rows], logits[rows], select(cache, rows)
    strategy = strategy_of(plan)
    return choose(plan, strategy, select, Search(strategy.init(plan, tokens), cache), logits.astype(jnp.float32))


def in_float32(step: Step) -> Step:
    """The step with its logits in float32, whatever the model computes in."""

    def float32_step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = step(tokens, cache)
        return logits.astype(jnp.float32), cache

    return float32_step


def returned(found: Found, config: GenerationConfig, maps: Any = None, source_length: int = 0) -> Generated:
    """The sequences asked for, cut to the longest of them, with their share of the maps [rows of the search, ...]."""
    copies = config.num_beams if config.num_beams > 1 else config.num_return_sequences
    rows = np.arange(len(found.lengths)).reshape(-1, copies)[:, : config.num_return_sequences].reshape(-1)
    tokens, scores, lengths = (np.asarray(array)[rows] for array in found)
    attentions = None if maps is None else trimmed(maps, rows, lengths, source_length)
    return Generated(tokens[:, : lengths.max()], scores, attentions)


def make_plan(config: GenerationConfig, prompt: int, limits: tuple[int, int], mask: np.ndarray) -> Plan:
    """The settings as the compiled program takes them, for prompts of `prompt` tokens with `mask` [B, P]."""
    beams, sample = config.num_beams, config.do_sample and config.temperature > 0
    kept = max(2, len(config.eos_ids) + 1) if beams > 1 else 1
    return Plan(
        beams=beams,
        copies=beams if beams > 1 else config.num_return_sequences,
        sample=sample,
        processors=active_processors(config, limits[0], sample),
        prompt_length=int32(prompt),
        prompt_start=int32(mask.argmax(axis=1)),
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
        repetition_penalty=float32(config.repetition_penalty),
        ngram_size=int32(min(config.no_repeat_ngram_size, MANY)),
        seeds=input_seeds(config.seed, len(mask)),
    )


def input_seeds(seed: int | Sequence[int], batch: int) -> Any:
    """Seed and stream of each input [B, 2]: one seed and a stream each, or a seed each and the first stream."""
    if isinstance(seed, int):
        return int32([(seed % 2**31, stream) for stream in range(batch)])
    if len(seed) != batch:
        raise InputError(f"there are {batch} inputs, but {len(seed)} seeds")
    return int32([(each % 2**31, 0) for each in seed])


def int32(value: Any) -> Any:
    """`value` as an argument of a compiled program: always of one type, so that the program is one."""
    return np.asarray(value, np.int32)


def float32(value: Any) -> Any:
    """`value` as an argument of a compiled program, in float32."""
    return np.asarray(value, np.float32)


def active_processors(config: GenerationConfig, min_length: int, sample: bool) -> tuple[Processor, ...]:
    """The processors that the settings call for, in the order in which they apply."""
    table = (
        (config.repetition_penalty != 1, processors.penalize_repetition),
        (config.no_repeat_ngram_size > 0, processors.ban_repeated_ngrams),
        (bool(config.eos_ids) and min_length > 0, processors.require_min_length),
        (config.forced_bos_token_id is not None, processors.force_bos),
        (config.forced_eos_token_id is not None, processors.force_eos),
        (sample and config.temperature != 1, warpers.scale_by_temperature),
        (sample and config.top_k > 0, warpers.keep_top_k),
        (sample and config.top_p < 1, warpers.keep_top_p),
        (sample and config.min_p is not None, warpers.keep_min_p),
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
