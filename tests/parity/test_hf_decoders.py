"""Decoder-only families of transformers: logits, hidden states, attention maps, gradients, generated tokens."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import DECODERS, EOS, PAD, save_decoder
from transformers import AutoModelForCausalLM

from jaxformer import InputError, Transformer, cross_entropy, generate
from jaxformer.data import train_tokenizer
from jaxformer.pretrained import FAMILIES, Pretrained, from_pretrained, save_pretrained
from jaxformer.pretrained.files import read_json, read_tensors
from jaxformer.pretrained.weights import build

LENGTHS = np.array([9, 4, 7])
observe = jax.jit(Transformer.observe)


class Pair(NamedTuple):
    """A model of transformers, ours from its folder, and the folder."""

    theirs: Any
    ours: Pretrained
    folder: Path


@pytest.fixture(scope="module", params=DECODERS)
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save_decoder(request.param, folder)
    return Pair(theirs, from_pretrained(folder), folder)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = tmp_path_factory.mktemp("gpt2")
    save_decoder("gpt2", folder)
    return from_pretrained(folder)


def batch(rng: np.random.Generator, side: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [3, 9] padded on one side, and which are real."""
    places = np.arange(9)[None]
    valid = places < LENGTHS[:, None] if side == "right" else places >= 9 - LENGTHS[:, None]
    return np.where(valid, rng.integers(3, 53, (3, 9)), PAD), valid


def assert_close(ours: Any, theirs: Any, chosen: Any = ...) -> None:
    """Equal to 1e-5 of the largest reference entry, or of 1."""
    our, their = np.asarray(ours)[chosen], np.asarray(theirs)[chosen]
    assert our.shape == their.shape
    np.testing.assert_allclose(our, their, rtol=0, atol=1e-5 * max(1, np.abs(their).max()))


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_states_and_maps(pair: Pair, rng: np.random.Generator, side: str) -> None:
    tokens, valid = batch(rng, side)
    with torch.no_grad():
        expected = pair.theirs(
            torch.tensor(tokens),
            attention_mask=torch.tensor(valid),
            output_hidden_states=True,
            output_attentions=True,
        )
    seen = observe(pair.ours.model, tokens, inputs_valid=valid)
    assert_close(seen.logits, expected.logits, valid)
    assert len(seen.decoder.hidden_states) == len(expected.hidden_states)
    for ours, theirs in zip(seen.decoder.hidden_states, expected.hidden_states, strict=True):
        assert_close(ours, theirs, valid)
    rows = np.broadcast_to(valid[:, None], seen.decoder.attentions[0].shape[:3])
    for ours, theirs in zip(seen.decoder.attentions, expected.attentions, strict=True):
        assert_close(ours, theirs, rows)


def losses_and_gradients(pair: Pair, rng: np.random.Generator) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Loss and gradients, ours and theirs. Their gradients, read as if they were weights, stand where ours do."""
    tokens, valid = batch(rng, "right")
    labels = np.where(valid, tokens, -100)
    pair.theirs.zero_grad()
    expected = pair.theirs(torch.tensor(tokens), attention_mask=torch.tensor(valid), labels=torch.tensor(labels)).loss
    expected.backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in pair.theirs.named_parameters()}
    model = pair.ours.model
    table = FAMILIES[read_json(pair.folder / "config.json")["model_type"]].table(model.config)

    def loss_of(model: Transformer) -> jax.Array:
        logits = model(jnp.asarray(tokens), inputs_valid=jnp.asarray(valid))
        return cross_entropy(logits[:, :-1], jnp.asarray(labels)[:, 1:])

    return jax.jit(jax.value_and_grad(loss_of))(model), (expected.detach(), build(model.config, gradients, table))


def test_loss_and_gradients(pair: Pair, rng: np.random.Generator) -> None:
    (loss, ours), (expected, theirs) = losses_and_gradients(pair, rng)
    assert_close(loss, expected)
    for (path, our), their in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        where = jax.tree_util.keystr(path)
        # The gradient of a key bias is zero, because the softmax ignores a shift: both have rounding errors there.
        bound = max(1e-7, 1e-5 * np.abs(their).max())
        assert np.abs(our - their).max() <= bound, where


def test_generated_tokens(pair: Pair, rng: np.random.Generator) -> None:
    """From prompts of different lengths, padded on the left: positions count real tokens."""
    tokens, valid = batch(rng, "left")
    beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5} if "unusual" in pair.folder.name else {}
    settings = {"max_new_tokens": 11, "eos_token_id": EOS, **beams}
    with torch.no_grad():
        expected = pair.theirs.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(valid), do_sample=False, **settings
        ).numpy()
    found = generate(pair.ours.model, tokens, pair.ours.generation, inputs_mask=valid, **settings)
    assert found.sequences.tolist() == expected.tolist()


def test_the_bundle_answers_by_known_names(pair: Pair, rng: np.random.Generator) -> None:
    tokens, valid = batch(rng, "right")
    model, lm = pair.ours.model, pair.ours
    seen = observe(model, tokens, inputs_valid=valid)
    plain = lm(tokens, attention_mask=valid)
    assert (plain.hidden_states, plain.attentions, plain.cross_attentions) == (None, None, None)
    assert_close(plain.logits, seen.logits)
    full = lm(tokens.tolist(), valid.astype(int), output_hidden_states=True, output_attentions=True)
    for ours, expected in (
        (full.hidden_states, seen.decoder.hidden_states),
        (full.attentions, seen.decoder.attentions),
    ):
        for our, their in zip(ours, expected, strict=True):
            assert_close(our, their)
    moved = lm(tokens, valid, position_ids=np.arange(9)[None] + 3).logits
    learned = model.config.decoder.positions is not None
    assert (np.abs(moved - full.logits).max() > 1e-3) == learned  # rotary positions know distances alone


def test_a_saved_copy_is_the_same(pair: Pair, tmp_path: Path, rng: np.random.Generator) -> None:
    """Bit for bit in every tensor; transformers opens it to the same logits; so does a folder written over."""
    tokens = rng.integers(3, 53, (2, 7))
    save_pretrained(pair.ours, tmp_path / "copy")
    before, after = (read_tensors(folder) for folder in (pair.folder, tmp_path / "copy"))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    again = from_pretrained(tmp_path / "copy")
    save_pretrained(again, tmp_path / "copy")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", attn_implementation="eager").eval()
    with torch.no_grad():
        np.testing.assert_array_equal(reopened(torch.tensor(tokens)).logits, pair.theirs(torch.tensor(tokens)).logits)
    assert from_pretrained(tmp_path / "copy").generation == pair.ours.generation
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_saving_over_shards_leaves_none(tmp_path: Path) -> None:
    save_decoder("gpt2", tmp_path).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    lm = from_pretrained(tmp_path / "shards")
    save_pretrained(lm, tmp_path / "shards")
    assert [path.name for path in (tmp_path / "shards").glob("model*")] == ["model.safetensors"]
    assert from_pretrained(tmp_path / "shards").model.config == lm.model.config
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file: give a folder to save to"):
        save_pretrained(lm, tmp_path / "file")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda lm: lm([[1, 99]]), "input_ids has token 99, outside the vocabulary of 53"),
        (lambda lm: lm([[1] * 38]), "38 tokens, more than the 37 positions"),
        (lambda lm: lm([1, 2]), r"must be token ids \[batch, length\]"),
        (lambda lm: lm([[1, 2]], [[1]]), "attention_mask has shape"),
        (lambda lm: lm([[1]], decoder_input_ids=[[1]]), "needs inputs alone"),
        (lambda lm: from_pretrained("./nowhere"), "there is no folder ./nowhere"),
        (lambda lm: from_pretrained("nobody/nothing"), "the hub did not give it"),
    ],
)
def test_misuse_is_explained(gpt2: Pretrained, monkeypatch: pytest.MonkeyPatch, call: Any, message: str) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=message):
        call(gpt2)


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    save_decoder("gpt2", tmp_path)
    train_tokenizer("char", ["abc"], 64).save(tmp_path / "tokenizer.json")
    lm = from_pretrained(tmp_path)
    assert lm.tokenizer is not None
    assert lm.tokenizer.decode(lm.tokenizer.encode("cab").ids) in ("cab", "c a b")
    save_pretrained(lm, tmp_path / "copy")
    assert from_pretrained(tmp_path / "copy").tokenizer is not None
    train_tokenizer("char", ["".join(map(chr, range(97, 197)))], 200).save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="they do not belong together"):
        from_pretrained(tmp_path)


def test_every_family_is_here() -> None:
    assert {settings[0].model_type for settings in DECODERS.values()} | {"bart", "marian"} == set(FAMILIES)


def test_rotary_positions_far_out(tmp_path: Path, rng: np.random.Generator) -> None:
    theirs, model = save_decoder("llama", tmp_path), from_pretrained(tmp_path).model
    tokens = rng.integers(3, 53, (1, 2000))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits
    assert_close(model(jnp.asarray(tokens)), expected)


def test_the_bare_model_and_shards_open_too(tmp_path: Path, rng: np.random.Generator) -> None:
    """A checkpoint without the prefix of its names, and one in several files."""
    theirs = save_decoder("gpt2", tmp_path)
    tokens = jnp.asarray(rng.integers(3, 53, (1, 5)))
    expected = from_pretrained(tmp_path).model(tokens)
    theirs.transformer.save_pretrained(tmp_path / "bare")
    assert not any(name.startswith("transformer.") for name in read_tensors(tmp_path / "bare"))
    np.testing.assert_array_equal(from_pretrained(tmp_path / "bare").model(tokens), expected)
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    np.testing.assert_array_equal(from_pretrained(tmp_path / "shards").model(tokens), expected)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        ("gpt2", {"n_inner": 40}, "mlp.c_fc.weight has shape"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type='yarn' is not supported"),
        ("llama", {"attention_bias": True}, "missing model.layers.0.self_attn.q_proj.bias"),
        ("qwen3", {"num_hidden_layers": 2}, "surplus model.layers.2"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, settings: dict[str, Any], message: str) -> None:
    save_decoder(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    theirs = save_decoder("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights, which are never opened"):
        from_pretrained(tmp_path)
