"""The task `translate`: texts to texts, with an encoder-decoder."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from jaxformer import presets, schema
from jaxformer.config import TransformerConfig
from jaxformer.data import Batch, Process
from jaxformer.data.buckets import Buckets, Pair, PairBatches, all_batches, bucket
from jaxformer.data.pipeline import ALONE
from jaxformer.data.rows import RowReader, read_pairs
from jaxformer.errors import InputError
from jaxformer.extras import require_extra
from jaxformer.generation import GenerationConfig, generate
from jaxformer.generation.arrays import pad, until_end
from jaxformer.layers import Head
from jaxformer.model import Transformer
from jaxformer.pretrained import Pretrained
from jaxformer.tasks.coding import PairCoder, checkpoint_coder, load_coder, new_coder
from jaxformer.tasks.losses import model_loss
from jaxformer.tasks.observing import observe_pair
from jaxformer.tasks.rows import BATCH, RowTask, say
from jaxformer.tasks.settings import TrainSettings
from jaxformer.tasks.task import AttentionView, EvalResult, InputKind, Output, Split
from jaxformer.tasks.translation_settings import TranslationSettings
from jaxformer.training import Loss, cast

WIDTH = 16  # sources are padded to a multiple of so many tokens
PRESETS: dict[str, dict[str, Any]] = {
    "small-translate": {"dim": 128, "layers": 4, "heads": 4, "d_ff": 256, "norm_order": "pre", "dropout": 0.3},
    "paper-base": {"dim": 512, "layers": 6, "heads": 8, "d_ff": 2048, "norm_order": "post", "dropout": 0.1},
    "paper-big": {"dim": 1024, "layers": 6, "heads": 16, "d_ff": 4096, "norm_order": "post", "dropout": 0.3},
}
# Section 5.3: the rate rises to 1 / sqrt(width x steps of warm-up), 4,000 there.
RATES = {"paper-base": 7e-4, "paper-big": 5e-4}


@dataclass(frozen=True)
class Translation(Output):
    """A text that a model generated for a source.

    Attributes:
        source: The source.
        translation: The text.
        score: Its score.
    """

    source: str
    translation: str
    score: float

    def __str__(self) -> str:
        return self.translation


class TranslateTask(RowTask[TranslationSettings]):
    """Train an encoder-decoder on pairs of texts."""

    name = "translate"
    defaults = TranslationSettings()
    reads = InputKind("input", "text to translate", truncate=True, piped=True)

    @classmethod
    def describe(cls) -> str:
        """Return what the task is, for the help text."""
        return "Train an encoder-decoder on pairs of texts: translation, and whatever else has a source and a target."

    @classmethod
    def defaults_for(cls, flags: Sequence[str]) -> TrainSettings:
        """Return the settings where no flag says otherwise: the paper's presets are trained at the paper's rates."""
        settings = super().defaults_for(flags)
        rate = next((RATES.get(value) for flag, value in pairwise(flags) if flag == "--preset"), None)
        if rate is None:
            return settings
        return dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, learning_rate=rate))

    # --- data

    @cached_property
    def coder(self) -> PairCoder:
        """The vocabularies of the run. Raises InputError if they are not those that the model was trained with."""
        text = self.settings.text
        if self.base is not None:
            return checkpoint_coder(self.base.lm, text.source_prefix)
        if self.folder is None:
            return new_coder(text, self.rows["train"])
        coder = load_coder(self.folder, text)
        self.begun_with(coder)
        return coder

    @property
    def reader(self) -> RowReader:
        """Reads the pairs of a file."""
        return read_pairs

    def pairs(self, split: Split) -> list[Pair]:
        """Return pairs as tokens. Training pairs that are too long are dropped or cut, as the settings say."""
        sources, targets = zip(*self.rows[split], strict=True)
        limits = [self.longest(source=True), self.longest(source=False)]
        coded = list(zip(self.coder.encode_sources(sources), self.coder.encode_targets(targets), strict=True))
        short = [all(len(side) <= limit for side, limit in zip(pair, limits, strict=True)) for pair in coded]
        if split == "train" and not any(short) and self.settings.text.long == "drop":
            raise InputError(
                f"all {len(short):,} training pairs have more than {max(limits)} tokens: raise --max-length, or give "
                "--long cut"
            )
        if split == "train" and not all(short):
            too_long = f"{short.count(False):,} of {len(short):,} training pairs have more than {max(limits)} tokens"
            say(f"{too_long}: {'dropped' if self.settings.text.long == 'drop' else 'cut'}")
            if self.settings.text.long == "drop":
                coded = [pair for pair, fits in zip(coded, short, strict=True) if fits]
        if split == "validation" and not all(short):
            count = f"{short.count(False):,} of {len(short):,}"
            say(f"{count} validation pairs have more than {max(limits)} tokens: cut, for loss and translation")
        # The last token ends a sequence, whatever is cut.
        return [Pair(*(cut(side, limit) for side, limit in zip(pair, limits, strict=True))) for pair in coded]

    def longest(self, *, source: bool) -> int:
        """Return the most tokens of a source or a target: those of the settings, and of the checkpoint's positions."""
        most = self.settings.text.max_length
        if self.base is None:
            return most
        model = self.base.lm.model
        limit = model.max_source_length if source else model.max_length
        return most if limit is None else min(most, limit)

    @cached_property
    def training_pairs(self) -> tuple[list[Pair], Buckets]:
        """The training pairs, and their buckets."""
        settings, pairs = self.settings, self.pairs("train")
        self.validation_pairs  # noqa: B018  # what is wrong with them is said before training
        buckets = bucket(
            pairs, tokens=settings.batch_tokens or None, rows=settings.batch_size, multiple=settings.accumulate
        )
        shapes = ", ".join(f"{shape.rows} x {shape.source}|{shape.target}" for shape in buckets.shapes)
        say(f"{len(pairs):,} pairs in batches of {len(buckets.shapes)} shapes, pairs x source|target: {shapes}")
        return pairs, buckets

    @cached_property
    def validation_pairs(self) -> list[Pair]:
        """The validation pairs."""
        return self.pairs("validation")

    def batches(self, split: Split = "train", process: Process = ALONE) -> Iterator[Batch]:
        """Return batches of pairs, see `jaxformer.data.buckets.pair_batch`."""
        around = {"start": self.coder.start, "pad": self.coder.pad}
        if split == "train":
            return PairBatches(*self.training_pairs, self.settings.seed, **around, process=process)
        pairs = self.validation_pairs
        buckets = bucket(pairs, tokens=None, rows=BATCH)
        return map(process.part, all_batches(pairs, buckets, **around))

    # --- training

    @property
    def fresh_config(self) -> TransformerConfig:
        """The model that the settings name."""
        model, coder = self.settings.model, self.coder
        sizes = dict(PRESETS[model.preset or "small-translate"])
        given = {name: getattr(model, name) for name in sizes}
        sizes |= {name: value for name, value in given.items() if value is not None}
        if model.d_ff is None and model.dim is not None:
            sizes["d_ff"] = None
        return presets.encoder_decoder(
            coder.target_size,
            source_vocab_size=coder.source_size if self.settings.text.separate_vocabularies else None,
            positions=model.positions,
            **sizes,
        )

    @property
    def config(self) -> TransformerConfig:
        """The model to train."""
        config = super().config
        return presets.rematerialised(config) if self.settings.model.rematerialize else config

    def check_base(self, lm: Pretrained) -> None:
        """Raise InputError for a checkpoint that is no encoder-decoder with an output of tokens."""
        if lm.model.encoder is None or lm.model.decoder is None or not isinstance(lm.model.head, Head):
            raise InputError(f"{self.start.model} is no encoder-decoder with a head: --task translate needs one")
        checkpoint_coder(lm, self.settings.text.source_prefix)

    @property
    def row_tokens(self) -> int:
        """The tokens of a row, for the estimate of memory."""
        if not self.settings.batch_tokens:
            return self.settings.text.max_length
        return max(1, self.settings.batch_tokens // self.settings.batch_size)

    @property
    def evaluate_every(self) -> int:
        """Steps between looks at the validation pairs."""
        return self.settings.evaluate_every

    def loss(self, model: Transformer, batch: Any, key: jax.Array | None) -> tuple[jax.Array, Loss]:
        """Return the loss of teacher forcing: every position of the target predicts the next token."""
        options = {"labels": batch["labels"], "label_smoothing": self.settings.label_smoothing}
        read = {"inputs_mask": batch["source_mask"], "dropout_key": key}
        return model_loss(model, batch["source"], batch["target"], **options, **read)

    def validate(self, model: Transformer) -> dict[str, Any]:
        """Return the loss on all validation pairs, and how well some of them are translated."""
        model = cast(model, np.dtype(self.settings.dtype))
        count = self.settings.evaluate_pairs
        found = self.scores(model, self.rows["validation"][:count])
        sources = [source for source, _ in self.rows["validation"][:1]]
        ((sample,),) = self.generate(model, sources, truncate=True, num_beams=1, num_return_sequences=1)
        shown = f"{sources[0]} -> {sample}"
        return {"loss": self.validation_loss(model), **found, "sample": shown}

    def validation_loss(self, model: Transformer) -> float:
        """Return the mean loss of the tokens of all validation pairs, in nats, without smoothing."""
        sums = np.array([summed_loss(model, batch) for batch in self.batches("validation")], np.float64).sum(axis=0)
        return float(sums[0] / sums[1])

    def scores(self, model: Transformer, pairs: Sequence[tuple[str, str]], **settings: Any) -> dict[str, float]:
        """Return BLEU, chrF and the share of exact matches of translations, by sacrebleu.

        Args:
            model: The model.
            pairs: Sources and references.
            **settings: Settings of generation.
        """
        require_extra("translate", "BLEU")
        import sacrebleu

        sources, references = zip(*pairs, strict=True)
        outputs = self.generate(model, sources, truncate=True, num_return_sequences=1, **settings)
        found = [best.translation for best, *_ in outputs]
        bleu = sacrebleu.corpus_bleu(found, [list(references)], tokenize=self.settings.bleu_tokens, force=True).score
        chrf = sacrebleu.corpus_chrf(found, [list(references)]).score
        exact = np.mean([one.strip() == other.strip() for one, other in zip(found, references, strict=True)])
        return {"bleu": round(bleu, 2), "chrf": round(chrf, 2), "exact": round(float(exact), 4)}

    def evaluate(self, model: Transformer) -> EvalResult:
        """Return loss, BLEU, chrF and exact matches of all validation pairs, decoded greedily."""
        pairs = self.rows["validation"]
        loss, found = self.validation_loss(model), self.scores(model, pairs, num_beams=1, do_sample=False)
        line = f"validation, {len(pairs):,} pairs, greedy: BLEU {found['bleu']:.2f}, chrF {found['chrf']:.2f}, "
        line += f"{found['exact']:.1%} exact, loss {loss:.4f} nats per token"
        metrics = {"validation_pairs": len(pairs), "validation_loss": loss}
        return EvalResult(metrics | {f"validation_{name}": value for name, value in found.items()}, [line], "--beam 4")

    # --- use

    @property
    def generation(self) -> GenerationConfig:
        """Greedy decoding; with a checkpoint, by its own settings."""
        coder, longest = self.coder, self.longest(source=False)
        if self.base is not None:
            own = self.base.lm.generation
            return own if own.max_length or own.max_new_tokens else own.replace(max_new_tokens=longest)
        return GenerationConfig(
            max_new_tokens=longest,
            eos_token_id=coder.end,
            pad_token_id=coder.pad,
            decoder_start_token_id=coder.start,
        )

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a source, int32 [S]."""
        return self.coder.encode_sources([text])[0]

    def example_inputs(self) -> list[str]:
        """Return the first sources of the validation pairs."""
        return [source for source, _ in self.rows["validation"][:8]]

    def generate(
        self, model: Transformer, inputs: Sequence[str], *, truncate: bool = False, **settings: Any
    ) -> Iterator[Sequence[Translation]]:
        """Check the sources, then return an iterator over the translations of each, best first."""
        rows, limit = self.coder.encode_sources(inputs), self.longest(source=True)
        for text, row in zip(inputs, rows, strict=True):
            if len(row) > limit and not truncate:
                raise InputError(
                    f"{schema.shown(text)} has {len(row)} tokens, and the model was trained with at most {limit}: "
                    "shorten it, or --truncate"
                )
        return self._translations(model, inputs, [cut(row, limit) for row in rows], self.generation.replace(**settings))

    def _translations(
        self, model: Transformer, inputs: Sequence[str], rows: list[np.ndarray], config: GenerationConfig
    ) -> Iterator[Sequence[Translation]]:
        """Translate sources of like lengths together, and yield them in their order."""
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        done: dict[int, list[Translation]] = {}
        for first in range(0, len(rows), BATCH):
            chosen = order[first : first + BATCH]
            width = -(-len(rows[chosen[-1]]) // WIDTH) * WIDTH
            filled = [rows[index] for index in chosen] + [rows[chosen[-1]]] * (min(BATCH, len(rows)) - len(chosen))
            ids, mask = pad([*filled, np.zeros(width, np.int32)], self.coder.pad)
            found = generate(model, ids[:-1], config, inputs_mask=mask[:-1])
            copies = len(found.sequences) // len(filled)
            for place, index in enumerate(chosen):
                part = slice(place * copies, (place + 1) * copies)
                texts = [self.coder.decode(until_end(row[1:], config)) for row in np.asarray(found.sequences[part])]
                scores = [round(float(score), 4) for score in found.sequences_scores[part]]
                done[index] = [Translation(inputs[index], *pair) for pair in zip(texts, scores, strict=True)]
        return iter(done[index] for index in range(len(rows)))

    def observe(self, model: Transformer, text: str | None) -> AttentionView:
        """Return the attention of a model that translates a text (None: the first source of the validation pairs)."""
        text = self.example_inputs()[0] if text is None else text
        source, config = cut(self.encode(text), self.longest(source=True)), self.generation
        found = np.asarray(generate(model, source[None], config.replace(num_beams=1)).sequences)[0]
        target = np.concatenate([found[:1], until_end(found[1:], config), list(config.eos_ids[:1])])
        names = self.coder.source_names(source), self.coder.target_names(target)
        answer = f"{text}  ->  {self.coder.decode(target[1:-1])}"
        return AttentionView(answer, observe_pair(model, source, target, *names))


@jax.jit
def summed_loss(model: Transformer, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return the summed loss of a batch of pairs, and the number of labels."""
    read = {"inputs_mask": batch["source_mask"], "labels": batch["labels"]}
    _, loss = model_loss(model, batch["source"], batch["target"], **read)
    return loss.mean * loss.labels, loss.labels


def cut(ids: np.ndarray, limit: int) -> np.ndarray:
    """Return at most so many token ids, of which the last one stays."""
    return ids if len(ids) <= limit else np.append(ids[: limit - 1], ids[-1:])
