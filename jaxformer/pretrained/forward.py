"""The compiled forward pass of a checkpoint's model, and its result by the names that people know."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxformer.generation.compiling import compiled
from jaxformer.layers import Head, Intermediates
from jaxformer.model import ModelOutput, Transformer


@dataclass(frozen=True)
class Output:
    """Result of a forward pass. A field is None where it was not asked for or does not exist.

    Attributes:
        logits: Float32 [B, T, V]; of a bare model the last hidden states, of a classifier [B, classes] or
            [B, T, classes].
        hidden_states: The input of each block and the stack's output, [B, T, D] each.
        attentions: A map [B, N, T, S] per block.
        encoder_hidden_states: Those of the encoder, in an encoder-decoder.
        encoder_attentions: Those of the encoder.
        decoder_hidden_states: Those of the decoder.
        decoder_attentions: Those of the decoder's self-attention.
        cross_attentions: Those of its cross-attention.
    """

    logits: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    encoder_hidden_states: tuple[jax.Array, ...] | None = None
    encoder_attentions: tuple[jax.Array, ...] | None = None
    decoder_hidden_states: tuple[jax.Array, ...] | None = None
    decoder_attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None

    @property
    def start_logits(self) -> jax.Array:
        """The first logits [B, T] of the tokens: of a head for answers, that an answer begins there."""
        return self.logits[..., 0]

    @property
    def end_logits(self) -> jax.Array:
        """The second logits [B, T] of the tokens: of a head for answers, that an answer ends there."""
        return self.logits[..., 1]


@compiled(few_rows=False)
def forward(
    model: Transformer, ids: Any, targets: Any, marks: dict[str, Any], *, return_intermediates: bool
) -> ModelOutput:
    """Return the compiled forward pass, with hidden states and attention maps if they are asked for."""
    if return_intermediates:
        seen = model(ids, targets, **marks, return_intermediates=True)
        projection = model.head.projection if isinstance(model.head, Head) else None
        if projection is None:
            return seen
        # What people know as the last state is as wide as the embedding.
        *states, last = seen.decoder.hidden_states
        return seen._replace(decoder=seen.decoder._replace(hidden_states=(*states, projection(last))))
    return ModelOutput(model(ids, targets, **marks), Intermediates(), Intermediates())
