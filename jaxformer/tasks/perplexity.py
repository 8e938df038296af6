"""How well a language model predicts a text, in numbers."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.data import Batch, Corpus
from jaxformer.model import Transformer
from jaxformer.tasks.losses import model_loss


class Measure(NamedTuple):
    """Quality of a model's predictions of a text.

    Attributes:
        tokens: How many were predicted.
        loss: Their mean loss, in nats.
        bits_per_byte: The same for each byte of the text, comparable between tokenizers.
    """

    tokens: int
    loss: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """The number of equally likely tokens among which one would be as unsure."""
        return math.exp(min(self.loss, 700))

    def table(self) -> list[str]:
        """Return the figures, one in a line."""
        return [
            f"{'tokens':15}{self.tokens:,}",
            f"{'loss':15}{self.loss:.4f} nats per token",
            f"{'perplexity':15}{self.perplexity:.2f}",
            f"{'bits per byte':15}{self.bits_per_byte:.4f}",
        ]


def measure(model: Transformer, text: Corpus, batches: Iterable[Batch]) -> Measure:
    """Return how well a model predicts batches of a text, such as all of its windows, see `jaxformer.data.windows`."""
    sums = [total_loss(model, batch) for batch in batches]
    loss, tokens = np.array(sums, np.float64).sum(axis=0).tolist()
    mean = loss / tokens
    return Measure(int(tokens), mean, mean / math.log(2) * text.count_learned / int(np.sum(text.sizes)))


@jax.jit
def total_loss(model: Transformer, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return the summed loss of a batch, and the number of labels."""
    _, loss = model_loss(model, batch["inputs"], labels=batch["labels"], segment_ids=batch.get("segment_ids"))
    return loss.mean * loss.labels, loss.labels
