"""What people ask heads of classes for, in texts: labels, scores, entities, answers; beside transformers' pipelines."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import save_decoder
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedTokenizerFast,
    pipeline,
)
from word_models import WORDS, save_bert, save_headed

import jaxformer
from jaxformer import InputError
from jaxformer.pretrained import with_classifier
from jaxformer.pretrained.answering import characters

TEXTS = ["the cat sat", "a dog sat on the log on a mat", "cat"]
PAIRS = [("the cat sat", "a dog"), ("on a mat", "Katze the log")]
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        pytest.param({"num_labels": 3}, "one", marks=pytest.mark.slow),
        pytest.param({"num_labels": 3, "types": False}, "one", marks=pytest.mark.slow),
        pytest.param({"num_labels": 3, "problem_type": "single_label_classification"}, "one", marks=pytest.mark.slow),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "each"),
        ({"num_labels": 1}, "each"),
        pytest.param({"num_labels": 1, "problem_type": "regression"}, "score", marks=pytest.mark.slow),
        pytest.param({"num_labels": 2, "problem_type": "regression"}, "score", marks=pytest.mark.slow),
    ],
)
def test_labels_are_those_of_the_pipeline(settings: dict[str, Any], kind: str, tmp_path: Path) -> None:
    save_headed(tmp_path, AutoModelForSequenceClassification, **settings)
    lm = jaxformer.from_pretrained(tmp_path)
    assert lm.kind_of_scores == kind
    pipe = pipeline("text-classification", model=str(tmp_path), tokenizer=str(tmp_path), top_k=None)
    pairs = [{"text": first, "text_pair": second} for first, second in PAIRS]
    for ours, theirs in zip(lm.classify([*TEXTS, *PAIRS]), pipe(TEXTS) + pipe(pairs), strict=True):
        assert list(ours) == [row["label"] for row in theirs]
        np.testing.assert_allclose(list(ours.values()), [row["score"] for row in theirs], atol=1e-5)
    assert lm.classify(PAIRS[0]) == lm.classify([PAIRS[0]])[0]


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        pytest.param({"sentence_transformers": {"activation_fn": SIGMOID}}, "each", marks=pytest.mark.slow),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, "score"),
        pytest.param({"sbert_ce_default_activation_function": IDENTITY}, "score", marks=pytest.mark.slow),
        ({"sbert_ce_default_activation_function": SIGMOID, "problem_type": "regression"}, "each"),
    ],
)
def test_one_score_is_what_sentence_transformers_makes_of_it(
    settings: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    theirs = save_headed(tmp_path, AutoModelForSequenceClassification, num_labels=1)
    change(tmp_path, **settings)
    fast = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with torch.no_grad():
        logit = theirs(**fast(*PAIRS[0], return_tensors="pt")).logits.item()
    expected = logit if kind == "score" else 1 / (1 + math.exp(-logit))
    assert jaxformer.from_pretrained(tmp_path).classify(PAIRS[0]) == {"LABEL_0": pytest.approx(expected, abs=1e-5)}


def change(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_what_is_unknown_of_scores_is_refused(tmp_path: Path) -> None:
    save_headed(tmp_path, AutoModelForSequenceClassification, num_labels=1)
    for settings, message in (
        ({"problem_type": "ranking"}, 'problem_type="ranking" must be single_label_classification'),
        ({"problem_type": None, "sentence_transformers": {"activation_fn": "x.Tanh"}}, 'activation_fn="x.Tanh"'),
    ):
        change(tmp_path, **settings)
        with pytest.raises(InputError, match=message):
            jaxformer.from_pretrained(tmp_path).classify("cat")


@pytest.mark.slow
def test_a_new_classifier_has_one_right_label(tmp_path: Path) -> None:
    """Whatever the classifier before it had."""
    save_headed(tmp_path, AutoModelForSequenceClassification, num_labels=3, problem_type="multi_label_classification")
    lm, _ = with_classifier(jaxformer.from_pretrained(tmp_path), ["no", "yes"], seed=0)
    assert lm.kind_of_scores == "one"
    assert sum(lm.classify("cat").values()) == pytest.approx(1)


LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC", 5: "MISC"}


@pytest.mark.parametrize("std", [0.2, pytest.param(0.3, marks=pytest.mark.slow)])
def test_entities_are_those_of_the_pipeline(std: float, tmp_path: Path, rng: np.random.Generator) -> None:
    names = {name: number for number, name in LABELS.items()}
    save_headed(tmp_path, AutoModelForTokenClassification, std, id2label=LABELS, label2id=names)
    lm = jaxformer.from_pretrained(tmp_path)
    pipe = pipeline("token-classification", model=str(tmp_path), tokenizer=str(tmp_path), aggregation_strategy="simple")
    texts = [" ".join(rng.choice(WORDS, size=n)) for n in (1, 3, 9, 17, 20)]
    found = lm.tag(texts)
    for text, ours, theirs in zip(texts, found, pipe(texts), strict=True):
        assert [(each.label, each.start, each.end) for each in ours] == [
            (row["entity_group"], row["start"], row["end"]) for row in theirs
        ]
        assert all(each.text == text[each.start : each.end] for each in ours)
        np.testing.assert_allclose([each.score for each in ours], [row["score"] for row in theirs], atol=1e-5)
    assert len({each.label for entities in found for each in entities}) > 1
    assert [each.text for each in lm.tag(texts[2])] == [each.text for each in found[2]]


def pipeline_answer(folder: Path, question: str, context: str, most: int = 15, top_k: int = 1) -> list[dict[str, Any]]:
    """What the question-answering pipeline of transformers 4 answers, in plain loops over tokens and windows."""
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    length = min(384, model.config.max_position_embeddings)
    encoded = fast(
        question,
        context,
        truncation="only_second",
        max_length=length,
        stride=min(length // 2, 128),
        return_overflowing_tokens=True,
        return_token_type_ids=True,
    )
    answers: list[dict[str, Any]] = []
    for window, encoding in enumerate(encoded.encodings):
        with torch.no_grad():
            found = model(
                input_ids=torch.tensor([encoded["input_ids"][window]]),
                token_type_ids=torch.tensor([encoded["token_type_ids"][window]]),
            )
        sequences = encoding.sequence_ids
        begin, end = (logits[0].double().numpy().copy() for logits in (found.start_logits, found.end_logits))
        for token, sequence in enumerate(sequences):
            if sequence != 1 and token > 0:
                begin[token] = end[token] = -10000.0
        begin, end = (np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum() for logits in (begin, end))
        begin[0] = end[0] = 0.0
        spans = [
            (begin[i] * end[j], i, j)
            for i in range(len(sequences))
            for j in range(i, min(i + most, len(sequences)))
            if sequences[i] == sequences[j] == 1
        ]
        for score, i, j in sorted(spans, reverse=True)[: 2 * top_k + 10]:
            start, stop = characters(encoding, i, j)
            same = [each for each in answers if each["answer"].lower() == context[start:stop].lower()]
            if same:
                same[0]["score"] += score
            else:
                answers.append({"answer": context[start:stop], "score": score, "start": start, "end": stop})
    return sorted(answers, key=lambda each: -each["score"])[:top_k]


@pytest.mark.parametrize(
    ("question", "context"),
    [
        pytest.param("the cat", "a dog sat on the log on a mat", marks=pytest.mark.slow),
        pytest.param("on a mat sat", "cat", marks=pytest.mark.slow),
        ("the dog", "the cat sat on a mat and the Dog sat on the log , a Hund and a Katze sat on the mat " * 3),
    ],
)
def test_answers_are_those_of_the_pipeline(question: str, context: str, tmp_path: Path) -> None:
    save_headed(tmp_path, AutoModelForQuestionAnswering)
    lm = jaxformer.from_pretrained(tmp_path)
    for most in (15, 2):
        (expected,) = pipeline_answer(tmp_path, question, context, most)
        found = lm.answer(question, context, max_answer_len=most)
        assert (found.text, found.start, found.end) == (expected["answer"], expected["start"], expected["end"])
        assert found.score == pytest.approx(expected["score"], abs=1e-5)
    several = lm.answers([(question, context)], top_k=3)[0]
    expected_several = pipeline_answer(tmp_path, question, context, top_k=3)
    assert [each.text for each in several] == [each["answer"] for each in expected_several]


def test_bad_calls_are_one_line(tmp_path: Path) -> None:
    heads = {
        "classes": AutoModelForSequenceClassification,
        "tokens": AutoModelForTokenClassification,
        "spans": AutoModelForQuestionAnswering,
    }
    for name, opener in heads.items():
        save_headed(tmp_path / name, opener)
    save_bert(tmp_path / "masked")
    lm = {name: jaxformer.from_pretrained(tmp_path / name) for name in (*heads, "masked")}
    calls = [
        (lambda: lm["classes"].tag("cat"), "has a head for labels of texts .*: `classify` uses it"),
        (lambda: lm["tokens"].classify("cat"), "has a head for labels of tokens .*: `tag` uses it"),
        (lambda: lm["spans"].classify("cat"), "has a head for answers .*: `answer` uses it"),
        (lambda: lm["masked"].tag("cat"), r"has no head for labels of tokens \(ForTokenClassification\)"),
        (lambda: lm["masked"].answer("cat", "dog"), r"has no head for answers \(ForQuestionAnswering\)"),
        (lambda: lm["masked"].classify("cat"), "has no classifier: train one"),
        (lambda: lm["tokens"].tag("cat " * 30), "text 0 has 32 tokens, more than 24: .*truncate=True"),
        (lambda: lm["tokens"].tag(("cat", "dog")[0:0]), "give a text"),
        (lambda: lm["classes"].classify([("cat", "dog", "log")]), "give a text, a pair of texts, or a list"),
        (lambda: lm["classes"].classify([]), "give a text, a pair of texts"),
        (lambda: lm["spans"].answer("cat", " "), "the question or its text is blank"),
        (lambda: lm["spans"].answer("cat", 3), "context must be a text, not 3"),
        (lambda: lm["spans"].answer("cat " * 18, "dog " * 9), "the question has 21 tokens, and the model reads 24"),
        (lambda: lm["spans"].answer("cat", "dog", max_answer_len=0), "max_answer_len must be a whole number"),
        (lambda: lm["spans"].answers([("cat", "dog")], top_k=0), "top_k must be a whole number"),
    ]
    for call, message in calls:
        with pytest.raises(InputError, match=message):
            call()


def test_a_decoder_without_a_tokenizer_tells(tmp_path: Path) -> None:
    save_decoder("gpt2", tmp_path)
    with pytest.raises(InputError, match=r"no tokenizer\.json to read texts with"):
        jaxformer.from_pretrained(tmp_path).embed("cat", pooling="last")
