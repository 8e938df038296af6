"""The attention of an encoder-decoder on one pair of sequences."""

from collections.abc import Sequence

import numpy as np

from jaxformer.model import Transformer
from jaxformer.tasks.task import first_row, forward
from jaxformer.visualize import Observation


def observe_pair(
    model: Transformer, source: np.ndarray, target: np.ndarray, source_names: list[str], target_names: Sequence[str]
) -> tuple[Observation, ...]:
    """Return the attention of a model that reads a source and is made to generate a target.

    Args:
        model: The model.
        source: Token ids [S].
        target: Token ids [T + 1], which begin with the token that starts the decoder.
        source_names: The source's tokens as people read them.
        target_names: Those of the target.
    """
    observed = forward(model, source[None], target[None, :-1], return_intermediates=True)
    encoder, decoder, cross = map(
        first_row, (observed.encoder.attentions, observed.decoder.attentions, observed.decoder.cross_attentions)
    )
    read, predicted = list(target_names[:-1]), list(target_names[1:])
    return (
        Observation("encoder", "Encoder self-attention", encoder, source_names, query_label="token of the source"),
        Observation("decoder", "Decoder self-attention", decoder, read, query_label="token that the decoder reads"),
        Observation(
            "cross",
            "Cross-attention",
            cross,
            predicted,
            source_names,
            query_label="token that the decoder predicts",
            key_label="attends to the source",
        ),
    )
