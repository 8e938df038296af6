"""An encoder or a decoder: positions, dropout, blocks, final norm; sections 3.1 and 3.5."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxformer.config import (
    AlibiPositions,
    LearnedPositions,
    NonPadPositions,
    RelativePositions,
    ShiftedInputs,
    SinusoidalPositions,
    StackConfig,
)
from jaxformer.config.positions import PositionIdsFrom
from jaxformer.errors import InputError
from jaxformer.layers.any_attention import LayerCache
from jaxformer.layers.block import Block, EncoderKV, Wanted, split_key
from jaxformer.layers.embedding import AlibiBias, LearnedPositionEmbedding, RelativePositionBias, Sinusoids
from jaxformer.layers.latent_attention import LatentAttention
from jaxformer.layers.linear import Linear, TransposedLinear, replace_linear
from jaxformer.layers.norm import make_norm
from jaxformer.ops import AttentionMask, Routing, count_positions, dropout
from jaxformer.parallel import constrain


class Intermediates(NamedTuple):
    """Intermediate results of a stack; all empty unless asked for.

    Attributes:
        hidden_states: L+1 arrays [B, T, D], the input of each block and the stack's output.
        attentions: L maps of self-attention, float32 [B, N, T, S].
        cross_attentions: L maps of cross-attention, where the stack has it.
        routing: Where each of L layers sent its tokens; None for layers without experts.
    """

    hidden_states: tuple[jax.Array, ...] = ()
    attentions: tuple[jax.Array, ...] = ()
    cross_attentions: tuple[jax.Array, ...] = ()
    routing: tuple[Routing | None, ...] = ()


class StackOutput(NamedTuple):
    """Result of a stack.

    Attributes:
        states: [B, T, D].
        caches: The caches with the tokens of this call in them; empty if none were given.
        intermediates: Empty unless asked for.
    """

    states: jax.Array
    caches: tuple[LayerCache, ...]
    intermediates: Intermediates


class ModelOutput(NamedTuple):
    """Result of a model with `return_intermediates=True`.

    Attributes:
        logits: float32 [B, T, V]; of a classifier [B, classes]; scores of tokens [B, T]; the hidden states
            where the model has no head.
        encoder: Hidden states and attention maps of the encoder; empty where there is none.
        decoder: The same of the decoder.
    """

    logits: jax.Array
    encoder: Intermediates
    decoder: Intermediates


class Stack(nnx.Module):
    """N layers over embedded tokens, unrolled: a scan over layers decodes 1.8x slower on CPUs."""

    def __init__(self, config: StackConfig, dim: int, *, rngs: nnx.Rngs):
        self.config = config
        narrow = config.embedding.project == "sum"
        width = config.embedding.dim or dim if narrow else dim
        match config.positions:
            case LearnedPositions() as learned:
                self.positions = LearnedPositionEmbedding(learned, width, rngs=rngs)
            case SinusoidalPositions() as sinusoidal:
                self.positions = Sinusoids(sinusoidal, width)
            case RelativePositions() as relative:
                self.positions = RelativePositionBias(relative, config.blocks[0].attention.heads, rngs=rngs)
            case AlibiPositions():
                self.positions = AlibiBias(config.blocks[0].attention.heads)
            case None:
                self.positions = None
        axes = "D" if width == dim else "_"
        self.embedding_norm = make_norm(config.embedding_norm, width, axes=axes) if config.embedding_norm else None
        self.embedding_projection = Linear(width, dim, axes="_D", rngs=rngs) if narrow else None
        score = config.score_positions
        self.score_positions = (
            RelativePositionBias(score, config.blocks[0].attention.heads, rngs=rngs) if score else None
        )
        self.blocks = nnx.List([Block(block, dim, rngs=rngs) for block in config.blocks])
        self.final_norm = make_norm(config.final_norm, dim) if config.final_norm else None

    def __call__(
        self,
        embedded: jax.Array,
        *,
        mask: AttentionMask,
        position_ids: jax.Array,
        caches: tuple[LayerCache, ...] = (),
        encoder: tuple[EncoderKV, ...] = (),
        dropout_key: jax.Array | None = None,
        return_intermediates: Wanted = False,
    ) -> StackOutput:
        """Apply the layers, one after the other, to embedded tokens.

        Args:
            embedded: [B, T, D].
            mask: Which keys each query may attend to. With caches, `mask.offset` is the slot that is written first.
            position_ids: Integers [1|B, T].
            caches: One for each block, or none.
            encoder: What cross-attention of each block attends to, or nothing.
            dropout_key: Key for dropout. None: no dropout.
            return_intermediates: Whether to return hidden states, attention maps and routing, or "routing" alone.
        """
        blocks = self.applied
        first_key, *keys = split_key(dropout_key, 1 + len(blocks))
        x, bias = embedded, self._score_bias(embedded.shape[1], mask, caches)
        if not isinstance(self.positions, RelativePositionBias | AlibiBias | None):
            x += self.positions(position_ids).astype(x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = dropout(x, self.config.dropout, first_key)
        if self.embedding_projection is not None:
            x = self.embedding_projection(x)
        x = constrain(x, "BT_")
        states, outputs = [x], []
        for index, block in enumerate(blocks):
            forward = partial(
                block,
                mask=mask,
                cache=caches[index] if caches else None,
                encoder=encoder[index] if encoder else None,
                dropout_key=keys[index],
                return_intermediates=return_intermediates,
            )
            if self.config.rematerialize:
                forward = jax.checkpoint(forward)
            with jax.named_scope(f"blocks.{index}"):  # names of modules, for whoever reads a profile
                output = forward(x, position_ids=position_ids, bias=bias)
            x = output.states
            states.append(x)
            outputs.append(output)
        if self.final_norm is not None:
            x = self.final_norm(x)
        if dropout_key is not None and self.config.final_dropout:
            x = dropout(x, self.config.final_dropout, jax.random.fold_in(dropout_key, 1))
        states[-1] = x
        _, written, maps, cross_maps, routing = zip(*outputs, strict=True)
        found = Intermediates(tuple(states), maps, cross_maps if encoder else (), routing)
        if return_intermediates is not True:
            found = Intermediates(routing=routing) if return_intermediates == "routing" else Intermediates()
        return StackOutput(x, written if caches else (), found)

    @property
    def applied(self) -> list[Block]:
        """The blocks in the order in which they are applied."""
        order = self.config.order
        return list(self.blocks) if order is None else [self.blocks[number] for number in order]

    def _score_bias(self, T: int, mask: AttentionMask, caches: tuple[LayerCache, ...]) -> jax.Array | None:
        """Return what positions add to the scores [B|1, N, T, S] of T queries, None where they add nothing."""
        positions = self.positions if self.score_positions is None else self.score_positions
        S = mask.num_visible_keys(T, caches[0].capacity) if caches else T
        if isinstance(positions, AlibiBias):
            keys = jnp.arange(S)[None]
            if self.config.position_ids_from == "mask" and mask.key_valid is not None:
                keys = count_positions(mask.key_valid)[:, :S]
            slots = jnp.atleast_1d(jnp.asarray(mask.offset))[:, None] + jnp.arange(T)[None]  # [B|1, T]
            rows = max(len(keys), len(slots))
            spread = (jnp.broadcast_to(each, (rows, each.shape[1])) for each in (keys, slots))
            return positions(jnp.take_along_axis(*spread, axis=1), keys)
        if isinstance(positions, RelativePositionBias):
            return positions(T, S, first=mask.offset, causal=mask.causal)
        return None

    def position_ids(self, tokens: jax.Array, valid: jax.Array | None, start: int | jax.Array = 0) -> jax.Array:
        """Return the positions of tokens by the rule of the configuration, see `make_position_ids`.

        Raises:
            InputError: Slots are numbered, and there are more than the stack has positions.
        """
        rule, positions = self.config.position_ids_from, self.config.positions
        if rule == "slot" and isinstance(positions, LearnedPositions) and isinstance(start, int):
            count = start + tokens.shape[1]
            if count > positions.length:
                raise InputError(f"{count} tokens exceed the model's {positions.length} positions: give fewer")
        return make_position_ids(rule, tokens, valid, start)

    def optimize_for_decoding(self, batch_size: int) -> "Stack":
        """Return a copy with weights transposed for decoding `batch_size` rows on CPUs."""
        stack = nnx.clone(self)
        crosses = {id(block.cross) for block in stack.blocks}

        def meets_few_rows(module: nnx.Module, name: str, linear: Linear) -> bool:
            # Keys and values of a source are made before the steps, those of latents of all that is remembered.
            of_many = isinstance(module, LatentAttention) or id(module) in crosses
            return linear.prefers_transposed(batch_size) and not (of_many and name in ("key", "value"))

        replace_linear(stack, TransposedLinear, meets_few_rows)
        return stack


def make_position_ids(
    rule: PositionIdsFrom, tokens: jax.Array, valid: jax.Array | None = None, start: int | jax.Array = 0
) -> jax.Array:
    """Return the positions of tokens by the rule of a configuration: int [1|B, T].

    Args:
        rule: "slot" numbers slots, "mask" real tokens, and `NonPadPositions` tokens other than padding.
        tokens: Token ids [B, T], in the slots from `start` on.
        valid: Boolean [B, S], True at real tokens of all slots. None: all are.
        start: Number of slots before the tokens.
    """
    match rule:
        case NonPadPositions(pad_id):
            return jnp.where(tokens == pad_id, -1, count_positions(tokens != pad_id))
        case "mask" if valid is not None:
            return jax.lax.dynamic_slice_in_dim(count_positions(valid), start, tokens.shape[1], axis=1)
        case _:
            return start + jnp.arange(tokens.shape[1])[None]


def shifted_inputs(config: ShiftedInputs, tokens: jax.Array, valid: jax.Array | None) -> jax.Array:
    """Return what a decoder reads of the encoder's tokens, int [B, T]: shifted right behind the first token.

    Args:
        config: Which token is first.
        tokens: Token ids [B, T] of the encoder.
        valid: [B, T], True or 1 at real tokens. None: all are.
    """
    tokens = jnp.asarray(tokens)
    if config.start is not None:
        first = jnp.full_like(tokens[:, :1], config.start)
    else:
        real = jnp.ones(tokens.shape, bool) if valid is None else jnp.asarray(valid) != 0
        real = real if config.pad_id is None else real & (tokens != config.pad_id)
        last = jnp.maximum(real.sum(axis=1, keepdims=True) - 1, 0)  # [B, 1]
        first = jnp.take_along_axis(tokens, last, axis=1)
    return jnp.concatenate([first, tokens[:, :-1]], axis=1)
