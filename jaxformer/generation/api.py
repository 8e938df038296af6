"""Generating with a Transformer: reading, encoding and searching in one compiled call."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.generation.arrays import check_range, fill_right, is_traced, mask_array, round_up, token_array
from jaxformer.generation.automata import check_texts
from jaxformer.generation.compiling import compiled
from jaxformer.generation.config import GenerationConfig, as_tuple
from jaxformer.generation.engine import Generated, begin, in_float32, returned, strategy_of
from jaxformer.generation.loop import Found, Search, finish
from jaxformer.generation.observation import Observable, look_again
from jaxformer.generation.prepared import model_and_weights
from jaxformer.generation.processors import check_processors
from jaxformer.generation.spec import SLOTS, Allowed, SearchSpec, as_pairs, check_one_source, machines, make_spec

SPECIAL = (
    "eos_token_id",
    "pad_token_id",
    "bos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
# What `generate` takes beside inputs and settings.
BESIDE = {"inputs_mask", "decoder_input_ids", "allowed", "token_texts", "key", "logits_processors"}
BUCKET = 32  # prompts and sources are padded on the right to a multiple of this


class Model(Observable, Protocol):
    """Interface of the models that `generate` accepts, a pytree: see `jaxformer.Transformer`."""

    @property
    def vocab_sizes(self) -> tuple[int | None, int | None]:
        """Sizes of the source's (None: there is no encoder) and the decoder's vocabulary."""

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the decoder's positions allow; None: any."""

    @property
    def max_source_length(self) -> int | None:
        """Longest source that the encoder's positions allow; None: any."""

    def encode(self, tokens: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
        """Return the encoder's output for a source [B, S]."""

    def init_cache(
        self, batch: int, capacity: int, *, encoded: jax.Array | None = None, encoded_mask: jax.Array | None = None
    ) -> Any:
        """Return a cache with room for `capacity` tokens, whose `reorder(rows)` is the cache of some of its rows."""

    def with_position_ids_from(self, rule: Literal["mask"]) -> "Model":
        """Return the model with positions that count real tokens, so that padding on the left moves no prompt."""

    def optimize_for_decoding(self, batch_size: int) -> "Model":
        """Return an equal model, laid out as steps of `batch_size` rows read it fastest."""

    def prefill(
        self, tokens: jax.Array, cache: Any, *, length: int | jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, Any]:
        """Return the logits [B, V] after the first `length` of tokens [B, P], and the cache with these."""

    def step(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """Return the logits [R, V] after the next tokens [R, 1], and the cache with them."""


def generate(
    model: Any,
    inputs: Any = None,
    config: GenerationConfig | None = None,
    *,
    inputs_mask: Any = None,
    decoder_input_ids: Any = None,
    allowed: Allowed = None,
    token_texts: Sequence[str] | None = None,
    key: jax.Array | None = None,
    logits_processors: Any = (),
    **settings: Any,
) -> Generated:
    """Generate sequences with a Transformer, equal to `generate()` of transformers.

    Inside `jax.jit` and other transformations the search is a part of their program. Settings are static, a `Generator`
    is captured and not passed. The result is `Generated` of JAX arrays, as long as a sequence may become. Nothing is
    checked that depends on values: `decoder_input_ids` must begin with the start token. No gradient flows through it.

    Args:
        model: A `Transformer`, or its `Generator`, which keeps prepared weights.
        inputs: Token ids [B, S]. Of an encoder-decoder the source. Else the prompts (None: BOS alone), shorter ones
            padded on the left.
        config: Settings. None: the defaults of `GenerationConfig`.
        inputs_mask: Booleans or integers [B, S], False at padding. None: everything in a source is attended to; in
            prompts the pad token, unless it is an EOS token too, is taken for padding where it occurs.
        decoder_input_ids: Token ids [B, P] that the decoder starts from; the start token is put in front if no row has
            it. None: decoder_start_token_id.
        allowed: The only sequences that may be generated, see `allow_phrases` and `allow_regex`; one for all inputs or
            one each. Where there are fewer of them than beams, the sequences left over are empty and score -inf.
        token_texts: Text of each token, for stop strings.
        key: Key of `jax.random`, in place of the setting `seed`.
        logits_processors: The caller's own, one or several, see `jaxformer.logits_processor`; they act after those of
            the settings and before temperature and truncations.
        **settings: Changes to `config`, by the names of transformers.

    Raises:
        InputError: The inputs or settings cannot be used. It is raised before anything is compiled.
    """
    check_one_source(key, settings)
    config = GenerationConfig.of(config, settings)
    model, weights = model_and_weights(model)
    request = make_request(
        model,
        inputs,
        config,
        inputs_mask=inputs_mask,
        decoder_input_ids=decoder_input_ids,
        allowed=allowed,
        token_texts=token_texts,
        key=key,
        logits_processors=logits_processors,
    )
    found, maps = generate_compiled(*weights.layouts(model, request.rows), request)
    source_length = 0 if request.source is None else np.shape(inputs)[1]
    return returned(found, config, request.spec, maps, source_length)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Request:
    """Arguments of a compiled generation.

    Attributes:
        source: Token ids of the source, int32 [B, S]. None: there is no encoder.
        source_valid: Boolean [B, S], True at real tokens of the source. None: there is no encoder.
        tokens: Token ids of the prompts, int32 [B, slots], with room for the tokens to generate.
        valid: Boolean [B, prompt_slots], False at padding of the prompts. None: all tokens are real.
        spec: Settings of the search.
        prompt_slots: Number of slots that are read at once; static. Only spec.prompt_length of them count: one program
            serves shorter prompts.
        observe: Whether attention maps are returned; static.
    """

    source: Any
    source_valid: Any
    tokens: Any
    valid: Any
    spec: SearchSpec
    prompt_slots: int = field(metadata={"static": True})
    observe: bool = field(metadata={"static": True})

    @property
    def rows(self) -> int:
        """How many sequences a step reads at once."""
        return len(self.tokens) * self.spec.copies


def make_request(
    model: Model, inputs: Any, config: GenerationConfig, *, inputs_mask: Any, decoder_input_ids: Any, **others: Any
) -> Request:
    """Return the arguments of `generate`, checked and brought to the shapes of a compiled program.

    others: those that `make_spec` takes.
    """
    token_texts = others["token_texts"]
    others["logits_processors"] = check_processors(others["logits_processors"])
    check_special_ids(config, model.vocab_sizes[1])
    if model.vocab_sizes[0] is None:
        source = source_valid = None
        prompt, mask = decoder_only_prompt(config, inputs, inputs_mask, decoder_input_ids)
    else:
        source, source_valid = padded_source(model, inputs, inputs_mask)
        prompt = encoder_decoder_prompt(config, decoder_input_ids, len(source))
        mask = np.ones(prompt.shape, bool)
    check_range("the prompt", prompt, model.vocab_sizes[1])
    length = prompt.shape[1]
    limits = config.length_limits(length, model.max_length)
    for each in machines(others["allowed"]):
        if len(each.columns) != model.vocab_sizes[1]:
            raise InputError(f"allowed is for {len(each.columns)} tokens, but the model has {model.vocab_sizes[1]}")
    if token_texts is not None:
        check_texts(token_texts)
    if token_texts is not None and len(token_texts) != model.vocab_sizes[1]:
        raise InputError(f"token_texts are {len(token_texts)}, but the model has {model.vocab_sizes[1]} tokens")
    read = None if source is None else inputs
    spec = make_spec(config, limits, prompt, mask, source=read, **others)
    slots = round_up(int(spec.max_length), SLOTS, model.max_length)
    check_memory(model, len(prompt) * spec.copies, slots, config)
    # A decoder behind an encoder nearly always begins with one token: it need not read the room of a bucket with it.
    prompt_slots = 1 if source is not None and length == 1 else round_up(length, BUCKET, model.max_length)
    tokens = fill_right(prompt, slots, config.padding)
    valid = None if not is_traced(mask) and mask.all() else fill_right(mask, prompt_slots, True)
    return Request(source, source_valid, tokens, valid, spec, prompt_slots, config.output_attentions)


def begin_request(reading: Model, stepping: Model, request: Request) -> Search:
    """Encode the source, read the prompts (of one token as steps are), and choose their first new token."""
    spec, source, tokens = request.spec, request.source, request.tokens
    model = reading.with_position_ids_from("mask")
    encoded = None if source is None else model.encode(source, mask=request.source_valid)
    cache = model.init_cache(*tokens.shape, encoded=encoded, encoded_mask=request.source_valid)
    # What stands behind the prompts is not attended to, but has to be a token: the padding may be -1.
    prompt, length = jnp.maximum(tokens[:, : request.prompt_slots], 0), jnp.asarray(spec.prompt_length)
    reader = stepping if request.prompt_slots == 1 else model
    logits, cache = reader.prefill(prompt, cache, length=length, mask=request.valid)
    return begin(spec, reorder_cache, tokens, logits, cache)


@compiled()
def generate_compiled(reading: Model, stepping: Model, request: Request) -> tuple[Found, Any]:
    """Return the sequences found, and their attention maps if they are asked for: the function that is compiled.

    One model reads the prompts, the other, which is the same laid out for steps, generates.
    """
    spec, strategy = request.spec, strategy_of(request.spec)
    search = begin_request(reading, stepping, request)
    search = finish(spec, strategy, in_float32(stepping.step), reorder_cache, search)
    found = strategy.result(search.state, search.record)
    if not request.observe:
        return found, None
    decoder = reading.with_position_ids_from("mask")
    maps = look_again(decoder, request.source, request.source_valid, request.valid, found.tokens, found.length)
    return found, maps


def reorder_cache(cache: Any, rows: jax.Array) -> Any:
    """Return the cache of the batch rows `rows`; beams over one source share its keys and values."""
    return cache.reorder(rows)


def decoder_only_prompt(
    config: GenerationConfig, inputs: Any, inputs_mask: Any, decoder_input_ids: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts [B, P] of a decoder-only model and their mask.

    Inferred from the pad token if none is given.
    """
    if decoder_input_ids is not None:
        raise InputError("a decoder-only model has no decoder_input_ids: give the prompt as inputs")
    if inputs is None and config.bos_token_id is None:
        raise InputError("without a prompt there must be a bos_token_id to start from")
    prompt = token_array("inputs", [[config.bos_token_id]] if inputs is None else inputs)
    if (
        inputs is not None
        and inputs_mask is None
        and config.pad_token_id is not None
        and config.pad_token_id not in config.eos_ids
    ):
        inputs_mask = prompt != config.pad_token_id
    mask = mask_array("inputs_mask", inputs_mask, prompt)
    ended = np.flatnonzero([] if is_traced(mask) else ~mask[:, -1])
    if ended.size:
        where = f"the prompt of row {ended[0]} ends in padding"
        raise InputError(f"{where}: pad on the left, so that generation goes on from real tokens")
    return prompt, mask


def encoder_decoder_prompt(config: GenerationConfig, decoder_input_ids: Any, batch: int) -> np.ndarray:
    """Return the decoder's prompt [B, P]: the start token, or the given ids with it in front if no row has it."""
    start = config.bos_token_id if config.decoder_start_token_id is None else config.decoder_start_token_id
    if start is None:
        raise InputError("an encoder-decoder needs a decoder_start_token_id (or bos_token_id) to start from")
    starts = np.full((batch, 1), start, np.int32)
    if decoder_input_ids is None:
        return starts
    prompt = token_array("decoder_input_ids", decoder_input_ids)
    if len(prompt) != batch:
        raise InputError(f"there are {batch} inputs, but {len(prompt)} rows of decoder_input_ids")
    return prompt if is_traced(prompt) or (prompt[:, 0] == start).any() else np.concatenate([starts, prompt], axis=1)


def padded_source(model: Model, inputs: Any, inputs_mask: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the source [B, S] and its mask, padded on the right to a bucket's length."""
    if inputs is None:
        raise InputError("an encoder-decoder needs inputs: the token ids of the source")
    source = token_array("inputs", inputs, model.vocab_sizes[0])
    mask = mask_array("inputs_mask", inputs_mask, source)
    unread = np.flatnonzero([] if is_traced(mask) else ~mask.any(axis=1))
    if unread.size:
        raise InputError(f"row {unread[0]} of the inputs is all padding: there is nothing to generate from")
    limit = model.max_source_length
    if limit is not None and source.shape[1] > limit:
        raise InputError(f"the source has {source.shape[1]} tokens, more than the {limit} positions of the model")
    width = round_up(source.shape[1], BUCKET, limit)
    return fill_right(source, width, 0), fill_right(mask, width, False)


def check_special_ids(config: GenerationConfig, vocabulary: int | None) -> None:
    """Raise InputError unless the model can generate, and every special token of the settings is in its vocabulary."""
    if vocabulary is None:
        raise InputError("an encoder-only model cannot generate: it has no decoder")
    for name in SPECIAL:
        check_range(name, np.asarray(as_tuple(getattr(config, name)), np.int64), vocabulary)
    for name in ("sequence_bias", "bad_words_ids"):
        for phrase, _ in as_pairs(getattr(config, name)):
            check_range(name, np.asarray(phrase, np.int64), vocabulary)


def check_memory(model: Model, rows: int, slots: int, config: GenerationConfig) -> None:
    """Raise InputError where the cache and what is kept of each step take more memory than there is."""
    if rows * slots < 2**20:
        return
    leaves = jax.tree.leaves(jax.eval_shape(lambda: model.init_cache(rows, slots)))
    pages = (config.output_scores + config.output_logits) * 4 * (model.vocab_sizes[1] or 0)
    needed = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) + rows * slots * (4 + pages)
    if needed > memory():
        raise InputError(
            f"{rows:,} sequences of {slots:,} tokens take {needed / 1e9:,.1f} GB, and there are {memory() / 1e9:,.1f}: "
            "lower max_new_tokens, num_beams or num_return_sequences"
        )


@cache
def memory() -> float:
    """Return the bytes of memory that arrays have; infinitely many, where no system says."""
    try:
        stats = jax.local_devices()[0].memory_stats()  # None on CPUs
        return stats["bytes_limit"] if stats else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, KeyError, OSError, ValueError):
        return float("inf")
