"""Where the file holds more than its settings say: heads, embeddings, positions of its own; and what never fits."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hf_encoders import save_encoder
from hf_models import MODELS, TOKENS, save_decoder, save_model
from safetensors.numpy import load_file, save_file

from jaxformer.errors import InputError
from jaxformer.ops import sinusoidal_positions
from jaxformer.pretrained import FAMILIES, from_pretrained, save_pretrained

BATCH = {"input_ids": np.array([[5, 9, 7, 30, 2, 11]]), "decoder_input_ids": np.array([[5, 8, 20, 3]])}
SEQ2SEQ = ["bart", "mbart", "pegasus", "marian"]


def assert_equal(folder: Path, copy: Path, **batch: np.ndarray) -> None:
    """Ours has the logits of transformers, and transformers those of the folder that we save."""
    ours = from_pretrained(folder)
    with torch.no_grad():
        for where in (folder, copy):
            opener = transformers.AutoModelForSeq2SeqLM if len(batch) > 1 else transformers.AutoModelForCausalLM
            theirs, info = opener.from_pretrained(where, attn_implementation="eager", output_loading_info=True)
            assert not any(info[kind] for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"))
            expected = theirs(**{name: torch.tensor(ids) for name, ids in batch.items()}).logits.numpy()
            bound = 1e-5 * max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(ours(**batch).logits, expected, rtol=0, atol=bound)
            save_pretrained(ours, copy)


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, Any]]) -> None:
    """Change some tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_heads_and_embeddings_that_are_not_tied(tmp_path: Path, name: str) -> None:
    config_class, settings = MODELS[name]
    torch.manual_seed(3)
    model: Any = transformers.AutoModelForSeq2SeqLM.from_config(
        config_class(**TOKENS | settings | {"tie_word_embeddings": False})
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    model.save_pretrained(tmp_path / "theirs")
    assert_equal(tmp_path / "theirs", tmp_path / "copy", **BATCH)


@pytest.mark.parametrize("name", ["pegasus", "marian"])
@pytest.mark.parametrize("stacks", [("encoder",), ("encoder", "decoder")])
def test_position_tables_that_are_not_the_sinusoids(tmp_path: Path, name: str, stacks: tuple[str, ...]) -> None:
    save_model(name, tmp_path / "theirs")
    rng = np.random.default_rng(0)
    names = [f"model.{stack}.embed_positions.weight" for stack in stacks]
    rewrite(tmp_path / "theirs", lambda tensors: {name: rng.normal(size=(37, 14)).astype(np.float32) for name in names})
    assert_equal(tmp_path / "theirs", tmp_path / "copy", **BATCH)


def test_stored_sinusoids_are_no_parameters(tmp_path: Path) -> None:
    save_model("marian", tmp_path)
    table = np.asarray(sinusoidal_positions(37, 14, "halves"))
    rewrite(
        tmp_path, lambda tensors: {f"model.{name}.embed_positions.weight": table for name in ("encoder", "decoder")}
    )
    assert from_pretrained(tmp_path).model.max_length is None  # sinusoids have no end


def test_a_head_that_the_settings_deny(tmp_path: Path) -> None:
    save_decoder("llama-unusual", tmp_path / "theirs")  # says that its head is tied
    embedding = load_file(tmp_path / "theirs" / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(tmp_path / "theirs", lambda tensors: {"lm_head.weight": embedding[::-1].copy()})
    assert_equal(tmp_path / "theirs", tmp_path / "copy", input_ids=BATCH["input_ids"])


@pytest.mark.parametrize(
    ("name", "tensor", "repeated"),
    [
        ("t5", "encoder.embed_tokens.weight", "shared.weight"),
        ("bart", "model.decoder.embed_tokens.weight", "model.shared.weight"),
    ],
)
def test_repetitions_that_differ_are_refused(tmp_path: Path, name: str, tensor: str, repeated: str) -> None:
    save_model(name, tmp_path)
    rewrite(tmp_path, lambda tensors: {tensor: tensors[repeated].copy()})
    from_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: {tensor: tensors[repeated] + 1})
    with pytest.raises(InputError, match=f"{tensor} differs from {repeated}"):
        from_pretrained(tmp_path)


def test_an_encoders_own_map_to_the_vocabulary_is_refused(tmp_path: Path) -> None:
    save_encoder("bert", "masked", tmp_path)
    name = "bert.embeddings.word_embeddings.weight"
    rewrite(tmp_path, lambda tensors: {"cls.predictions.decoder.weight": tensors[name] + 1})
    with pytest.raises(InputError, match=r"cls\.predictions\.decoder\.weight differs from"):
        from_pretrained(tmp_path)


MISFITS: list[tuple[str, str, Callable[[np.ndarray], np.ndarray], str]] = [
    ("llama", "model.layers.0.self_attn.q_proj.weight", lambda x: x.ravel(), r"shape \(576,\), expected \(24, 24\)"),
    ("llama", "model.layers.0.mlp.up_proj.weight", lambda x: x.ravel(), r"shape \(456,\), expected \(19, 24\)"),
    ("llama", "model.layers.0.mlp.up_proj.weight", lambda x: x.T.copy(), r"shape \(24, 19\), expected \(19, 24\)"),
    ("llama", "model.layers.0.mlp.up_proj.weight", lambda x: x[None], r"shape \(1, 19, 24\), expected"),
    ("llama", "model.norm.weight", lambda x: x[:, None], r"shape \(24, 1\), expected \(24,\)"),
    ("gpt2", "transformer.h.0.attn.c_attn.weight", lambda x: x.T.copy(), r"shape \(42, 14\), expected \(14, 42\)"),
    ("gpt-neox", "gpt_neox.layers.0.attention.query_key_value.bias", lambda x: x.reshape(3, -1), r"expected \(72,\)"),
    ("mixtral", "model.layers.0.block_sparse_moe.experts.1.w1.weight", lambda x: x.T.copy(), r"w1\.weight has shape"),
    ("gpt-oss", "model.layers.0.mlp.experts.down_proj", lambda x: x.swapaxes(1, 2).copy(), r"down_proj has shape"),
    ("llama", "model.norm.weight", lambda x: x.astype(np.int8), "holds int8, expected floating-point"),
    ("llama", "model.norm.weight", lambda x: x > 0, "holds bool, expected floating-point"),
    ("opt", "model.decoder.embed_tokens.weight", lambda x: x.astype(np.int64), "holds int64, expected floating-point"),
]


@pytest.mark.parametrize(("name", "tensor", "change", "message"), MISFITS)
def test_tensors_of_another_shape_or_type_are_refused(
    tmp_path: Path, name: str, tensor: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    save_decoder(name, tmp_path)
    rewrite(tmp_path, lambda tensors: {tensor: change(tensors[tensor])})
    with pytest.raises(InputError, match=message):
        from_pretrained(tmp_path)


def test_many_misfits_are_counted(tmp_path: Path) -> None:
    save_decoder("llama", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 48}))
    with pytest.raises(InputError, match=r" and \d+ more$") as error:
        from_pretrained(tmp_path)
    assert len(str(error.value)) - len(str(tmp_path)) < 300


@pytest.mark.parametrize(
    ("name", "key"),
    [("llama", "num_hidden_layers"), ("t5", "num_layers"), ("bart", "decoder_layers"), ("gpt2", "n_layer")],
)
@pytest.mark.parametrize("layers", [4000, 10**9])
def test_more_layers_than_there_are_tensors_are_refused(tmp_path: Path, name: str, key: str, layers: int) -> None:
    (save_model if name in MODELS else save_decoder)(name, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: layers}))
    with pytest.raises(InputError, match=rf"{key}|describes {layers}|layers, but the weights have only"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "t5",
            {"relative_attention_num_buckets": 7, "relative_attention_max_distance": 3},
            "max_distance=3 must exceed",
        ),
        ("gemma3_text", {"rope_parameters": {"full_attention": -0.5}}, "rope_parameters: must be an object"),
        ("roberta", {"pad_token_id": 60, "vocab_size": 53}, "pad_token_id=60 must be below vocab_size=53"),
        (
            "llama",
            {"hidden_size": 14, "num_attention_heads": 6, "head_dim": 4},
            "num_attention_heads=6 does not divide",
        ),
        (
            "phi3",
            {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
            | {"rope_parameters": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}},
            "head_dim=8 must be 4 with rope_type='longrope'",
        ),
    ],
)
def test_settings_that_transformers_cannot_open_are_refused(family: str, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FAMILIES[family].config(settings)


def test_gemma3_ignores_a_ramp_that_transformers_does_not_read() -> None:
    """It looks for "truncate" beside the types of layers, where files have none."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "truncate": False}
    config = FAMILIES["gemma3_text"].config({"rope_parameters": {"full_attention": yarn}, "num_hidden_layers": 6})
    scalings = [block.attention.rope.scaling for block in config.decoder.blocks]
    assert [scaling.truncate for scaling in scalings if scaling] == [True]
