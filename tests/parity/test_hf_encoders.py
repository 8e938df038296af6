"""BERT, RoBERTa and DistilBERT, with each head: what transformers computes, forward and backward, and back again."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
import torch
from hf_encoders import BERT_SHAPE, ENCODER, ENCODERS, heads, save_encoder
from hf_models import PAD, T5_SHAPE
from hf_pairs import (
    BOUND,
    FURTHER_NAMES,
    NEW_FIELDS,
    Pair,
    as_tensors,
    assert_close,
    assert_saved_copy_is_the_same,
    forward_distances,
    gradient_distance,
    in_our_places,
    make_batch,
    make_labels,
    marked,
    open_pair,
)
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForPreTraining, BertConfig, T5Config, T5EncoderModel

from jaxformer import InputError, Transformer, as_pretrained
from jaxformer.pretrained import from_pretrained

USUAL = [name for name in ENCODERS if f"{name}-unusual" in ENCODERS]
ENCODINGS = [
    # Of the other configurations of a family the ledger, a slow test, measures the same.
    *marked(
        [f"{name}-{head}" for name in ENCODERS for head in heads(name)],
        ({f"{name}-{head}" for name in USUAL for head in heads(name)} | FURTHER_NAMES) - NEW_FIELDS,
    )
]


@pytest.fixture(scope="module", params=ENCODINGS)
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Pair:
    return open_pair(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_states_and_maps(pair: Pair, rng: np.random.Generator) -> None:
    assert max(forward_distances(pair, make_batch(pair, rng))) <= BOUND


@pytest.mark.parametrize("name", ["bert-unusual-masked", "roberta-bare", "distilbert-classes"])
def test_left_padding_and_tokens_of_one_type(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pair = open_pair(name, tmp_path)
    assert max(forward_distances(pair, make_batch(pair, rng, "left", types=False))) <= BOUND


@pytest.mark.parametrize("name", ["bert-unusual-masked"])
def test_loss_and_gradients(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """With smaller weights: where a softmax is saturated, both programs' gradients are differences of equal numbers."""
    pair = open_pair(name, tmp_path, std=0.2)
    batch = make_batch(pair, rng)
    assert gradient_distance(pair, batch, make_labels(pair, rng, batch)) <= BOUND


def test_a_saved_copy_is_the_same(pair: Pair, tmp_path: Path, rng: np.random.Generator) -> None:
    """Also what we have no use for, BERT's pooler."""
    assert_saved_copy_is_the_same(pair, tmp_path / "copy")
    tensors = as_tensors(make_batch(pair, rng))
    reopened = type(pair.theirs).from_pretrained(tmp_path / "copy", attn_implementation="eager").eval()
    with torch.no_grad():
        for ours, theirs in zip(reopened(**tensors).values(), pair.theirs(**tensors).values(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_roberta_counts_tokens_whatever_the_mask_says(tmp_path: Path, rng: np.random.Generator) -> None:
    theirs, lm = save_encoder("roberta", "masked", tmp_path), from_pretrained(tmp_path)
    tokens = rng.integers(3, 53, (2, 9))
    tokens[0, 3] = tokens[1, :2] = PAD
    with torch.no_grad():
        assert_close(lm(tokens).logits, theirs(torch.tensor(tokens)).logits)


def test_the_encoder_of_t5_alone(tmp_path: Path, rng: np.random.Generator) -> None:
    torch.manual_seed(2)
    theirs = T5EncoderModel(T5Config(**ENCODER, **T5_SHAPE)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    theirs.save_pretrained(tmp_path)
    pair = Pair(theirs, from_pretrained(tmp_path), tmp_path)
    assert max(forward_distances(pair, make_batch(pair, rng))) <= BOUND
    assert_saved_copy_is_the_same(pair, tmp_path / "copy")


def test_checkpoints_of_pre_training_and_their_old_names(tmp_path: Path, rng: np.random.Generator) -> None:
    """What BERT was published as: with a head for sentences beside that for tokens, norms of gamma and beta."""
    torch.manual_seed(3)
    theirs = AutoModelForPreTraining.from_config(BertConfig(**ENCODER, **BERT_SHAPE)).eval()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tokens = rng.integers(3, 53, (2, 9))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).prediction_logits
    assert_close(from_pretrained(tmp_path)(tokens).logits, expected)


@pytest.mark.parametrize("name", marked(["electra", "electra-unusual"], ["electra-unusual"]))
def test_the_discriminator_of_electra(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """A score of each token, with the gradient of its loss, and back again."""
    torch.manual_seed(4)
    config_class, settings = ENCODERS[name]
    theirs = AutoModelForPreTraining.from_config(config_class(**ENCODER, **settings)).eval()
    for key, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("Norm.weight" in key), std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    pair = Pair(theirs, from_pretrained(tmp_path / "theirs"), tmp_path / "theirs")
    batch = make_batch(pair, rng)
    real, labels = batch["attention_mask"] == 1, rng.integers(0, 2, (3, 9))
    assert max(forward_distances(pair, batch)) <= BOUND
    assert pair.ours(**batch).logits.shape == (3, 9)
    assert_saved_copy_is_the_same(pair, tmp_path / "copy")
    assert as_pretrained(pair.ours.model, family="electra").settings["architectures"] == ["ElectraForPreTraining"]

    def our_loss(model: Transformer) -> Any:
        logits = model(batch["input_ids"], inputs_mask=real, token_types=batch["token_type_ids"])[real]
        return optax.sigmoid_binary_cross_entropy(logits, labels[real]).mean()

    reference = theirs.double()
    reference(**as_tensors(batch), labels=torch.tensor(labels)).loss.backward()
    gradient = {key: parameter.grad.numpy() for key, parameter in reference.named_parameters()}
    ours, expected = jax.grad(our_loss)(pair.ours.model), in_our_places(pair, gradient)
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(our - their).max() <= BOUND * max(np.abs(their).max(), 1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_type_ids": [[0, 2]]}, "token_type_ids has 2, outside the 2 types"),
        ({"token_type_ids": [[0, 1, 1]]}, r"token_type_ids has shape \(1, 3\)"),
        ({"token_type_ids": [["a", "b"]]}, "token_type_ids must be whole numbers"),
        ({"decoder_input_ids": [[1]]}, "to no other model"),
        ({"decoder_attention_mask": [[1]]}, "belongs to decoder_input_ids"),
        ({"attention_mask": [[1], [1, 1]]}, "attention_mask must be rows of one length"),
        ({"attention_mask": [[1, np.nan]]}, "attention_mask has nan: give 1"),
        ({"position_ids": [[0.0, 1.0]]}, "position_ids must be whole numbers"),
        ({"position_ids": [[0]]}, r"position_ids has shape \(1, 1\)"),
        ({"position_ids": [[0, -1]]}, "position_ids has -1, outside the 37 positions"),
        ({"position_ids": [[0, 37]]}, "position_ids has 37, outside the 37 positions"),
        ({"output_attentions": "yes"}, "output_attentions must be True or False, not 'yes'"),
        ({"input_ids": [[5, 6], [7]]}, "input_ids must be rows of one length"),
        ({"input_ids": [[]]}, "input_ids must be token ids .* not empty"),
    ],
)
def test_misuse_is_explained(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    save_encoder("bert", "masked", tmp_path)
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path)(**{"input_ids": [[5, 6]]} | arguments)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_given_positions_are_those_of_the_checkpoint(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """RoBERTa's begin behind two reserved ones."""
    theirs, lm = save_encoder(name, "masked", tmp_path), from_pretrained(tmp_path)
    tokens, positions = rng.integers(3, 45, (2, 9)), rng.integers(2, 30, (2, 9))
    with torch.no_grad():
        for given in (positions, positions[:1]):
            expected = theirs(torch.tensor(tokens), position_ids=torch.tensor(given)).logits
            assert_close(lm(tokens, position_ids=given).logits, expected)


def test_other_heads_are_refused(tmp_path: Path) -> None:
    save_encoder("bert", "masked", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("BertForMaskedLM", "BertForMultipleChoice"))
    with pytest.raises(InputError, match="'BertForMultipleChoice' is not supported"):
        from_pretrained(tmp_path)
