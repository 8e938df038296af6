"""The Transformer: encoder-decoder, decoder-only or encoder-only, by configuration.

There is one forward path. Training, reading a prompt and generating all *extend a cache*: the full forward extends an
empty cache of exactly T slots, generation extends a longer one token by token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.tree_util import Partial

from jaxformer.cache import Cache, mark_valid
from jaxformer.config import LongRopeScaling, TransformerConfig
from jaxformer.config.positions import PositionIdsFrom
from jaxformer.errors import InputError
from jaxformer.layers import (
    Classifier,
    Discriminator,
    Embedding,
    EncoderKV,
    Head,
    Intermediates,
    LayerCache,
    Linear,
    ModelOutput,
    QuantizedLinear,
    Stack,
    StackOutput,
    Wanted,
    make_head,
    make_position_ids,
    replace_linear,
    shifted_inputs,
    split_key,
)
from jaxformer.layers.variables import OneKey
from jaxformer.ops import AttentionMask, segment_positions, token_mask
from jaxformer.rereading import AnyCache, RereadingCache, step_across


class Transformer(nnx.Module):
    """The model of "Attention Is All You Need" and its decoder-only and encoder-only relatives.

    An immutable pytree of parameters: use it with `jax.jit`, `jax.grad` and the other transformations of jax directly.
    Dropout is off unless a `dropout_key` is given.

    Args:
        config: Widths, blocks and parts: see `jaxformer.config` and `PRESETS`.
        rngs: Where the initial parameters are drawn from, `nnx.Rngs(seed)`.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        self.config = config
        encoder, decoder, main = config.encoder, config.decoder, config.main
        self.embedding = Embedding(main.embedding, config.dim, rngs=rngs)
        source = encoder.embedding if encoder and decoder and not config.share_embeddings else None
        self.source_embedding = Embedding(source, config.dim, rngs=rngs) if source else None
        self.encoder = Stack(encoder, config.dim, rngs=rngs) if encoder else None
        self.decoder = Stack(decoder, config.dim, rngs=rngs) if decoder else None
        self.head = make_head(config, rngs=rngs)

    @property
    def max_length(self) -> int | None:
        """Longest sequence that the decoder's (else the encoder's) positions allow; None: any."""
        return self.config.main.max_length

    @property
    def max_source_length(self) -> int | None:
        """Longest source that the encoder's positions allow; None: any."""
        return self.config.encoder.max_length if self.config.encoder else None

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
        inputs_mask: jax.Array | None = None,
        targets_mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        return_intermediates: Wanted = False,
    ) -> Any:
        """Return float32 logits of every position [B, T, V] or [B, T, classes]; of a classifier [B, classes].

        A discriminator gives scores [B, T].

        Args:
            inputs: Token ids [B, S]: the source of an encoder-decoder, else all there is.
            targets: Decoder ids [B, T] of an encoder-decoder, shifted right (what the decoder reads, not the labels).
                None: the inputs, where the configuration's `targets_from` says so.
            inputs_mask: [B, S], True or 1 at real tokens. None: all are.
            targets_mask: [B, T], the same for targets.
            position_ids: Positions [B, S] of `inputs` instead of those that the configuration counts.
            segment_ids: Numbers [B, S] of the sequences that a row of a decoder-only model is packed of: tokens attend
                within their sequence, and positions count from its beginning.
            token_types: Types [B, S] of `inputs`, where the embedding has several.
            dropout_key: Key for dropout. None: no dropout.
            return_intermediates: Whether to return a `ModelOutput` with hidden states, attention maps and routing, or
                with "routing" alone.

        Raises:
            InputError: The arguments do not fit the model.
        """
        encoder_key, decoder_key, head_key = split_key(dropout_key, 3)
        if segment_ids is not None and self.encoder is not None:
            raise InputError("segment_ids are for decoder-only models: this one has an encoder")
        targets, source, source_mask = self._targets(inputs, targets, inputs_mask), inputs, inputs_mask
        encoded, encoded_mask, encoder = None, None, StackOutput(inputs, (), Intermediates())
        if self.encoder is not None:
            encoder = self._encode(inputs, inputs_mask, position_ids, token_types, encoder_key, return_intermediates)
            encoded, encoded_mask = encoder.states, inputs_mask
            if targets is None:
                logits = self._classes_or_tokens(encoded, source, source_mask, head_key)
                output = ModelOutput(logits, encoder.intermediates, Intermediates())
                return output if return_intermediates else logits
            inputs, inputs_mask, position_ids = targets, targets_mask, None
        elif token_types is not None:
            raise InputError("token types belong to the tokens of an encoder, and this model has none")
        elif segment_ids is not None:
            segment_ids = jnp.asarray(segment_ids)
            position_ids = segment_positions(segment_ids) if position_ids is None else position_ids
        cache = self.init_cache(*inputs.shape, encoded=encoded, encoded_mask=encoded_mask)
        decoder, _ = self._extend(
            inputs, cache, inputs_mask, position_ids, decoder_key, return_intermediates, segment_ids
        )
        logits = self._classes_or_tokens(decoder.states, source, source_mask, head_key)
        output = ModelOutput(logits, encoder.intermediates, decoder.intermediates)
        return output if return_intermediates else output.logits

    def encode(
        self,
        tokens: jax.Array,
        *,
        mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return the encoder's output [B, S, D].

        Args:
            tokens: Token ids [B, S].
            mask: [B, S], True or 1 at real tokens. None: all are.
            position_ids: Positions [B, S] instead of those that the configuration counts.
            token_types: Types [B, S], where the embedding has several.
            dropout_key: Key for dropout. None: no dropout.
        """
        return self._encode(tokens, mask, position_ids, token_types, dropout_key).states

    def init_cache(
        self, batch: int, capacity: int, *, encoded: jax.Array | None = None, encoded_mask: jax.Array | None = None
    ) -> AnyCache:
        """Return an empty cache. Keys and values of cross-attention are computed here, once.

        Args:
            batch: Number of sequences B.
            capacity: Number of tokens that there is room for.
            encoded: Output of the encoder [B', S, D], where B is B' or a multiple of it.
            encoded_mask: [B', S], True or 1 at real tokens. None: all are.
        """
        decoder = self._decoder
        cross: tuple[LayerCache, ...] = ()
        if encoded is not None:
            cross = tuple(block.cross.project_kv(encoded) for block in decoder.applied if block.cross is not None)
        dtype = self.embedding.embedding[...].dtype
        layers = tuple(block.attention.init_cache(batch, capacity, dtype) for block in decoder.applied)
        encoder_valid = None if encoded is None else token_mask("encoded_mask", encoded_mask, encoded.shape[:2])
        cache = Cache(layers, cross, encoder_valid)
        return cache if self._switch is None else RereadingCache(cache, jnp.zeros((batch, capacity), jnp.int32))

    def extend(
        self,
        tokens: jax.Array,
        cache: AnyCache,
        *,
        mask: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, AnyCache]:
        """Return the decoder's states [B, T, D] for the next tokens, and the cache with these tokens.

        Args:
            tokens: Token ids [B, T].
            cache: Cache of the tokens before.
            mask: [B, T], True or 1 at real tokens. None: all are.
            position_ids: Positions [B, T] instead of those that the configuration counts.
            dropout_key: Key for dropout. None: no dropout.
        """
        output, cache = self._extend(tokens, cache, mask, position_ids, dropout_key)
        return output.states, cache

    def logits(self, hidden: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Return float32 logits [..., V]; of a classifier [B, classes]; the states themselves if there is no head.

        A discriminator gives scores [...].

        Args:
            hidden: Hidden states [..., D]; of a classifier those of the tokens that it reads, [B, D].
            dropout_key: Key for the dropout of a classifier. None: no dropout.
        """
        match self.head:
            case None:
                return hidden
            case Classifier() as classifier:
                return classifier(hidden, dropout_key=dropout_key)
            case Discriminator() as discriminator:
                return discriminator(hidden)
            case head:
                return head(hidden, self.embedding.embedding[...])

    def split_head(self) -> tuple["Transformer", Partial]:
        """Return the model without its head over the vocabulary, whose output is hidden states, and that head.

        The head maps states [..., D] to logits [..., V]: `chunked_cross_entropy` calls it for a part of them at a time.
        """
        if not isinstance(self.head, Head):
            raise InputError("the model has no head over the vocabulary")
        body = nnx.clone(self)
        body.config, body.head = dataclasses.replace(self.config, head=None), None
        return body, Partial(Head.__call__, self.head, table=self.embedding.embedding[...])

    def with_position_ids_from(self, rule: PositionIdsFrom) -> "Transformer":
        """Return a model whose decoder numbers its positions by another rule; one with an encoder stays as it is.

        Generation counts real tokens, "mask", even where the plain forward counts slots: padding on the left then
        moves no prompt, as in `generate()` of Hugging Face.
        """
        if self.encoder is not None:
            return self
        model = nnx.clone(self)
        model._decoder.config = dataclasses.replace(model._decoder.config, position_ids_from=rule)
        return model

    def optimize_for_decoding(self, batch_size: int) -> "Transformer":
        """Return a copy with weights transposed for decoding `batch_size` rows; on CPUs only.

        Call it once, outside of `jax.jit`, which would undo the transpositions. Numbers of rows up to four and above
        are told apart.
        """
        if jax.default_backend() != "cpu":
            return self
        model = nnx.clone(self)
        model.decoder = model._decoder.optimize_for_decoding(batch_size)
        if isinstance(model.head, Head):
            model.head = model.head.optimize_for_decoding(self.embedding.embedding[...], batch_size)
        return model

    def quantize(self) -> "Transformer":
        """Return an int8 copy for inference.

        Embeddings, norms, biases, routers and classifiers stay in full precision; a tied head is untied first.
        """
        model = nnx.clone(self)
        if isinstance(model.head, Head):
            model.head = model.head.untied(self.embedding.embedding[...])

        def wanted(part: nnx.Module, name: str, _: Linear) -> bool:
            return name != "router" and not isinstance(part, Classifier)

        replace_linear(model, QuantizedLinear, wanted)
        return model

    def prefill(
        self, tokens: jax.Array, cache: AnyCache, *, length: int | jax.Array, mask: jax.Array | None = None
    ) -> tuple[jax.Array, AnyCache]:
        """Read prompts of any length up to P in one compiled program.

        Slots after `length` are padding. They are masked and later overwritten; their position ids repeat the last one,
        for rotary scalings that depend on the longest position.

        Args:
            tokens: Prompts [B, P], of which the first `length` slots count.
            cache: An empty cache.
            length: Number of slots in use.
            mask: [B, P], True or 1 at real tokens. None: all are.

        Returns:
            Logits [B, V] after the prompts, and the cache with them.
        """
        if not isinstance(self.head, Head):
            raise InputError("the model has no head over the vocabulary, so that it cannot generate")
        valid = token_mask("mask", mask, tokens.shape)
        position_ids = make_position_ids(self._decoder.config.position_ids_from, tokens, valid)
        last = jax.lax.dynamic_slice_in_dim(position_ids, length - 1, 1, axis=1)
        position_ids = jnp.minimum(position_ids, last)
        hidden, cache = self.extend(tokens, cache, mask=valid, position_ids=position_ids)
        last = jax.lax.dynamic_index_in_dim(hidden, length - 1, axis=1, keepdims=False)
        return self.logits(last), cache.truncate(length)

    def step(self, tokens: jax.Array, cache: AnyCache) -> tuple[jax.Array, AnyCache]:
        """Return logits [B, V] after the next tokens [B, T], and the cache with these tokens."""
        if isinstance(cache, RereadingCache):
            assert self._switch is not None, "such caches are made where frequencies change"
            return step_across(self, tokens, cache, self._switch)
        hidden, cache = self.extend(tokens, cache)
        return self.logits(hidden[:, -1]), cache

    def _targets(self, inputs: jax.Array, targets: jax.Array | None, mask: jax.Array | None) -> jax.Array | None:
        """Return what the decoder of an encoder-decoder reads, None for another model."""
        if targets is None and self.config.targets_from is not None:
            return shifted_inputs(self.config.targets_from, inputs, mask)
        if (targets is None) == (self.encoder is not None and self.decoder is not None):
            raise InputError("an encoder-decoder needs inputs and targets; any other model needs inputs alone")
        return targets

    def _classes_or_tokens(
        self, states: jax.Array, tokens: jax.Array, mask: jax.Array | None, dropout_key: jax.Array | None
    ) -> jax.Array:
        """Return the logits of states [B, T, D]: of every token, or of a classifier's classes."""
        if not isinstance(self.head, Classifier):
            return self.logits(states, dropout_key=dropout_key)
        if states.shape[:2] != tokens.shape:
            raise InputError("a classifier of an encoder-decoder reads the inputs twice: leave the targets out")
        return self.head.read(states, tokens, mask, dropout_key=dropout_key)

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

    def _encode(
        self,
        tokens: jax.Array,
        mask: jax.Array | None,
        position_ids: jax.Array | None,
        token_types: jax.Array | None,
        dropout_key: jax.Array | None,
        return_intermediates: Wanted = False,
    ) -> StackOutput:
        """Return the encoder's output for token ids [B, S]."""
        if self.encoder is None:
            raise InputError("a decoder-only model has no encoder to encode with")
        valid = token_mask("inputs_mask", mask, tokens.shape)
        if position_ids is None:
            position_ids = self.encoder.position_ids(tokens, valid)
        return self.encoder(
            (self.source_embedding or self.embedding)(tokens, token_types),
            mask=AttentionMask(key_valid=valid),
            position_ids=position_ids,
            dropout_key=dropout_key,
            return_intermediates=return_intermediates,
        )

    def _extend(
        self,
        tokens: jax.Array,
        cache: AnyCache,
        mask: jax.Array | None,
        position_ids: jax.Array | None,
        dropout_key: jax.Array | None,
        return_intermediates: Wanted = False,
        segment_ids: jax.Array | None = None,
    ) -> tuple[StackOutput, AnyCache]:
        """Return the decoder's output for the next tokens [B, T], and the cache with them."""
        if isinstance(cache, RereadingCache):
            output, inner = self._extend(
                tokens, cache.cache, mask, position_ids, dropout_key, return_intermediates, segment_ids
            )
            return output, cache.advance(tokens, inner)
        cache.check_room(tokens.shape[1])
        valid = mark_valid(cache, token_mask("mask", mask, tokens.shape), tokens.shape)
        if position_ids is None:
            position_ids = self._decoder.position_ids(tokens, valid, cache.length)
        output = self._decoder(
            self.embedding(tokens),
            mask=AttentionMask(causal=True, offset=cache.length, key_valid=valid, segment_ids=segment_ids),
            position_ids=position_ids,
            caches=cache.layers,
            encoder=tuple(EncoderKV(kv, AttentionMask(key_valid=cache.encoder_valid)) for kv in cache.cross),
            dropout_key=dropout_key,
            return_intermediates=return_intermediates,
        )
        return output, cache.advance(tokens, output.caches, valid)


def abstract_model(config: TransformerConfig) -> Transformer:
    """Return the model with shapes and types in place of its parameters."""
    return nnx.eval_shape(lambda: Transformer(config, rngs=OneKey()))
