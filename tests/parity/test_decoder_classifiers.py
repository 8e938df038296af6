"""Classifiers on decoders beside transformers: the state of the last token that is not padding, then `score`."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import DECODERS, PAD, save_decoder
from hf_pairs import Pair, as_tensors, assert_close, forward_distances, in_our_places, is_drawn, make_batch
from transformers import AutoModelForSequenceClassification

from jaxformer import InputError, Transformer, cross_entropy, from_pretrained, generate, save_pretrained
from jaxformer.cli import verify
from jaxformer.pretrained import with_classifier
from jaxformer.pretrained.files import read_tensors

CLASSES = 5
FAST = ("gpt2",)
NARROW = {"opt-unusual"}  # an embedding narrower than the model
ABSENT = ("codegen", "cohere", "cohere2", "ernie4-5", "glm4-moe", "granite", "granitemoe", "olmoe")
NAMES = [name for name in sorted(DECODERS) if name.removesuffix("-unusual") not in ABSENT and is_drawn(name)]


def open_classifier(name: str, folder: Path, **labels: Any) -> Pair:
    """A classifier of random weights on the tiny decoder `name`, and ours from its folder."""
    config = save_decoder(name, folder / "decoder").config
    for key, value in (labels or {"num_labels": CLASSES}).items():
        setattr(config, key, value)
    torch.manual_seed(7)
    theirs = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(folder / "classifier")
    return Pair(theirs, from_pretrained(folder / "classifier"), folder / "classifier")


@pytest.mark.parametrize(
    ("name", "side"),
    [(name, side) for name in FAST for side in ("left", "right")]
    + [pytest.param(name, "left", marks=pytest.mark.slow) for name in NAMES if name not in FAST],
)
def test_classes_gradients_and_files_are_those_of_transformers(
    name: str, side: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    if name in NARROW:
        with pytest.raises(InputError, match="narrower"):
            open_classifier(name, tmp_path)
        return
    pair = open_classifier(name, tmp_path)
    batch = make_batch(pair, rng, side)
    assert max(forward_distances(pair, batch)) <= 1e-5
    labels = rng.integers(0, CLASSES, 3)
    pair.theirs.zero_grad()
    loss = torch.nn.functional.cross_entropy(pair.theirs(**as_tensors(batch)).logits, torch.tensor(labels))
    loss.backward()

    def our_loss(model: Transformer) -> jax.Array:
        return cross_entropy(model(batch["input_ids"], inputs_mask=batch["attention_mask"] == 1), labels)

    ours, gradient = jax.jit(jax.value_and_grad(our_loss))(pair.ours.model)
    assert_close(ours, loss.item())
    theirs = {key: leaf.grad.numpy() for key, leaf in pair.theirs.named_parameters() if leaf.grad is not None}
    expected = in_our_places(pair, theirs)
    assert_close(gradient.head.output.weight[...], expected.head.output.weight[...])
    assert_close(gradient.embedding.embedding[...], expected.embedding.embedding[...])
    save_pretrained(pair.ours, tmp_path / "again")
    before, after = (read_tensors(folder) for folder in (pair.folder, tmp_path / "again"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_the_last_token_is_found_as_transformers_finds_it(tmp_path: Path, rng: np.random.Generator) -> None:
    pair = open_classifier("gpt2", tmp_path)
    ids = rng.integers(3, 45, (4, 6))
    ids[1, 4:] = PAD  # behind the text
    ids[2, :2] = PAD  # before it
    ids[3, 2] = PAD  # inside
    with torch.no_grad():
        theirs = pair.theirs(input_ids=torch.tensor(ids)).logits
    assert_close(pair.ours(ids).logits, theirs)
    assert_close(pair.ours(ids[3:]).logits, theirs[3:])


def test_without_a_pad_token_the_mask_tells(tmp_path: Path, rng: np.random.Generator) -> None:
    pair = open_classifier("gpt2", tmp_path, num_labels=CLASSES, pad_token_id=None)
    ids = rng.integers(3, 45, (1, 6))
    with torch.no_grad():
        theirs = pair.theirs(input_ids=torch.tensor(ids)).logits
    assert_close(pair.ours(ids).logits, theirs)
    padded, mask = np.pad(ids, ((0, 0), (0, 3))), np.pad(np.ones_like(ids), ((0, 0), (0, 3)))
    assert_close(pair.ours(padded, mask).logits, theirs)


def test_what_transformers_has_no_classifier_of_is_refused(tmp_path: Path) -> None:
    save_decoder("cohere", tmp_path)
    with pytest.raises(InputError, match="Cohere has no ForSequenceClassification in transformers"):
        with_classifier(from_pretrained(tmp_path), ["no", "yes"], seed=0)


def test_a_classifier_generates_nothing(tmp_path: Path) -> None:
    pair = open_classifier("gpt2", tmp_path)
    with pytest.raises(InputError, match="no head over the vocabulary"):
        generate(pair.ours.model, jnp.ones((1, 3), jnp.int32), max_new_tokens=2)


def test_a_new_classifier_names_its_padding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_decoder("llama", tmp_path / "base")
    lm = from_pretrained(tmp_path / "base")
    found, new = with_classifier(lm, ["no", "yes"], seed=0)
    assert new == ["score.weight"]
    assert found.settings["pad_token_id"] is not None
    assert found.labels == ["no", "yes"]
    save_pretrained(found, tmp_path / "new")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new")
    assert opened.config.id2label == {0: "no", 1: "yes"}
    verify.main([str(tmp_path / "new")])
    assert "equal: everything within" in capsys.readouterr().out
