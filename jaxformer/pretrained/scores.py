"""From the logits of a classifier to what people ask for: shares of one label, of each label, or plain scores."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxformer.config import ClassifierConfig, SpanConfig, TokenClassifierConfig, TransformerConfig
from jaxformer.errors import InputError
from jaxformer.schema import shown

# "one": one label is right, and probabilities sum to 1. "each": each is right or not. "score": a number per label.
Kind = Literal["one", "each", "score"]
PROBLEMS: dict[str, Kind] = {
    "single_label_classification": "one",
    "multi_label_classification": "each",
    "regression": "score",
}
# What each head is for, and the method that uses it.
HEADS: tuple[tuple[type, str, str], ...] = (
    (ClassifierConfig, "labels of texts (ForSequenceClassification)", "classify"),
    (TokenClassifierConfig, "labels of tokens (ForTokenClassification)", "tag"),
    (SpanConfig, "answers (ForQuestionAnswering)", "answer"),
)
LIKELY = 0.5  # above it, one of several labels that may be right together counts as right


def kind_of_scores(settings: Mapping[str, Any], classes: int) -> Kind:
    """Return what the logits of a folder's classifier are, as transformers and sentence-transformers read it.

    A single logit is a score where `problem_type` is "regression" or sentence-transformers takes it as it is, else the
    logit of a probability.

    Args:
        settings: The folder's config.json.
        classes: Number of logits.

    Raises:
        InputError: config.json names a problem or an activation that is not known.
    """
    problem = settings.get("problem_type")
    if problem is not None and (not isinstance(problem, str) or problem not in PROBLEMS):
        raise InputError(f"problem_type={shown(problem)} must be {', '.join(PROBLEMS)} or null")
    if classes > 1:
        return PROBLEMS[problem or "single_label_classification"]
    about = settings.get("sentence_transformers")
    named = about.get("activation_fn") if isinstance(about, dict) else None
    named = named or settings.get("sbert_ce_default_activation_function")
    match str(named).rpartition(".")[2]:
        case "None":
            return "score" if problem == "regression" else "each"
        case "Sigmoid":
            return "each"
        case "Identity":
            return "score"
    raise InputError(f"activation_fn={shown(named)} of config.json is not supported: Sigmoid and Identity are")


def scaled(logits: np.ndarray, kind: Kind) -> np.ndarray:
    """Return probabilities or scores [..., classes] of logits [..., classes]."""
    if kind == "score":
        return logits
    if kind == "each":
        return np.exp(-np.logaddexp(0, -logits))
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def labels_of(config: TransformerConfig, settings: Mapping[str, Any]) -> list[str]:
    """Return the labels of a classifier in the order of their numbers; LABEL_0 and so on where they have no names.

    Raises InputError for a model without a classifier of texts or of tokens.
    """
    head, names = config.head, settings.get("id2label") or {}
    if not isinstance(head, ClassifierConfig | TokenClassifierConfig):
        raise InputError("the model has no classifier: train one with --task classify")
    named = {str(number): str(label) for number, label in names.items()}
    return [named.get(str(number), f"LABEL_{number}") for number in range(head.classes)]


def check_head(config: TransformerConfig, wanted: type) -> None:
    """Raise InputError for a model whose head is not of a kind, and name the method for the head that it has."""
    if isinstance(config.head, wanted):
        return
    for kind, head, method in HEADS:
        if isinstance(config.head, kind):
            raise InputError(f"the model has a head for {head}: `{method}` uses it")
    name, method = next((head, method) for kind, head, method in HEADS if kind is wanted)
    if method == "classify":
        raise InputError("the model has no classifier: train one with --task classify")
    raise InputError(f"the model has no head for {name}")
