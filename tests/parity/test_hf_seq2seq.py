"""Encoder-decoder families of transformers: logits, hidden states, attention maps, gradients, generated tokens."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import EOS, MODELS, START, save_model
from hf_pairs import (
    BOUND,
    Pair,
    as_tensors,
    assert_close,
    assert_saved_copy_is_the_same,
    forward_distances,
    gradient_distance,
    make_batch,
    make_labels,
    open_pair,
)
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForSeq2SeqLM

from jaxformer import InputError, Transformer
from jaxformer.pretrained import from_pretrained

QUICK = {"t5"}
SOMETIMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
# Of the other configurations of a family the ledger, a slow test, measures the same.
USUAL = [name for name in MODELS if f"{name}-unusual" in MODELS]
ONE_OF_EACH = [pytest.param(name, marks=pytest.mark.slow) if name in USUAL else name for name in MODELS]


@pytest.fixture(scope="module", params=ONE_OF_EACH)
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Pair:
    return open_pair(request.param, tmp_path_factory.mktemp(request.param))


def test_logits_states_and_maps(pair: Pair, rng: np.random.Generator) -> None:
    assert max(forward_distances(pair, make_batch(pair, rng))) <= BOUND


@pytest.mark.parametrize("name", sorted(QUICK))
def test_loss_and_gradients(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """With smaller weights: where a softmax is saturated, both programs' gradients are differences of equal numbers."""
    pair = open_pair(name, tmp_path, std=0.2)
    batch = make_batch(pair, rng)
    assert gradient_distance(pair, batch, make_labels(pair, rng, batch)) <= BOUND


@pytest.mark.parametrize("pair", SOMETIMES, indirect=True)
def test_generated_tokens(pair: Pair, rng: np.random.Generator) -> None:
    arguments = make_batch(pair, rng)
    del arguments["decoder_input_ids"]
    beams = {"num_beams": 3, "num_return_sequences": 2} if pair.folder.name[-2].isalpha() else {}
    settings = {"max_new_tokens": 11, "eos_token_id": EOS, **beams}
    with torch.no_grad():
        expected = pair.theirs.generate(**as_tensors(arguments), do_sample=False, **settings)
    assert pair.ours.generate(**arguments, **settings).sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("pair", SOMETIMES, indirect=True)
def test_any_chunking_of_the_cache(pair: Pair, rng: np.random.Generator) -> None:
    arguments, model = make_batch(pair, rng), pair.ours.model
    valid, targets = arguments["attention_mask"].astype(bool), arguments["decoder_input_ids"]
    encoded = model.encode(arguments["input_ids"], mask=valid)
    extend, cache, states = jax.jit(Transformer.extend), model.init_cache(3, 9, encoded=encoded), []
    cache = dataclasses.replace(cache, encoder_valid=jnp.asarray(valid))
    for start, end in ((0, 2), (2, 3), (3, 5)):
        hidden, cache = extend(model, targets[:, start:end], cache)
        states.append(hidden)
    assert_close(model.logits(jnp.concatenate(states, axis=1)), pair.ours(**arguments).logits)


def test_a_saved_copy_is_the_same(pair: Pair, tmp_path: Path, rng: np.random.Generator) -> None:
    assert_saved_copy_is_the_same(pair, tmp_path / "copy")
    tensors = as_tensors(make_batch(pair, rng))
    reopened = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "copy", attn_implementation="eager").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(reopened(**tensors).logits, pair.theirs(**tensors).logits)


def test_generation_settings_come_from_the_folder(tmp_path: Path) -> None:
    save_model("bart", tmp_path)
    settings = from_pretrained(tmp_path).generation
    assert (settings.eos_token_id, settings.decoder_start_token_id) == (EOS, START)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model("marian", tmp_path)
    return tmp_path


def change(folder: Path, **settings: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_missing_surplus_and_misshapen_tensors_are_named_together(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.encoder.layers.0.fc1.weight"]
    tensors["model.extra"] = np.zeros(3, np.float32)
    tensors["model.encoder.layers.1.fc1.bias"] = np.zeros(3, np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(InputError) as error:
        from_pretrained(folder)
    for part in ("missing model.encoder.layers.0.fc1.weight", "surplus model.extra", "encoder.layers.1.fc1.bias has"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "whisper"}, "known are bart, bert, deepseek_v2, deepseek_v3, distilbert"),
        ({"activation_function": "mish"}, "activation_function=.mish. must be one of"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1 must be 0.0"),
        ({"decoder_attention_heads": 3}, "decoder_attention_heads=3 does not divide d_model=14"),
    ],
)
def test_unsupported_values_are_named(folder: Path, settings: dict[str, object], message: str) -> None:
    change(folder, **settings)
    with pytest.raises(InputError, match=message):
        from_pretrained(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give decoder_input_ids to an encoder-decoder"),
        ({"decoder_input_ids": [[5]]}, "2 rows of input_ids, but 1 of decoder_input_ids"),
        ({"decoder_input_ids": [[5], [5, 6]]}, "decoder_input_ids must be rows of one length"),
        ({"decoder_input_ids": [[5], [5]], "decoder_attention_mask": [[1], [2]]}, "decoder_attention_mask has 2"),
        ({"input_ids": [[]], "decoder_input_ids": [[5]]}, "input_ids must be token ids .* not empty"),
    ],
)
def test_misuse_of_the_forward_pass_is_explained(folder: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_pretrained(folder)(**{"input_ids": [[5, 6], [7, 8]]} | arguments)


def test_distances_have_no_position_ids(tmp_path: Path) -> None:
    save_model("t5", tmp_path)
    with pytest.raises(InputError, match="the model has no position_ids"):
        from_pretrained(tmp_path)([[5, 6]], decoder_input_ids=[[5]], position_ids=[[1, 2]])


def test_damaged_folders_are_explained(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged"):
        from_pretrained(folder)
    weights.unlink()
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        from_pretrained(folder)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="there is no folder"):
        from_pretrained(folder)
