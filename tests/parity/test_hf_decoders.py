"""Decoder-only families of transformers: logits, hidden states, attention maps, gradients, generated tokens."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import serialization, traverse_util
from hf_encoders import ENCODERS
from hf_models import DECODERS, EAGER, EOS, MODELS, save_decoder
from hf_pairs import (
    BOUND,
    FURTHER_NAMES,
    NEW_FIELDS,
    Pair,
    assert_close,
    assert_saved_copy_is_the_same,
    forward_distances,
    gradient_distance,
    make_batch,
    make_labels,
    marked,
    open_pair,
)
from transformers import AutoModelForCausalLM

from jaxformer import InputError, Transformer
from jaxformer.data import train_tokenizer
from jaxformer.pretrained import FAMILIES, Pretrained, from_pretrained, save_pretrained
from jaxformer.pretrained.files import read_tensors

# What takes long is shown of these every time, and of all in the slow run.
QUICK = {"gpt2", "gemma3-unusual"}
SOMETIMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DECODERS]
# Of the other configurations of a family the ledger, a slow test, measures the same.
USUAL = [name for name in DECODERS if f"{name}-unusual" in DECODERS]
USUAL += ["mixtral-unusual", "qwen3-moe-unusual"]  # gpt-oss shows experts
USUAL += ["deepseek-v2-unusual", "deepseek-v3-unusual"]  # latent attention has tests of its own
ONE_OF_EACH = marked(DECODERS, {*USUAL, *FURTHER_NAMES} - NEW_FIELDS)


@pytest.fixture(scope="module", params=ONE_OF_EACH)
def pair(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Pair:
    return open_pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = tmp_path_factory.mktemp("gpt2")
    save_decoder("gpt2", folder)
    return from_pretrained(folder)


@pytest.mark.parametrize("side", ["right", "left"])
def test_logits_states_and_maps(pair: Pair, rng: np.random.Generator, side: str) -> None:
    assert max(forward_distances(pair, make_batch(pair, rng, side))) <= BOUND


@pytest.mark.parametrize("name", sorted(QUICK))
def test_loss_and_gradients(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """With smaller weights: where a softmax is saturated, both programs' gradients are differences of equal numbers."""
    pair = open_pair(name, tmp_path, std=0.2)
    batch = make_batch(pair, rng)
    assert gradient_distance(pair, batch, make_labels(pair, rng, batch)) <= BOUND


@pytest.mark.parametrize("pair", SOMETIMES, indirect=True)
def test_generated_tokens(pair: Pair, rng: np.random.Generator) -> None:
    """From prompts of different lengths, padded on the left: positions count real tokens."""
    tokens, mask = make_batch(pair, rng, "left").values()
    beams = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5} if "unusual" in pair.folder.name else {}
    settings = {"max_new_tokens": 11, "eos_token_id": EOS, **beams}
    with torch.no_grad():
        expected = pair.theirs.generate(
            torch.tensor(tokens), attention_mask=torch.tensor(mask), do_sample=False, **settings
        ).numpy()
    assert pair.ours.generate(tokens, mask, **settings).sequences.tolist() == expected.tolist()


@pytest.mark.parametrize("pair", SOMETIMES, indirect=True)
def test_any_chunking_of_the_cache(pair: Pair, rng: np.random.Generator) -> None:
    tokens = rng.integers(3, 53, (2, 9))
    extend, model = jax.jit(Transformer.extend), pair.ours.model
    cache, states = model.init_cache(2, 12), []
    for start, end in ((0, 4), (4, 5), (5, 9)):
        hidden, cache = extend(model, tokens[:, start:end], cache)
        states.append(hidden)
    assert_close(model.logits(jnp.concatenate(states, axis=1)), pair.ours(tokens).logits)


def test_alibi_counts_real_tokens(tmp_path: Path, rng: np.random.Generator) -> None:
    theirs, lm = save_decoder("bloom", tmp_path), from_pretrained(tmp_path)
    tokens, mask = rng.integers(3, 53, (2, 9)), rng.random((2, 9)) < 0.6
    mask[:, 0] = True
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(int))).logits
    assert_close(lm(tokens, mask).logits, expected, mask)


def test_the_bundle_answers_by_known_names(gpt2: Pretrained, rng: np.random.Generator) -> None:
    tokens, mask = rng.integers(3, 53, (2, 7)), np.arange(7) < np.array([[7], [4]])
    plain = gpt2(tokens, attention_mask=mask)
    assert (plain.hidden_states, plain.attentions, plain.cross_attentions) == (None, None, None)
    full = gpt2(tokens.tolist(), mask.astype(int), output_hidden_states=True, output_attentions=True)
    assert_close(plain.logits, full.logits)
    assert (len(full.hidden_states), len(full.attentions)) == (4, 3)
    moved = gpt2(tokens, mask, position_ids=np.arange(7)[None] + 3).logits
    assert np.abs(moved - full.logits).max() > 1e-3


def test_rotary_positions_know_distances_alone(tmp_path: Path, rng: np.random.Generator) -> None:
    save_decoder("llama", tmp_path)
    lm, tokens = from_pretrained(tmp_path), rng.integers(3, 53, (2, 7))
    assert_close(lm(tokens, position_ids=np.arange(7)[None] + 3).logits, lm(tokens).logits)


def test_a_saved_copy_is_the_same(pair: Pair, tmp_path: Path, rng: np.random.Generator) -> None:
    """Bit for bit in every tensor; transformers opens it to the same logits; so does a folder written over."""
    tokens = torch.tensor(rng.integers(3, 53, (2, 7)))
    assert_saved_copy_is_the_same(pair, tmp_path / "copy")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", **EAGER).eval()
    with torch.no_grad():
        np.testing.assert_array_equal(reopened(tokens).logits, pair.theirs(tokens).logits)


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-unusual"])
def test_scaling_beyond_the_trained_length(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    """Rotary positions that depend on the longest one: plain, and as a cache is filled, each key as it was written."""
    theirs = save_decoder(name, tmp_path)
    lm, tokens = from_pretrained(tmp_path), rng.integers(3, 53, (2, 45))
    with torch.no_grad():
        assert_close(lm(tokens).logits, theirs(torch.tensor(tokens)).logits)
        for beams in (1, 3):
            call = {"max_new_tokens": 15, "num_beams": beams, "eos_token_id": None}
            found = theirs.generate(torch.tensor(tokens[:, :25]), do_sample=False, **call)
            assert lm.generate(tokens[:, :25], **call).sequences.tolist() == found.tolist()


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_the_default_length_ends_with_the_context(tmp_path: Path, rng: np.random.Generator) -> None:
    """Twenty new tokens, or as many as the folder leaves room for, though rotary positions have no end."""
    theirs = save_decoder("llama", tmp_path)
    lm, context = from_pretrained(tmp_path), theirs.config.max_position_embeddings
    tokens = rng.integers(3, 53, (1, context - 5))
    for prompt in (tokens, tokens[:, :5]):
        found = theirs.generate(torch.tensor(prompt), do_sample=False, eos_token_id=None)
        assert lm.generate(prompt, eos_token_id=None).sequences.tolist() == found.tolist()
    with pytest.raises(InputError, match="at most 64 are allowed: raise max_new_tokens"):
        lm.generate(rng.integers(3, 53, (1, context)))


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
        (lambda lm: lm([[1]], decoder_input_ids=[[1]]), "to no other model"),
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
    families = {**DECODERS, **MODELS, **ENCODERS}.values()
    assert {config.model_type for config, _ in families} == set(FAMILIES)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_or_cast(tmp_path: Path, rng: np.random.Generator, dtype: torch.dtype) -> None:
    tokens = rng.integers(3, 53, (2, 7))
    theirs = save_decoder("llama", tmp_path / "whole").to(dtype)
    theirs.save_pretrained(tmp_path / "half")
    kept, cast = from_pretrained(tmp_path / "half"), from_pretrained(tmp_path / "half", dtype="float32")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(kept.model)} == {str(dtype).removeprefix("torch.")}
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32).eval()
        assert_close(cast(tokens).logits, whole(torch.tensor(tokens)).logits)
    rounding = 32 * torch.finfo(dtype).eps
    np.testing.assert_allclose(kept(tokens).logits, cast(tokens).logits, rtol=0, atol=rounding)
    assert_saved_copy_is_the_same(Pair(None, kept, tmp_path / "half"), tmp_path / "copy")
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", **EAGER)
    assert next(reopened.parameters()).dtype == dtype


@pytest.mark.parametrize("name", ["gpt2", "bart", "marian", "t5", "bert-masked"])
def test_files_of_the_flax_classes_open_too(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    """As transformers 4 wrote them: nested, kernels transposed, embeddings and scales under their own names."""
    pair = open_pair(name, tmp_path)
    flat = {}
    for key, tensor in read_tensors(tmp_path).items():
        module, _, leaf = key.rpartition(".")
        if leaf == "weight" and tensor.ndim == 2:
            embedding = any(part in module for part in ("embed", "wte", "wpe", "shared", "relative_attention_bias"))
            flat[f"{module}.embedding" if embedding else f"{module}.kernel"] = tensor if embedding else tensor.T
        elif leaf == "weight" and "t5" not in name:
            flat[f"{module}.scale"] = tensor
        else:
            flat[key] = tensor
    nested = traverse_util.unflatten_dict(flat, sep=".")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(nested))
    batch = make_batch(pair, rng)
    np.testing.assert_array_equal(from_pretrained(tmp_path)(**batch).logits, pair.ours(**batch).logits)
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x93")
    with pytest.raises(InputError, match="is damaged"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=true must be false"),
        ("gpt2", {"n_inner": 40}, r"mlp.c_proj.weight has shape \(56, 14\), expected \(40, 14\)"),
        ("llama", {"rope_parameters": {"rope_type": "dusk", "rope_theta": 2.0}}, "rope_type='dusk' is not supported"),
        ("llama", {"attention_bias": True}, "missing model.layers.0.self_attn.q_proj.bias"),
        ("llama", {"num_hidden_layers": 2}, "surplus model.layers.2"),
        ("qwen3", {"num_hidden_layers": 2}, "layer_types names 3 layers, but num_hidden_layers=2"),
        (
            "mixtral",
            {"num_local_experts": 6},
            r"missing model.layers.0.block_sparse_moe.experts.\*.w2.weight of 1 of 6",
        ),
        (
            "mixtral",
            {"intermediate_size": 7},
            r"experts.0.w2.weight has shape \(24, 19\), expected \(24, 7\)",
        ),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise=0.1 must be 0.0"),
        ("deepseek-v2", {"topk_method": "noaux_tc"}, "topk_method=.noaux_tc. must be one of 'greedy'"),
        ("deepseek-v2", {"topk_method": "group_limited_greedy"}, "n_group, topk_group must be given"),
        ("deepseek-v2", {"num_experts_per_tok": None}, "num_experts_per_tok must be given"),
        ("deepseek-v3", {"scoring_func": "softmax"}, "scoring_func=.softmax. must be .sigmoid."),
        ("deepseek-v3", {"kv_lora_rank": 9}, r"kv_a_proj_with_mqa.weight has shape"),
        ("gpt-oss", {"num_experts_per_tok": 6}, "num_experts_per_tok=6 exceeds num_local_experts=5"),
        (
            "gpt-oss",
            {"quantization_config": {"quant_method": "mxfp4"}},
            r"quantized \(mxfp4\).*Mxfp4Config\(dequantize",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, name: str, settings: dict[str, Any], message: str) -> None:
    save_decoder(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path)


def test_a_folder_opens_where_there_is_no_torch(tmp_path: Path) -> None:
    save_decoder("gpt2", tmp_path)
    blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import jaxformer; "
    program = blocked + f"print(jaxformer.from_pretrained({str(tmp_path)!r})([[3, 4, 5]]).logits.shape)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "(1, 3, 53)\n"), done.stderr


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    theirs = save_decoder("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickled weights, which are never opened"):
        from_pretrained(tmp_path)
