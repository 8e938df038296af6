"""The decoding engine: any step function, any cache, one compiled program per mode and shape."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError, shortened
from jaxformer.generation.arrays import fill_right, is_traced, mask_array, round_up, token_array
from jaxformer.generation.beam import BEAM, NEG_INF
from jaxformer.generation.compiling import compiled
from jaxformer.generation.config import GenerationConfig
from jaxformer.generation.loop import Found, Record, Reorder, Search, Step, Strategy, choose, finish
from jaxformer.generation.observation import AttentionMaps, trimmed
from jaxformer.generation.processors import check_processors
from jaxformer.generation.sampling import SAMPLING
from jaxformer.generation.selection import INVALID_TOKEN
from jaxformer.generation.spec import SLOTS, Allowed, SearchSpec, check_one_source, make_spec
from jaxformer.schema import INT32_MAX


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generated:
    """Result of a generation, of R = B * num_return_sequences sequences.

    Attributes:
        sequences: Token ids int32 [R, length], prompts included; rows that end early are padded.
        sequences_scores: Float32 [R]. In beam search log-probability / generated length ** length_penalty, best first
            within each input, log-probabilities as the processors left them. Else the log-probability that the model
            itself gave to the generated tokens.
        beam_indices: Integers [R, generated length]: the row of the search, of B * num_beams, in which each token was
            chosen, -1 behind the end. None without beams.
        scores: Float32 [steps, rows of the search, V], by which tokens were chosen. None unless asked for.
        logits: Float32 [steps, rows of the search, V] of the model. None unless asked for.
        attentions: Attention maps. None unless asked for.
    """

    sequences: np.ndarray
    sequences_scores: np.ndarray
    beam_indices: np.ndarray | None = None
    scores: np.ndarray | None = None
    logits: np.ndarray | None = None
    attentions: AttentionMaps | None = None


def reorder_rows(cache: Any, rows: jax.Array) -> Any:
    """Return the cache of the batch rows `rows` [R], in that order: axis 0 of every leaf that has axes."""
    return jax.tree.map(lambda leaf: leaf[rows] if jnp.ndim(leaf) else leaf, cache)


def decode(
    step: Any,
    cache: Any,
    prompt: Any,
    config: GenerationConfig | None = None,
    *,
    prompt_mask: Any = None,
    reorder: Reorder = reorder_rows,
    allowed: Allowed = None,
    token_texts: Sequence[str] | None = None,
    key: jax.Array | None = None,
    logits_processors: Any = (),
    **settings: Any,
) -> Generated:
    """Generate sequences that continue the prompts, by any model that is a step over a cache.

    Works inside `jax.jit` as `generate` does.

    Args:
        step: A *pytree* callable, say `jax.tree_util.Partial(function, parameters)`, so that its weights are arguments
            of the compiled program: step(tokens [R, T], cache) -> (logits [R, V] of the token after the last one,
            cache). It first reads the prompts at once (R = B), then one token at a time with R = B * num_beams (or
            num_return_sequences) rows.
        cache: The pytree that goes with it, with room for all tokens but the last.
        prompt: Token ids [B, P].
        config: Settings. None: the defaults of `GenerationConfig`.
        prompt_mask: Booleans or integers [B, P], False at left padding, which repetition penalties skip; what else
            padding means is up to the step.
        reorder: Function of the cache and integers [R'] that returns the cache of these rows.
        allowed: The only sequences that may be generated, see `generate`.
        token_texts: Text of each token, for stop strings.
        key: Key of `jax.random`, in place of the setting `seed`.
        logits_processors: The caller's own, see `generate`.
        **settings: Changes to `config`, by the names of transformers.

    Raises:
        InputError: The settings or prompts cannot be used.
    """
    if jax.tree_util.all_leaves([step]):
        raise InputError("step must be a pytree: wrap a function as jax.tree_util.Partial(function, parameters)")
    for name, function in (("step", step), ("reorder", reorder)):
        if not callable(function):
            raise InputError(f"{name} must be a function, not {shortened(repr(function), 60)}")
    config = GenerationConfig.of(config, settings)
    if config.output_attentions:
        raise InputError("a step shows no attention: leave output_attentions out, or use generate with a model")
    prompt = token_array("prompt", prompt)
    mask = mask_array("prompt_mask", prompt_mask, prompt)
    limits = config.length_limits(prompt.shape[1])
    check_one_source(key, settings)
    own = check_processors(logits_processors)
    beside = {"allowed": allowed, "token_texts": token_texts, "key": key, "logits_processors": own}
    spec = make_spec(config, limits, prompt, mask, **beside)
    tokens = fill_right(prompt, round_up(int(spec.max_length), SLOTS), config.padding)
    found = decode_compiled(step, cache, tokens, spec, prompt_slots=prompt.shape[1], reorder=reorder)
    return returned(found, config, spec)


@compiled()
def decode_compiled(
    step: Step, cache: Any, tokens: jax.Array, spec: SearchSpec, *, prompt_slots: int, reorder: Reorder
) -> Found:
    """Read the prompts, the first `prompt_slots` of tokens [B, slots], and continue them.

    This is the function that is compiled.
    """
    logits, cache = step(tokens[:, :prompt_slots], cache)
    strategy = strategy_of(spec)
    search = begin(spec, reorder, tokens, logits, cache)
    search = finish(spec, strategy, in_float32(step), reorder, search)
    return strategy.result(search.state, search.record)


def strategy_of(spec: SearchSpec) -> Strategy:
    """Return the kind of search."""
    return BEAM if spec.beams > 1 else SAMPLING


def begin(spec: SearchSpec, reorder: Reorder, tokens: jax.Array, logits: jax.Array, cache: Any) -> Search:
    """Return a search from the prompts in tokens [B, slots], with their first new token chosen from logits [B, V]."""
    for machine in (spec.stop_fsm, spec.constraint_fsm):
        if machine is not None and len(machine.columns) != logits.shape[-1]:
            raise InputError(f"token_texts or allowed are for {len(machine.columns)} tokens, not {logits.shape[-1]}")
    if spec.beams * logits.shape[-1] > INT32_MAX:
        raise InputError(f"num_beams={spec.beams} are too many for a vocabulary of {logits.shape[-1]} tokens")
    if spec.copies > 1:
        rows = jnp.repeat(jnp.arange(tokens.shape[0]), spec.copies)
        tokens, logits, cache = tokens[rows], logits[rows], reorder(cache, rows)
    strategy, logits = strategy_of(spec), logits.astype(jnp.float32)
    pages = jnp.zeros((tokens.shape[1], *logits.shape), jnp.float32)
    record = Record(pages if spec.record_scores else None, pages if spec.record_logits else None)
    return choose(spec, strategy, reorder, Search(strategy.init(spec, tokens), cache, record), logits)


def in_float32(step: Step) -> Step:
    """Return the step with its logits in float32, whatever the model computes in."""

    def float32_step(tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = step(tokens, cache)
        return logits.astype(jnp.float32), cache

    return float32_step


def returned(
    found: Found, config: GenerationConfig, spec: SearchSpec, maps: Any = None, source_length: int = 0
) -> Generated:
    """Return the sequences asked for, cut to the longest of them.

    Maps [rows of the search, ...] are cut to their share.
    """
    if is_traced(found):
        return returned_traced(found, config, spec)
    prompt, rows = int(spec.prompt_length), rows_asked_for(found, config)
    tokens, scores, lengths = (np.asarray(array)[rows] for array in found[:3])
    if config.num_beams == 1:
        check_drawn(tokens, prompt, lengths)
    if spec.constraint_fsm is not None and config.num_beams > 1:
        empty = scores < NEG_INF / 2  # places that no allowed sequence took
        scores, lengths = np.where(empty, -np.inf, scores), np.where(empty, prompt, lengths)
        tokens = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, max(config.padding, 0))
    longest, steps = lengths.max(), int(found.length) - prompt
    beam_indices = None if found.beam_indices is None else np.asarray(found.beam_indices)[rows, prompt:longest]
    return Generated(
        tokens[:, :longest],
        scores,
        None if beam_indices is None else np.where(np.arange(prompt, longest) < lengths[:, None], beam_indices, -1),
        # As copies: the next steps of a session take over the memory.
        *(None if pages is None else np.asarray(pages)[:steps].copy() for pages in found.record),
        attentions=None if maps is None else trimmed(maps, rows, lengths, source_length),
    )


def rows_asked_for(found: Found, config: GenerationConfig) -> np.ndarray:
    """Return which rows of a search are returned, int [B * num_return_sequences]."""
    copies = config.num_beams if config.num_beams > 1 else config.num_return_sequences
    return np.arange(len(found.lengths)).reshape(-1, copies)[:, : config.num_return_sequences].reshape(-1)


def returned_traced(found: Found, config: GenerationConfig, spec: SearchSpec) -> Generated:
    """Return the sequences asked for inside a transformation of JAX, as long as they may become."""
    if config.output_attentions:
        raise InputError("attention maps belong to whole generations: leave output_attentions out inside jax.jit")
    prompt, longest, rows = int(spec.prompt_length), int(spec.max_length), rows_asked_for(found, config)
    scores, lengths, padding = found.scores[rows], found.lengths[rows], config.padding
    if spec.constraint_fsm is not None and config.num_beams > 1:
        empty = scores < NEG_INF / 2  # places that no allowed sequence took
        scores, lengths = jnp.where(empty, -jnp.inf, scores), jnp.where(empty, prompt, lengths)
        padding = max(padding, 0)
    real = jnp.arange(longest)[None] < lengths[:, None]
    tokens = jnp.where(real, found.tokens[rows, :longest], padding)
    beam_indices = (
        None if found.beam_indices is None else jnp.where(real, found.beam_indices[rows, :longest], -1)[:, prompt:]
    )
    pages = (None if pages is None else pages[: longest - prompt] for pages in found.record)
    arrays: Any = (tokens, scores, beam_indices, *pages)
    return Generated(*arrays)


def check_drawn(tokens: np.ndarray, prompt: int, lengths: np.ndarray) -> None:
    """Raise InputError where a generated token, of tokens [R, slots] from `prompt` to lengths [R], is INVALID_TOKEN."""
    places = np.arange(tokens.shape[1])
    if ((tokens == INVALID_TOKEN) & (places >= prompt) & (places < lengths[:, None])).any():
        raise InputError("no token could be drawn: the settings exclude all of them, or the model's logits are NaN")
