"""What a model looked at while it generated: the attention maps behind every token of the sequences returned.

They come from one pass over the finished sequences, inside the program that generated them. By the law of caches that
pass computes what the steps did, so nothing is recorded on the way: beams that lose cost nothing, those that win carry
their history in their tokens, and the search is the same with and without. (Where rotary frequencies change with the
length, the law holds for no cache, and the maps are those of the last length.)
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.ops import count_positions


class AttentionMaps(NamedTuple):
    """Attention maps of a generation, one array per layer, for the R sequences that it returned.

    Attributes:
        decoder: [R, N, T, T], T = length - 1. Row t is what the model looked at when it had read tokens 0 .. t and
            chose token t+1; behind the end of a sequence the rows are zero.
        cross: [R, N, T, S] likewise, over the source.
        encoder: [B, N, S, S]. Empty where the model has no such layers.
    """

    encoder: tuple[np.ndarray, ...]
    decoder: tuple[np.ndarray, ...]
    cross: tuple[np.ndarray, ...]


class Observable(Protocol):
    """A model that returns its attention maps when asked to: see `jaxformer.ModelOutput`."""

    def __call__(
        self,
        inputs: jax.Array,
        targets: Any = None,
        *,
        inputs_mask: Any = None,
        position_ids: Any = None,
        return_intermediates: bool = False,
    ) -> Any:
        """Return the logits, or with intermediates also what `encoder` and `decoder` computed on the way."""


def look_again(
    model: Observable, source: Any, source_valid: Any, prompt_valid: Any, tokens: jax.Array, length: jax.Array
) -> Any:
    """Return every map of a pass over the tokens: encoder, decoder and cross, a tuple of layers each.

    Args:
        model: The model.
        source: Token ids [B, S]; each row belongs to R / B adjacent rows of tokens. None: there is no encoder.
        source_valid: Booleans [B, S], False at padding.
        prompt_valid: Booleans [B, P], False at padding. None: all are real.
        tokens: Token ids [R, slots].
        length: Length of the longest sequence, whose last token no step has read.
    """
    tokens = jnp.maximum(tokens, 0)  # what stands behind a sequence is not looked at, but has to be a token
    if source is not None:
        seen = model(source, tokens, inputs_mask=source_valid, return_intermediates=True)
        return seen.encoder.attentions, seen.decoder.attentions, seen.decoder.cross_attentions
    valid = None
    if prompt_valid is not None:
        B, P = prompt_valid.shape
        R, slots = tokens.shape
        valid = jnp.pad(prompt_valid, ((0, 0), (0, slots - P)), constant_values=True)
        valid = jnp.repeat(valid, R // B, axis=0)
    # Positions end with the last token that a step has read, for whatever asks for the longest.
    position_ids = count_positions(jnp.ones(tokens.shape, bool) if valid is None else valid)
    last = jax.lax.dynamic_slice_in_dim(position_ids, length - 2, 1, axis=1)
    position_ids = jnp.minimum(position_ids, last)
    seen = model(tokens, inputs_mask=valid, position_ids=position_ids, return_intermediates=True)
    return (), seen.decoder.attentions, ()


def trimmed(maps: Any, rows: np.ndarray, lengths: np.ndarray, source_length: int) -> AttentionMaps:
    """Return the maps of some `rows` of the search, without the room that their tokens [rows] do not fill."""
    encoder, decoder, cross = (tuple(np.asarray(layer) for layer in layers) for layers in maps)
    T, S = int(lengths.max()) - 1, source_length
    real = (np.arange(T) < lengths[:, None] - 1)[:, None, :, None]
    return AttentionMaps(
        tuple(layer[..., :S, :S] for layer in encoder),
        tuple(np.where(real, layer[rows, :, :T, :T], 0) for layer in decoder),
        tuple(np.where(real, layer[rows, :, :T, :S], 0) for layer in cross),
    )
