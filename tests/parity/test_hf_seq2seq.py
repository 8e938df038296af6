"""Marian and BART through the weight tables: logits, hidden states and attention maps of transformers."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from hf_models import EOS, MODELS, START, save_model
from safetensors.numpy import load_file, save_file

from jaxformer import InputError, Transformer
from jaxformer.pretrained import from_pretrained


@pytest.mark.parametrize("name", MODELS)
def test_logits_states_and_maps_equal_transformers(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    reference = save_model(name, tmp_path)
    model = from_pretrained(tmp_path).model
    source, target = rng.integers(3, 45, (3, 7)), rng.integers(3, 45, (3, 5))
    valid = np.arange(7) < np.array([7, 4, 2])[:, None]
    with torch.no_grad():
        expected = reference(
            torch.tensor(source),
            attention_mask=torch.tensor(valid),
            decoder_input_ids=torch.tensor(target),
            output_hidden_states=True,
            output_attentions=True,
        )
    seen = jax.jit(Transformer.observe)(model, source, target, inputs_valid=valid)
    pairs = [
        ((seen.logits,), (expected.logits,), None),
        (seen.encoder.hidden_states, expected.encoder_hidden_states, valid),
        (seen.decoder.hidden_states, expected.decoder_hidden_states, None),
        (seen.decoder.attentions, expected.decoder_attentions, None),
        (seen.decoder.cross_attentions, expected.cross_attentions, None),
    ]
    for ours, theirs, rows in pairs:
        assert len(ours) == len(theirs)
        for our, their in zip(ours, theirs, strict=True):
            our, their = np.asarray(our), their.numpy()
            chosen = slice(None) if rows is None else rows
            bound = 1e-5 * max(1, np.abs(their[chosen]).max())
            np.testing.assert_allclose(our[chosen], their[chosen], rtol=0, atol=bound)
    for our, their in zip(seen.encoder.attentions, expected.encoder_attentions, strict=True):
        real = np.broadcast_to(valid[:, None, :, None], our.shape)  # rows of padding are nobody's
        np.testing.assert_allclose(np.asarray(our)[real], their.numpy()[real], rtol=0, atol=1e-5)


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
        ({"model_type": "whisper"}, "known are bart, gpt2, llama, marian"),
        ({"activation_function": "mish"}, "activation_function='mish' is not supported"),
        ({"encoder_layerdrop": 0.1}, "encoder_layerdrop=0.1 is not supported"),
        ({"decoder_attention_heads": 3}, "3 heads do not divide"),
    ],
)
def test_unsupported_values_are_named(folder: Path, settings: dict[str, object], message: str) -> None:
    change(folder, **settings)
    with pytest.raises(InputError, match=message):
        from_pretrained(folder)


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
