"""Heads of classes on every family beside transformers: of tokens, of answers in a text, and of whole sequences."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_encoders import ENCODER, ENCODERS
from hf_models import DECODER, DECODERS, EOS, MODELS
from hf_models import TOKENS as BOTH
from hf_pairs import BOUND, Pair, as_tensors, assert_close, in_our_places, is_drawn, make_batch
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from jaxformer import InputError, Transformer, as_pretrained, cross_entropy, from_pretrained, save_pretrained
from jaxformer.cli import verify
from jaxformer.pretrained.families import FAMILIES
from jaxformer.pretrained.files import read_tensors
from jaxformer.pretrained.heads import SEQUENCES, SPANS, TOKENS, WITHOUT

CLASSES = 5
OPENERS = {
    SEQUENCES: AutoModelForSequenceClassification,
    TOKENS: AutoModelForTokenClassification,
    SPANS: AutoModelForQuestionAnswering,
}
NAMES = {
    SEQUENCES: modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    TOKENS: modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    SPANS: modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
SETTINGS = {
    **{name: (config, DECODER | given) for name, (config, given) in DECODERS.items()},
    **{name: (config, ENCODER | given) for name, (config, given) in ENCODERS.items()},
    **{name: (config, BOTH | given) for name, (config, given) in MODELS.items()},
}
# What the settings of encoders with a head for classes do not have otherwise.
FURTHER = {
    "modernbert-unusual": {"classifier_pooling": "mean"},
    "eurobert-unusual": {"classifier_pooling": "mean"},
    "eurobert-bos": {"classifier_pooling": "bos"},
    "llama-unusual": {"token_classification_bias": False},
}
SETTINGS["eurobert-bos"] = SETTINGS["eurobert"]
NARROW = {"opt-unusual"}  # an embedding narrower than the model
# Classes of sequences of decoders alone are in test_decoder_classifiers, those of BERT and its kin in the ledger.
TWICE = {"bart", "mbart", "t5", "mt5"}
CASES = [
    (name, head)
    for name, (config, _) in sorted(SETTINGS.items())
    for head in (SEQUENCES, TOKENS, SPANS)
    if config.model_type not in WITHOUT[head]
    and (head != SEQUENCES or config.model_type in {*TWICE, "modernbert", "eurobert"})
]
FAST = {("bert", TOKENS), ("t5", SEQUENCES)}


def open_head(name: str, head: str, folder: Path, **further: Any) -> Pair:
    """A head of random weights on the tiny model `name`, and ours from its folder."""
    config_class, settings = SETTINGS[name]
    labels = {} if head == SPANS else {"num_labels": CLASSES}
    torch.manual_seed(7)
    config = config_class(**settings | FURTHER.get(name, {}) | labels | further)
    theirs = OPENERS[head].from_config(config, attn_implementation="eager").eval()
    for key, parameter in theirs.named_parameters():
        mean = 1.0 if "norm" in key.lower() and key.endswith("weight") and "gemma" not in name else 0.0
        torch.nn.init.normal_(parameter, mean=mean, std=0.2)
    theirs.save_pretrained(folder)
    return Pair(theirs, from_pretrained(folder), folder)


def head_batch(pair: Pair, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A batch whose rows end with the token that ends a text, once each."""
    batch = make_batch(pair, rng)
    batch.pop("decoder_input_ids", None)
    if pair.ours.model.config.targets_from is not None:
        ids, last = batch["input_ids"], batch["attention_mask"].sum(axis=1) - 2  # mBART has a language behind it
        ids[ids == EOS] = EOS + 1
        ids[np.arange(len(ids)), last] = EOS
    return batch


def logits_of(output: Any) -> Any:
    """Their logits [B, classes] or [B, T, classes]."""
    return torch.stack([output.start_logits, output.end_logits], -1) if "start_logits" in output else output.logits


def real_tokens(pair: Pair, batch: dict[str, np.ndarray], head: str) -> Any:
    """What counts of logits: real tokens, or everything where a row has one class."""
    return ... if head == SEQUENCES else batch["attention_mask"] == 1


def our_loss(model: Transformer, batch: dict[str, np.ndarray], labels: np.ndarray) -> jax.Array:
    """The mean cross-entropy of classes; of begins and ends the mean of both."""
    types = {"token_types": batch["token_type_ids"]} if "token_type_ids" in batch else {}
    logits = model(batch["input_ids"], inputs_mask=batch["attention_mask"] == 1, **types)
    if logits.ndim == 2 or labels.shape == logits.shape[:2]:
        return cross_entropy(logits, labels)
    return cross_entropy(jnp.moveaxis(logits, 2, 1), labels)  # [B, 2, T]


def labels_of(pair: Pair, batch: dict[str, np.ndarray], head: str, rng: np.random.Generator) -> tuple[Any, dict]:
    """Labels for our loss, and as arguments for theirs."""
    if head == SEQUENCES:
        labels = rng.integers(0, CLASSES, 3)
        return labels, {"labels": torch.tensor(labels)}
    if head == TOKENS:
        labels = np.where(batch["attention_mask"] == 1, rng.integers(0, CLASSES, (3, 9)), -100)
        return labels, {"labels": torch.tensor(labels)}
    labels = np.array([[0, 3], [1, 1], [2, 3]])
    return labels, {"start_positions": torch.tensor(labels[:, 0]), "end_positions": torch.tensor(labels[:, 1])}


@pytest.mark.parametrize(
    ("name", "head"),
    [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES if is_drawn(case[0])],
)
def test_logits_gradients_and_files_are_those_of_transformers(
    name: str, head: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    if name in NARROW:
        with pytest.raises(InputError, match="narrower"):
            open_head(name, head, tmp_path)
        return
    pair = open_head(name, head, tmp_path / "theirs")
    batch = head_batch(pair, rng)
    with torch.no_grad():
        found = pair.theirs(**as_tensors(batch))
    ours = pair.ours(**batch)
    assert_close(ours.logits, logits_of(found), real_tokens(pair, batch, head))
    if head == SPANS:
        assert_close(ours.end_logits, found.end_logits, batch["attention_mask"] == 1)
    if head == SPANS:  # a softmax over all places, of which padding has no gradient in transformers
        ids = np.where(batch["attention_mask"] == 1, batch["input_ids"], 7)
        batch |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    labels, arguments = labels_of(pair, batch, head, rng)
    loss = pair.theirs(**as_tensors(batch), **arguments).loss
    loss.backward()
    value, gradient = jax.jit(jax.value_and_grad(our_loss))(pair.ours.model, batch, labels)
    assert_close(value, loss.item())
    theirs = {key: leaf.grad.numpy() for key, leaf in pair.theirs.named_parameters() if leaf.grad is not None}
    expected = in_our_places(pair, theirs)
    for our, their in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        if not np.isnan(their).all():  # a buffer
            assert np.abs(our - their).max() <= 3 * BOUND * max(np.abs(their).max(), 1.0)
    assert_close(gradient.head.output.weight[...], expected.head.output.weight[...])
    assert np.abs(gradient.embedding.embedding[...]).max() > 0
    save_pretrained(pair.ours, tmp_path / "again")
    before, after = (read_tensors(folder) for folder in (pair.folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("mbart", SPANS), ("roberta", TOKENS), ("modernbert", SPANS)])
def test_hidden_states_and_maps_come_with_them(name: str, head: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pair = open_head(name, head, tmp_path)
    batch = head_batch(pair, rng)
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        theirs = pair.theirs(**as_tensors(batch), **asked)
    ours, fields = pair.ours(**batch, **asked), ("hidden_states", "attentions")
    if pair.ours.model.decoder is not None:
        fields = ("encoder_hidden_states", "decoder_hidden_states", "cross_attentions")
    for field in fields:
        real = batch["attention_mask"] == 1
        for our, their in zip(getattr(ours, field), getattr(theirs, field), strict=True):
            assert_close(our, their, real if our.ndim == 3 else np.broadcast_to(real[:, None], our.shape[:3]))


def test_what_transformers_has_is_here_and_nothing_else() -> None:
    """The lists of families without a head, against the classes of transformers."""
    known = {config.model_type for config, _ in SETTINGS.values()}
    assert known == set(FAMILIES)
    for head, names in NAMES.items():
        assert {name for name in known if name not in names} == WITHOUT[head], head
        ends = {name: names[name] for name in known & names.keys()}
        wrong = {name for name, theirs in ends.items() if theirs != f"{FAMILIES[name].classes}{head}"}
        assert wrong <= {"gemma3_text"}  # Gemma3TextForSequenceClassification


def test_a_class_that_transformers_lacks_is_refused() -> None:
    config_class, settings = SETTINGS["eurobert"]
    given = config_class(**settings).to_dict() | {"architectures": ["EuroBertForQuestionAnswering"]}
    with pytest.raises(InputError, match="EuroBert has no ForQuestionAnswering in transformers"):
        FAMILIES["eurobert"].config(given)


def test_a_text_without_an_end_is_refused(tmp_path: Path) -> None:
    pair = open_head("bart", SEQUENCES, tmp_path)
    with pytest.raises(InputError, match="row 1 of input_ids has no token 2, which ends a text"):
        pair.ours([[7, EOS], [8, 9]])
    with pytest.raises(InputError, match="leave the targets out"):
        pair.ours([[7, EOS]], decoder_input_ids=[[5, 7, 8]])


def test_t5_needs_to_know_what_its_decoder_reads_first(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="names no decoder_start_token_id"):
        open_head("t5", SEQUENCES, tmp_path, decoder_start_token_id=None)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", TOKENS),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES if is_drawn(case[0]) and case[0] not in NARROW),
    ],
)
def test_models_are_written_as_their_family(name: str, head: str, tmp_path: Path) -> None:
    """From the model alone, as for one that was trained here."""
    pair = open_head(name, head, tmp_path)
    made = as_pretrained(pair.ours.model, generation=pair.ours.generation, family=SETTINGS[name][0].model_type)
    assert made.settings["architectures"][0].endswith(head)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), [("bert", TOKENS), ("llama", SPANS), ("mbart", SEQUENCES), ("t5", TOKENS)])
def test_verify_compares_them(name: str, head: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_head(name, head, tmp_path)
    verify.main([str(tmp_path)])
    assert "equal: everything within" in capsys.readouterr().out
