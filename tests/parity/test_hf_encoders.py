"""BERT, RoBERTa and DistilBERT, with each head: what transformers computes, forward and backward, and back again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import PAD
from hf_pairs import Pair, assert_close, assert_gradients_close, assert_saved_copy_is_the_same, assert_traces_close
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
)

from jaxformer import InputError
from jaxformer.pretrained import from_pretrained

TOKENS = {"vocab_size": 53, "pad_token_id": PAD, "attn_implementation": "eager"}
SHAPE = {
    "hidden_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,
    "intermediate_size": 19,
    "max_position_embeddings": 37,
}
DISTIL = {"dim": 14, "n_layers": 3, "n_heads": 7, "hidden_dim": 19, "max_position_embeddings": 37}
CONFIGS: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (BertConfig, SHAPE),
    "bert-unusual": (
        BertConfig,
        SHAPE | {"hidden_act": "relu", "layer_norm_eps": 1e-3, "type_vocab_size": 3, "classifier_dropout": 0.3},
    ),
    "roberta": (RobertaConfig, SHAPE),
    "roberta-unusual": (RobertaConfig, SHAPE | {"hidden_act": "silu", "layer_norm_eps": 1e-3, "type_vocab_size": 1}),
    "distilbert": (DistilBertConfig, DISTIL),
    "distilbert-unusual": (DistilBertConfig, DISTIL | {"activation": "relu", "sinusoidal_pos_embds": True}),
}
CLASSES = {
    "bare": AutoModel,
    "masked": AutoModelForMaskedLM,
    "classes": AutoModelForSequenceClassification,
}


def save_encoder(name: str, head: str, folder: Path) -> Any:
    """The encoder `name` with this head and definite weights, written to `folder`."""
    config_class, settings = CONFIGS[name]
    torch.manual_seed(5)
    labels = {"num_labels": 5} if "unusual" in name else {}
    model = CLASSES[head].from_config(config_class(**TOKENS, **settings, **labels)).eval()
    for key, parameter in model.named_parameters():
        mean = 1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean=mean, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=CLASSES)
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, name: str) -> Pair:
    folder = tmp_path_factory.mktemp(f"{name}-{request.param}")
    theirs = save_encoder(name, request.param, folder)
    return Pair(theirs, from_pretrained(folder), folder)


def batch(rng: np.random.Generator, side: str, types: int | None) -> dict[str, np.ndarray]:
    """Token ids [3, 9] padded on one side, their mask, and their types where there are several."""
    places, lengths = np.arange(9)[None], np.array([9, 4, 7])[:, None]
    valid = places < lengths if side == "right" else places >= 9 - lengths
    arrays = {"input_ids": np.where(valid, rng.integers(3, 53, (3, 9)), PAD), "attention_mask": valid.astype(int)}
    return arrays if types is None else arrays | {"token_type_ids": rng.integers(0, types, (3, 9))}


def types_of(pair: Pair) -> int | None:
    return pair.ours.model.config.encoder.embedding.types


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_states_and_maps(pair: Pair, rng: np.random.Generator, side: str) -> None:
    asked = {"output_hidden_states": True, "output_attentions": True}
    for types in {None, types_of(pair)}:
        arguments = batch(rng, side, types)
        with torch.no_grad():
            expected = pair.theirs(**{name: torch.tensor(array) for name, array in arguments.items()}, **asked)
        seen = pair.ours(**arguments, **asked)
        valid = arguments["attention_mask"].astype(bool)
        if "last_hidden_state" in expected:
            assert_close(seen.logits, expected.last_hidden_state, valid)
        else:
            assert_close(seen.logits, expected.logits, valid if expected.logits.ndim == 3 else ...)
        assert_traces_close(seen.hidden_states, seen.attentions, expected.hidden_states, expected.attentions, valid)


def test_loss_and_gradients(pair: Pair, rng: np.random.Generator) -> None:
    head = pair.ours.model.head
    if head is None:
        return  # has no loss
    arguments = batch(rng, "right", types_of(pair))
    if "classes" in pair.folder.name:
        labels = rng.integers(0, 2, 3)
    else:
        labels = np.where(arguments["attention_mask"] & (rng.random((3, 9)) < 0.5), arguments["input_ids"], -100)
    assert_gradients_close(pair, arguments, labels)


def test_a_saved_copy_is_the_same(pair: Pair, tmp_path: Path, rng: np.random.Generator) -> None:
    """Also what we have no use for, BERT's pooler."""
    assert_saved_copy_is_the_same(pair, tmp_path / "copy")
    tensors = {name: torch.tensor(array) for name, array in batch(rng, "right", None).items()}
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


def test_checkpoints_of_pre_training_and_their_old_names(tmp_path: Path, rng: np.random.Generator) -> None:
    """What BERT was published as: with a head for sentences beside that for tokens, norms of gamma and beta."""
    torch.manual_seed(3)
    theirs = AutoModelForPreTraining.from_config(BertConfig(**TOKENS, **SHAPE)).eval()
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_type_ids": [[0, 2]]}, "token_type_ids has 2, outside the 2 types"),
        ({"token_type_ids": [[0, 1, 1]]}, r"token_type_ids has shape \(1, 3\)"),
        ({"decoder_input_ids": [[1]]}, "to no other model"),
    ],
)
def test_misuse_is_explained(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    save_encoder("bert", "masked", tmp_path)
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path)([[5, 6]], **arguments)


def test_other_heads_are_refused(tmp_path: Path) -> None:
    save_encoder("bert", "masked", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("BertForMaskedLM", "BertForQuestionAnswering"))
    with pytest.raises(InputError, match="'BertForQuestionAnswering' is not supported"):
        from_pretrained(tmp_path)
