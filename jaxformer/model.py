"""The Transformer: encoder-decoder, decoder-only or encoder-only, by configuration.

There is one forward path. Training, reading a prompt and generating all *extend a cache*: the full forward extends an
empty cache of exactly T slots, generation extends a longer one token by token.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.cache import Cache, mark_valid
from jaxformer.config import (
    ClassifierConfig,
    LearnedPositions,
    LongRopeScaling,
    StackConfig,
    TokensExcept,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.layers import (
    Classifier,
    Embedding,
    Head,
    Memory,
    QuantizedLinear,
    Source,
    Stack,
    Trace,
    Visibility,
    count_positions,
    replace_linear,
    split_key,
)


class Observed(NamedTuple):
    """What a forward pass computed, and what the encoder and decoder did on the way.

    logits: [B, T, V]; of a classifier [B, classes]; the hidden states where the model has no head.
    """

    logits: jax.Array
    encoder: Trace
    decoder: Trace


class Transformer(nnx.Module):
    """The model of "Attention Is All You Need" and its decoder-only and encoder-only relatives.

    An immutable pytree of parameters: use it with `jax.jit`, `jax.grad` and the other transformations of jax directly.
    Dropout is off unless a `dropout_key` is given.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        encoder, decoder, main = config.encoder, config.decoder, config.main
        self.embedding = Embedding(main.embedding, config.dim, rngs=rngs)
        source = encoder.embedding if encoder and decoder and not config.share_embeddings else None
        self.source_embedding = Embedding(source, config.dim, rngs=rngs) if source else None
        self.encoder = Stack(encoder, config.dim, rngs=rngs) if encoder else None
        self.decoder = Stack(decoder, config.dim, rngs=rngs) if decoder else None
        match config.head:
            case ClassifierConfig() as classifier:
                self.head = Classifier(classifier, config.dim, rngs=rngs)
            case None:
                self.head = None
            case head:
                self.head = Head(head, main.embedding, config.dim, rngs=rngs)

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the decoder's (else the encoder's) positions allow; None: any."""
        return positions_limit(self.config.main)

    @property
    def max_source_length(self) -> int | None:
        """Longest source that the encoder's positions allow; None: any."""
        return positions_limit(self.config.encoder)

    @property
    def vocab_sizes(self) -> tuple[int | None, int | None]:
        """Sizes of the encoder's and the decoder's vocabulary; None where there is no such stack."""
        encoder, decoder = self.config.encoder, self.config.decoder
        return (
            encoder.embedding.vocab_size if encoder else None,
            decoder.embedding.vocab_size if decoder else None,
        )

    def __call__(
        self,
        inputs: jax.Array,
        targets: jax.Array | None = None,
        *,
        inputs_valid: jax.Array | None = None,
        targets_valid: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32 [B, T, V] for every position at once (of a classifier: [B, classes]).

        inputs: token ids [B, S]: the source of an encoder-decoder, or all there is. targets: decoder ids [B, T] of an
        encoder-decoder, shifted right (what the decoder reads, not what it should say). *_valid: boolean, True at real
        tokens (None: all). position_ids: [B, S] positions of `inputs` instead of those that the configuration counts.
        token_types: [B, S] kinds of the `inputs`, where the embedding knows several.
        """
        return self._forward(
            inputs, targets, inputs_valid, targets_valid, position_ids, token_types, dropout_key, observe=False
        ).logits

    def observe(
        self,
        inputs: jax.Array,
        targets: jax.Array | None = None,
        *,
        inputs_valid: jax.Array | None = None,
        targets_valid: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> Observed:
        """The same forward, returning also every hidden state and attention map."""
        return self._forward(
            inputs, targets, inputs_valid, targets_valid, position_ids, token_types, dropout_key, observe=True
        )

    def encode(
        self,
        tokens: jax.Array,
        *,
        valid: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """The encoder's output [B, S, D] for token ids [B, S]."""
        return self._encode(tokens, valid, position_ids, token_types, dropout_key, observe=False)[0]

    def empty_cache(
        self, batch: int, slots: int, *, encoded: jax.Array | None = None, encoded_valid: jax.Array | None = None
    ) -> Cache:
        """A cache for `slots` tokens of `batch` rows. Cross-attention's keys and values are computed here, once."""
        decoder = self._decoder
        cross: tuple[Memory, ...] = ()
        if encoded is not None:
            cross = tuple(block.cross.keys_values(encoded) for block in decoder.blocks if block.cross is not None)
        dtype = self.embedding.embedding[...].dtype
        layers = tuple(block.attention.empty(batch, slots, dtype) for block in decoder.blocks)
        history = None if self._switch is None else jnp.zeros((batch, slots), jnp.int32)
        return Cache(layers, cross, encoded_valid, history=history)

    def extend(
        self,
        tokens: jax.Array,
        cache: Cache,
        *,
        valid: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """The decoder's states [B, T, D] for the next tokens [B, T], and the cache with these tokens in it."""
        hidden, cache, _ = self._extend(tokens, cache, valid, position_ids, dropout_key, observe=False)
        return hidden, cache

    def logits(self, hidden: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Float32 logits [..., V] of hidden states [..., D]; the states themselves where the model has no head.

        A classifier gives [B, classes] for states [B, S, D], and drops inner units where it has a `dropout_key`.
        """
        match self.head:
            case None:
                return hidden
            case Classifier() as classifier:
                return classifier(hidden, dropout_key=dropout_key)
            case head:
                return head(hidden, self.embedding.embedding[...])

    def for_decoding(self) -> "Transformer":
        """The model as generation wants it: without an encoder it numbers real tokens.

        So padding on the left moves no prompt, even where the plain forward counts slots: as `generate()` of Hugging
        Face.
        """
        if self.encoder is not None:
            return self
        model = nnx.clone(self)
        model._decoder.config = dataclasses.replace(model._decoder.config, position_index="valid")
        return model

    def for_steps(self, rows: int) -> "Transformer":
        """An equal model whose matrices lie as steps of so many rows read them fastest: make it before a loop.

        Up to four and more are told apart, on CPUs alone. Not to be compiled, which would undo the transpositions.
        """
        if jax.default_backend() != "cpu":
            return self
        model = nnx.clone(self)
        model.decoder = model._decoder.for_steps(rows)
        if isinstance(model.head, Head):
            model.head = model.head.for_steps(self.embedding.embedding[...], rows)
        return model

    def quantize(self) -> "Transformer":
        """An equal model, but for rounding, whose linear maps have weights of 8 bits: for inference alone.

        Embeddings, norms, biases and routers, whose choices hang on little, stay as they are; a tied output gets one
        of its own.
        """
        model = nnx.clone(self)
        if isinstance(model.head, Head):
            model.head = model.head.untied(self.embedding.embedding[...])
        replace_linear(model, QuantizedLinear, lambda _, name, __: name != "router")
        return model

    def prefill(
        self, tokens: jax.Array, cache: Cache, *, length: int | jax.Array, valid: jax.Array | None = None
    ) -> tuple[jax.Array, Cache]:
        """Read prompts [B, P] of which the first `length` slots count: logits [B, V] after them, and the cache.

        What lies behind `length` is room for a prompt of any length up to P in one compiled program: no query sees it,
        later tokens overwrite it, and its positions are those of the last token, for whatever asks for the longest.
        """
        by_slot = valid is None or self._decoder.config.position_index == "slot"
        position_ids = jnp.arange(tokens.shape[1])[None] if by_slot else count_positions(valid)
        last = jax.lax.dynamic_slice_in_dim(position_ids, length - 1, 1, axis=1)
        position_ids = jnp.minimum(position_ids, last)
        hidden, cache = self.extend(tokens, cache, valid=valid, position_ids=position_ids)
        last = jax.lax.dynamic_index_in_dim(hidden, length - 1, axis=1, keepdims=False)
        return self.logits(last), dataclasses.replace(cache, length=length)

    def step(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Logits [B, V] of the token after the next tokens [B, T], and the new cache: what the decoding loops call.

        LongRoPE changes its frequencies at a length. The token that crosses it has all tokens read again, so that what
        follows sees them as the model would have from the start (as `generate()` of Hugging Face does for Phi-3).
        """

        def go_on(cache: Cache) -> tuple[jax.Array, Cache]:
            hidden, cache = self.extend(tokens, cache)
            return self.logits(hidden[:, -1]), cache

        if self._switch is None or cache.history is None:
            return go_on(cache)
        length = jnp.asarray(cache.length + tokens.shape[1], jnp.int32)

        def read_again(cache: Cache) -> tuple[jax.Array, Cache]:
            assert cache.history is not None, "asked before"
            history = jax.lax.dynamic_update_slice_in_dim(cache.history, tokens, cache.length, axis=1)
            fresh = dataclasses.replace(cache, length=0, valid=None)
            logits, fresh = self.prefill(history, fresh, length=length, valid=cache.valid)
            return logits, dataclasses.replace(fresh, valid=cache.valid)

        crosses = (cache.length <= self._switch) & (length > self._switch)
        return jax.lax.cond(crosses, read_again, go_on, cache)

    @property
    def _switch(self) -> int | None:
        """The length at which LongRoPE changes its frequencies; None: there is none."""
        ropes = (block.attention.rope for block in self._decoder.config.blocks)
        scalings = (rope.scaling for rope in ropes if rope is not None)
        return next((each.length for each in scalings if isinstance(each, LongRopeScaling)), None)

    @property
    def _decoder(self) -> Stack:
        if self.decoder is None:
            raise InputError("an encoder-only model cannot generate: it has no decoder")
        return self.decoder

    def _forward(
        self,
        inputs: jax.Array,
        targets: jax.Array | None,
        inputs_valid: jax.Array | None,
        targets_valid: jax.Array | None,
        position_ids: jax.Array | None,
        token_types: jax.Array | None,
        dropout_key: jax.Array | None,
        *,
        observe: bool,
    ) -> Observed:
        encoder_key, decoder_key, head_key = split_key(dropout_key, 3)
        if (targets is None) == (self.encoder is not None and self.decoder is not None):
            raise InputError("an encoder-decoder needs inputs and targets; any other model needs inputs alone")
        if self.encoder is None:
            if token_types is not None:
                raise InputError("token types belong to the tokens of an encoder, and this model has none")
            cache = self.empty_cache(*inputs.shape)
            hidden, _, trace = self._extend(inputs, cache, inputs_valid, position_ids, decoder_key, observe=observe)
            return Observed(self.logits(hidden), Trace(), trace)
        encoded, encoder_trace = self._encode(
            inputs, inputs_valid, position_ids, token_types, encoder_key, observe=observe
        )
        if targets is None:
            return Observed(self.logits(encoded, dropout_key=head_key), encoder_trace, Trace())
        cache = self.empty_cache(*targets.shape, encoded=encoded, encoded_valid=inputs_valid)
        hidden, _, trace = self._extend(targets, cache, targets_valid, None, decoder_key, observe=observe)
        return Observed(self.logits(hidden), encoder_trace, trace)

    def _encode(
        self,
        tokens: jax.Array,
        valid: jax.Array | None,
        position_ids: jax.Array | None,
        token_types: jax.Array | None,
        dropout_key: jax.Array | None,
        *,
        observe: bool,
    ) -> tuple[jax.Array, Trace]:
        if self.encoder is None:
            raise InputError("a decoder-only model has no encoder to encode with")
        if position_ids is None:
            match self.encoder.config.position_index:
                case TokensExcept(token):
                    position_ids = jnp.where(tokens == token, -1, count_positions(tokens != token))
                case "valid" if valid is not None:
                    position_ids = count_positions(valid)
                case _:
                    position_ids = jnp.arange(tokens.shape[1])[None]
        embedded = (self.source_embedding or self.embedding)(tokens, token_types)
        visibility = Visibility(valid)
        hidden, _, trace = self.encoder(embedded, position_ids, visibility, observe=observe, dropout_key=dropout_key)
        return hidden, trace

    def _extend(
        self,
        tokens: jax.Array,
        cache: Cache,
        valid: jax.Array | None,
        position_ids: jax.Array | None,
        dropout_key: jax.Array | None,
        *,
        observe: bool,
    ) -> tuple[jax.Array, Cache, Trace]:
        T = tokens.shape[1]
        end = cache.length + T
        if isinstance(end, int) and end > cache.slots:
            raise InputError(f"{end} tokens do not fit a cache of {cache.slots} slots: make a larger one")
        remembered = mark_valid(cache, valid, tokens.shape)
        if position_ids is None:
            position_ids = cache.length + jnp.arange(T)[None]
            if remembered is not None and self._decoder.config.position_index == "valid":
                counted = count_positions(remembered)
                position_ids = jax.lax.dynamic_slice_in_dim(counted, cache.length, T, axis=1)
        visibility = Visibility(remembered, causal=True, query_offset=cache.length)
        if remembered is not None:
            reach = visibility.reach(T, cache.slots)
            visibility = dataclasses.replace(visibility, valid=remembered[:, :reach])
        sources = tuple(Source(seen, Visibility(cache.source_valid)) for seen in cache.cross)
        hidden, layers, trace = self._decoder(
            self.embedding(tokens),
            position_ids,
            visibility,
            caches=cache.layers,
            sources=sources,
            observe=observe,
            dropout_key=dropout_key,
        )
        history = cache.history
        if history is not None:
            history = jax.lax.dynamic_update_slice_in_dim(history, tokens, cache.length, axis=1)
        writers = cache.written(*tokens.shape)
        cache = dataclasses.replace(
            cache, layers=layers, valid=remembered, history=history, writers=writers, length=end
        )
        return hidden, cache, trace


class OneKey(nnx.Rngs):
    """In the place of `nnx.Rngs` where no number is ever drawn: it makes no new keys, which take most of the time."""

    def __init__(self) -> None:
        self.key = jax.random.key(0)

    def params(self) -> jax.Array:
        """Always the same key."""
        return self.key


def abstract_model(config: TransformerConfig) -> Transformer:
    """The model with shapes and types in place of its parameters."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=OneKey()))


def positions_limit(stack: StackConfig | None) -> int | None:
    """How many positions a stack has; None: no limit."""
    return stack.positions.length if stack and isinstance(stack.positions, LearnedPositions) else None
