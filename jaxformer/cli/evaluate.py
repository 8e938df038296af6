"""How well a model does its task: held-out sequences, reproduced exactly or not."""

import numpy as np

from jaxformer.data import Batch
from jaxformer.data.pipeline import IGNORED
from jaxformer.data.tasks import EOS, PAD
from jaxformer.generation import GenerationConfig, generate
from jaxformer.model import Transformer


def exact(model: Transformer, batch: Batch, config: GenerationConfig) -> np.ndarray:
    """Which held-out examples [B] the model answers without a single mistake, end of sequence included."""
    source = batch["source"]
    sequences = np.asarray(generate(model, source, config, inputs_mask=source != PAD, num_return_sequences=1).sequences)
    said = np.full_like(batch["labels"], IGNORED)
    said[:, : sequences.shape[1] - 1] = sequences[:, 1:]  # without the start token
    ended = np.cumsum(said == EOS, axis=1) - (said == EOS) > 0
    return (np.where(ended, IGNORED, said) == batch["labels"]).all(axis=1)
