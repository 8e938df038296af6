"""What a checkpoint tells about texts: fillings of masks, vectors, labels, entities, answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import tokenizers

from jaxformer.config import ClassifierConfig, SpanConfig, TokenClassifierConfig
from jaxformer.errors import InputError, shortened
from jaxformer.generation import GenerationConfig
from jaxformer.model import Transformer
from jaxformer.pretrained import encoders
from jaxformer.pretrained.answering import Answer, answers_of
from jaxformer.pretrained.scores import Kind, check_head, kind_of_scores, labels_of, scaled
from jaxformer.pretrained.sentences import MODULES, Sentences, sentences_of
from jaxformer.pretrained.tagging import Entity, entities_of
from jaxformer.pretrained.texts import text_list
from jaxformer.pretrained.tokens import Text, gives_types


@dataclass(frozen=True, eq=False)
class Reader:
    """The fields of `Pretrained`, and those of its methods that read texts and generate none.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer. None: there is no tokenizer.json.
        generation: Defaults of `generate`.
        settings: The folder's config.json.
        kept: Tensors that the model has no use for, by name; they are saved with it.
        files: Texts of other files of the tokenizer and of sentence-transformers, by name; they are saved with it.
    """

    model: Transformer
    tokenizer: tokenizers.Tokenizer | None
    generation: GenerationConfig
    settings: dict[str, Any]
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @overload
    def fill_mask(self, texts: str, *, top_k: int = 5) -> list[encoders.Fillings]: ...
    @overload
    def fill_mask(self, texts: Sequence[str], *, top_k: int = 5) -> list[list[encoders.Fillings]]: ...
    def fill_mask(self, texts: Any, *, top_k: int = 5) -> Any:
        """Return what may stand in the place of every mask of a text: tokens and their probabilities, best first.

        Args:
            texts: One text, or several, each with [MASK] (or the tokenizer's own, such as <mask>) once or more.
            top_k: How many tokens for each mask.

        Returns:
            For each mask of the text [(token, probability), ...]; a list of these where a list was given.

        Raises:
            InputError: The model is no encoder with such a head, or a text has no mask or is too long.
        """
        found = encoders.fill_mask(self.model, self.tokenizer, text_list(texts), top_k)
        return found[0] if isinstance(texts, str) else found

    @property
    def sentences(self) -> Sentences:
        """How the folder makes vectors of sentences, by its files of sentence-transformers; the mean without these.

        Raises InputError where they ask for what is not supported.
        """
        return sentences_of(self.files)

    def embed(
        self,
        texts: Any,
        *,
        pooling: encoders.Pooling | None = None,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> np.ndarray:
        """Return a vector for each text, float32 [B, D]; [D] where one text was given.

        Args:
            texts: One text, or several; those of like length are read together.
            pooling: "mean" of the last states of a text's tokens, their largest entries, "max", or the state of the
                first token, "cls", or of the "last". None: as the folder's modules.json says, else the mean.
            normalize: Whether vectors have length 1, so that their products are cosines. None: as modules.json says.
            prompt: What stands before every text. None: what the folder says, if anything.
            prompt_name: The name of one of the folder's prompts, such as "query".
            truncate: Whether texts longer than the model's positions are cut.

        Raises:
            InputError: The model has encoder and decoder, has no tokenizer, or a text is longer than its positions.
        """
        rows, settings = self.sentence_rows(
            text_list(texts), pooling, normalize, prompt=prompt, prompt_name=prompt_name, truncate=truncate
        )
        found = encoders.embed(self.model, rows, **settings)
        return found[0] if isinstance(texts, str) else found

    def sentence_rows(
        self,
        texts: Sequence[str],
        pooling: encoders.Pooling | None = None,
        normalize: bool | None = None,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        **settings: Any,
    ) -> tuple[list[list[int]], dict[str, Any]]:
        """Return the token ids of texts for `embed`, and its settings. Arguments and errors as there."""
        given = self.sentences
        if self.model.encoder is None and pooling is None and MODULES not in self.files:
            raise InputError('an encoder-only model is needed, such as BERT, or a pooling for a decoder, mostly "last"')
        before = given.before(prompt, prompt_name)
        if given != Sentences() or before:  # sentence-transformers strips
            texts = [f"{before}{text}".strip() for text in texts]
        rows = encoders.rows_of(self.model, self.tokenizer, texts, limit=given.max_length, **settings)
        normalize = given.normalize if normalize is None else normalize
        return rows, {"pooling": pooling or given.pooling, "normalize": normalize}

    @property
    def labels(self) -> list[str]:
        """The labels of a classifier in the order of their numbers; LABEL_0 and so on where they have no names.

        Raises InputError for a model without a classifier of texts or of tokens.
        """
        return labels_of(self.model.config, self.settings)

    @property
    def kind_of_scores(self) -> Kind:
        """Whether one label is right ("one"), each may be ("each"), or labels are numbers ("score").

        Raises InputError where config.json does not allow to tell, and as `labels`.
        """
        return kind_of_scores(self.settings, len(self.labels))

    @overload
    def classify(self, texts: Text, *, truncate: bool = False) -> dict[str, float]: ...
    @overload
    def classify(self, texts: Sequence[Text], *, truncate: bool = False) -> list[dict[str, float]]: ...
    def classify(self, texts: Any, *, truncate: bool = False) -> dict[str, float] | list[dict[str, float]]:
        """Return the probability of each label, the most likely one first; of a regression the scores.

        Args:
            texts: One text, or several, or pairs (first, second) of them, as rerankers want.
            truncate: Whether texts longer than the model's positions are cut.

        Returns:
            Labels and their probabilities, which sum to 1 unless `problem_type` of config.json is
            "multi_label_classification" or there is one label; a list of them where a list was given.

        Raises:
            InputError: The model has no classifier or no tokenizer, or a text is longer than its positions.
        """
        one = isinstance(texts, str | tuple)
        rows = self.label_shares(text_or_pairs(texts), truncate=truncate)  # [B, classes]
        labels = self.labels
        found = [{labels[place]: float(row[place]) for place in np.argsort(-row, kind="stable")} for row in rows]
        return found[0] if one else found

    def label_shares(self, texts: Sequence[Text], **settings: Any) -> np.ndarray:
        """Return the probabilities or scores of the labels of texts, float32 [B, classes].

        Args:
            texts: Texts, or pairs of them.
            **settings: Arguments of `encoders.encodings_of`.

        Raises:
            InputError: As `classify`.
        """
        check_head(self.model.config, ClassifierConfig)
        kind = self.kind_of_scores
        encodings = encoders.encodings_of(self.model, self.tokenizer, texts, **settings)
        names = {"name": settings["name"]} if "name" in settings else {}
        logits = encoders.logits_of(self.model, encodings, types=gives_types(self.files), **names)
        return scaled(np.stack(logits), kind)

    @overload
    def tag(self, texts: str, *, truncate: bool = False) -> list[Entity]: ...
    @overload
    def tag(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[Entity]]: ...
    def tag(self, texts: Any, *, truncate: bool = False, **settings: Any) -> list[Entity] | list[list[Entity]]:
        """Return the entities of a text: tokens side by side with one label, those labelled O left out.

        Args:
            texts: One text, or several.
            truncate: Whether texts longer than the model's positions are cut.
            **settings: Further arguments of `encoders.encodings_of`.

        Returns:
            Entities in the order of the text; a list of such lists where a list was given.

        Raises:
            InputError: The model has no classifier of tokens or no tokenizer, or a text is longer than its positions.
        """
        check_head(self.model.config, TokenClassifierConfig)
        given, labels = text_list(texts), self.labels
        encodings = encoders.encodings_of(self.model, self.tokenizer, given, truncate=truncate, **settings)
        logits = encoders.logits_of(self.model, encodings)
        rows = zip(given, encodings, logits, strict=True)
        found = [entities_of(text, encoding, scaled(row, "one"), labels) for text, encoding, row in rows]
        return found[0] if isinstance(texts, str) else found

    def answer(self, question: str, context: str, *, max_answer_len: int = 15) -> Answer:
        """Return the part of a text that answers a question best.

        Args:
            question: The question.
            context: The text. A long one is read in windows.
            max_answer_len: The most tokens of an answer.

        Raises:
            InputError: The model has no head for answers or no tokenizer, or question or text is blank.
        """
        for name, value in (("question", question), ("context", context)):
            if not isinstance(value, str):
                raise InputError(f"{name} must be a text, not {shortened(repr(value), 60)}")
        return self.answers([(question, context)], max_answer_len=max_answer_len, name=lambda _: "the question")[0][0]

    def answers(
        self,
        pairs: Sequence[tuple[str, str]],
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        name: Callable[[int], str] = "question {}".format,
    ) -> list[list[Answer]]:
        """Return the best answers to each question, best first.

        Args:
            pairs: Questions, each with the text that has the answer.
            top_k: The most answers to each.
            max_answer_len: The most tokens of an answer.
            name: Says of a question's place, from 0 on, what to call it in messages.

        Raises:
            InputError: As `answer`.
        """
        check_head(self.model.config, SpanConfig)
        settings = {"top_k": top_k, "max_answer_len": max_answer_len, "types": gives_types(self.files)}
        return answers_of(self.model, self.tokenizer, pairs, name=name, **settings)


def text_or_pairs(texts: Any) -> list[Text]:
    """Return one text or pair, or several, as a list. Raises InputError for anything else, and for none."""
    found = [texts] if isinstance(texts, str | tuple) else texts
    if not isinstance(found, Sequence) or not found or not all(map(is_text, found)):
        raise InputError(f"give a text, a pair of texts, or a list of either, not {shortened(repr(texts), 60)}")
    return list(found)


def is_text(value: Any) -> bool:
    """Return whether a value is a text, or a pair of texts."""
    return isinstance(value, str) or (
        isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)
    )
