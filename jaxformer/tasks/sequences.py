"""Tasks on sequences of symbols, whose data is made without end: copy, reverse, sort, and what users derive."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxformer.config import TransformerConfig
from jaxformer.data import BOS, EOS, PAD, Batch, Process, Symbols, held_out, training_batches
from jaxformer.data.pipeline import ALONE, IGNORED
from jaxformer.generation import GenerationConfig, generate
from jaxformer.model import Transformer
from jaxformer.presets import encoder_decoder
from jaxformer.tasks.losses import model_loss
from jaxformer.tasks.observing import observe_pair
from jaxformer.tasks.sequence_settings import SequenceSettings
from jaxformer.tasks.task import (
    AttentionView,
    EvalResult,
    InputKind,
    Output,
    Split,
    Task,
    first_line,
)
from jaxformer.training import Loss
from jaxformer.visualize import Observation

HELD_OUT = 1000  # sequences to evaluate on
SHOWN = 8  # held-out inputs that are shown where none are given
BATCH = 64  # inputs that are generated at once
SPECIAL_TOKENS = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}


@dataclass(frozen=True)
class Hypothesis(Output):
    """A generated sequence.

    Attributes:
        source: The source, as people read it.
        hypothesis: The generated sequence, as people read it.
        score: Score of the sequence, see `Generated.sequences_scores`, rounded to 4 decimals.
        right: Whether it is the task's answer to the source.
    """

    source: str
    hypothesis: str
    score: float
    right: bool

    def __str__(self) -> str:
        verdict = "right" if self.right else "WRONG"
        return f"  {self.source}\n  -> {self.hypothesis}    score {self.score:.4f}, {verdict}"


class SequenceTask(Task[SequenceSettings]):
    """Learn the answer to a random sequence of symbols, with an encoder-decoder. Derived classes define `answer`.

    Symbol number i has the token id SPECIAL + i.
    """

    defaults = SequenceSettings()
    reads = InputKind("input", "symbols to answer")

    @abstractmethod
    def answer(self, source: np.ndarray) -> np.ndarray:
        """Return the right answer to a source: int32 [length] from int32 [length], without special tokens."""

    # --- sequences: what a derived class may change

    @property
    def text(self) -> Symbols:
        """The symbols, and the lengths of the sources."""
        return self.settings.text

    @property
    def max_answer_length(self) -> int:
        """Length of the longest answer, without EOS."""
        return self.text.max_length

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return a random source, int32 [length]."""
        return self.text.draw(rng)

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a source that people write, int32 [length]. Raises InputError for another text."""
        return self.text.read(text)

    def decode(self, ids: np.ndarray) -> str:
        """Return token ids as people read them, up to the end of the sequence."""
        return self.text.show(ids)

    # --- training

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return f"Train an encoder-decoder on the task {cls.name}: {first_line(cls)}"

    @property
    def vocab_size(self) -> int:
        """Symbols and special tokens together."""
        return self.text.vocab_size

    @property
    def max_source_length(self) -> int:
        """Length of the longest source."""
        return self.text.max_length

    @property
    def config(self) -> TransformerConfig:
        """The model: one vocabulary, and one table for encoder, decoder and output."""
        model = self.settings.model
        return encoder_decoder(
            self.vocab_size,
            dim=model.dim,
            layers=model.layers,
            heads=model.heads,
            d_ff=model.d_ff,
            norm_order=model.norm_order,
            dropout=model.dropout,
        )

    @property
    def row_tokens(self) -> int:
        """The tokens of a target."""
        return self.max_answer_length + 1

    def batches(self, split: Split = "train", process: Process = ALONE) -> Iterator[Batch]:
        """Return batches: "source" [B, S], "target" and "labels" [B, T]; held-out sequences as one batch."""
        if split == "train":
            return training_batches(self, self.settings.batch_size, self.settings.seed, process)
        return iter([process.part(held_out(self, HELD_OUT, self.settings.seed))])

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the loss of teacher forcing: every position of the answer predicts the next token."""
        source, smoothing = batch["source"], self.settings.label_smoothing
        options = {"labels": batch["labels"], "label_smoothing": smoothing, "inputs_mask": source != PAD}
        return model_loss(model, source, batch["target"], **options, dropout_key=key)

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return how many held-out sequences the model answers exactly."""
        correct = np.concatenate([exact(model, batch, self.generation) for batch in self.batches("validation")])
        share = float(np.mean(correct))
        line = f"held-out: {correct.sum()} of {len(correct)} sequences exactly right ({share:.1%}, greedy)"
        return EvalResult({"held_out": len(correct), "exact": share}, [line], "--beam 4")

    # --- use

    @property
    def generation(self) -> GenerationConfig:
        """Greedy decoding up to the longest answer and EOS."""
        return GenerationConfig(
            max_new_tokens=self.max_answer_length + 1,
            eos_token_id=EOS,
            pad_token_id=PAD,
            bos_token_id=BOS,
            decoder_start_token_id=BOS,
        )

    def example_inputs(self) -> list[str]:
        """Return a few held-out sources."""
        return [self.decode(row[row != PAD]) for row in held_out(self, SHOWN, self.settings.seed)["source"]]

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Hypothesis]]:
        """Check the inputs, then return an iterator over the hypotheses for each, best first."""
        del truncate  # what is too long has another answer than its end
        return self._hypotheses(model, [self.encode(text) for text in inputs], self.generation.replace(**settings))

    def _hypotheses(
        self, model: Transformer, sources: list[np.ndarray], config: GenerationConfig
    ) -> Iterator[Sequence[Hypothesis]]:
        """Generate in batches of one size, the last filled up, so that one compiled program serves all."""
        size, copies = min(BATCH, len(sources)), config.num_return_sequences
        for first in range(0, len(sources), size):
            rows = sources[first : first + size]
            batch = np.full((size, self.max_source_length), PAD, np.int32)
            for index in range(size):
                row = rows[min(index, len(rows) - 1)]
                batch[index, : len(row)] = row
            generated = generate(model, batch, config, inputs_mask=batch != PAD)
            for index, source in enumerate(rows):
                shown, answer = self.decode(source), self.decode(self.answer(source))
                found: list[Hypothesis] = []
                for copy in range(index * copies, (index + 1) * copies):
                    hypothesis = self.decode(generated.sequences[copy])
                    score = round(float(generated.sequences_scores[copy]), 4)
                    found.append(Hypothesis(shown, hypothesis, score, hypothesis == answer))
                yield found

    def summarize(self, outputs: Sequence[Sequence[Output]]) -> str:
        """Return how many of the best hypotheses are right."""
        right = sum(isinstance(best, Hypothesis) and best.right for best, *_ in outputs)
        return f"{right} of {len(outputs)} right"

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Return the attention of a model that reads a source and generates; None: the longest of a few held out."""
        if text is None:
            source = max((self.encode(shown) for shown in self.example_inputs()), key=len)
        else:
            source = self.encode(text)
        target = self.decode_greedily(model, source)
        answer = f"{self.decode(source)}  ->  {self.decode(target)}"
        return AttentionView(answer, self.observations(model, source, target))

    def decode_greedily(self, model: Transformer, source: np.ndarray) -> np.ndarray:
        """Return what a model generates for a source [S], int32 [T + 1]: BOS, the answer, EOS where it ended."""
        sequence = np.asarray(generate(model, source[None], self.generation).sequences)[0]
        ends = np.flatnonzero(sequence == EOS)
        return sequence[: ends[0] + 1] if ends.size else sequence

    def observations(self, model: Transformer, source: np.ndarray, target: np.ndarray) -> tuple[Observation, ...]:
        """Return the attention of a model that reads source [S] and is made to generate target [T + 1]."""
        return observe_pair(model, source, target, self.token_names(source), self.token_names(target))

    def token_names(self, ids: np.ndarray) -> list[str]:
        """Return every token as people read it, special tokens included."""
        return [SPECIAL_TOKENS.get(int(token)) or self.decode(token[None]) for token in ids]


class Copy(SequenceTask):
    """Say the source again."""

    def answer(self, source: np.ndarray) -> np.ndarray:
        """Return the source itself."""
        return source


class Reverse(SequenceTask):
    """Say the source backwards."""

    def answer(self, source: np.ndarray) -> np.ndarray:
        """Return the source from its end."""
        return source[::-1]


class Sort(SequenceTask):
    """Say the symbols of the source in order of size."""

    # Sorting compares every symbol with every other, and takes longer to learn than copying and reversing.
    defaults = SequenceSettings(steps=1000)

    def answer(self, source: np.ndarray) -> np.ndarray:
        """Return the source, smallest symbol first."""
        return np.sort(source)


def exact(model: Transformer, batch: Batch, config: GenerationConfig) -> np.ndarray:
    """Return which examples [B] a model answers without a single mistake, end of sequence included: boolean [B]."""
    source = batch["source"]
    sequences = np.asarray(generate(model, source, config, inputs_mask=source != PAD, num_return_sequences=1).sequences)
    predicted = np.full_like(batch["labels"], IGNORED)
    predicted[:, : sequences.shape[1] - 1] = sequences[:, 1:]  # without the start token
    ended = np.cumsum(predicted == EOS, axis=1) - (predicted == EOS) > 0
    return (np.where(ended, IGNORED, predicted) == batch["labels"]).all(axis=1)
