"""Models that were made here, opened by transformers."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from hf_models import EAGER
from hf_pairs import SAVERS, assert_close, make_batch, marked, open_pair
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxformer import (
    GenerationConfig,
    InputError,
    Transformer,
    as_pretrained,
    decoder_only,
    from_pretrained,
    save_pretrained,
)
from jaxformer.config import AttentionConfig, LearnedPositions, TransformerConfig
from jaxformer.data import train_tokenizer
from jaxformer.layers import TransposedLinear, replace_linear
from jaxformer.presets import deepseek_tiny, encoder_only, modern_decoder_only, rematerialised
from jaxformer.pretrained import FAMILIES

DEEPSEEK = deepseek_tiny(40, dropout=0.1)


def without_dense_layers() -> TransformerConfig:
    blocks = (DEEPSEEK.decoder.blocks[1],) * 2
    return dataclasses.replace(DEEPSEEK, decoder=dataclasses.replace(DEEPSEEK.decoder, blocks=blocks))


SHAPES = {
    "gpt2": decoder_only(40, length=19, dim=24, layers=2, heads=3, dropout=0.1),
    "llama": rematerialised(modern_decoder_only(40, dim=24, layers=2, heads=6, kv_heads=2)),
    "deepseek_v3": DEEPSEEK,
}
MORE = {"deepseek_v3": without_dense_layers()}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "config"), [*SHAPES.items(), *MORE.items()])
def test_transformers_opens_what_was_made_here(family: str, config: TransformerConfig, tmp_path: Path) -> None:
    model = Transformer(config, rngs=nnx.Rngs(0))
    tokenizer = train_tokenizer("char", ["the quick brown fox jumps over the lazy dog"], 40).backend
    lm = as_pretrained(model, tokenizer)
    assert lm.settings["model_type"] == family
    save_pretrained(lm, tmp_path)
    theirs, ids = AutoModelForCausalLM.from_pretrained(tmp_path, **EAGER).eval(), np.arange(14).reshape(2, 7)
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits
    assert_close(lm(ids).logits, expected)
    np.testing.assert_array_equal(from_pretrained(tmp_path)(ids).logits, lm(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path)("lazy fox").input_ids == tokenizer.encode("lazy fox").ids


@pytest.mark.parametrize("name", marked(SAVERS))
def test_every_family_is_written_from_the_model_alone(name: str, tmp_path: Path, rng: np.random.Generator) -> None:
    pair = open_pair(name, tmp_path / "theirs")
    family = pair.ours.settings["model_type"]
    lm = as_pretrained(pair.ours.model, generation=pair.ours.generation, family=family)
    save_pretrained(lm, tmp_path / "ours")
    (architecture,) = lm.settings["architectures"]
    assert architecture == type(pair.theirs).__name__
    opener: Any = getattr(transformers, architecture)
    again, info = opener.from_pretrained(tmp_path / "ours", output_loading_info=True, **EAGER)
    assert not info["mismatched_keys"]
    assert not info["unexpected_keys"]
    assert all("pooler." in key for key in info["missing_keys"])  # of bare encoders, which nothing here reads
    batch = {name: torch.tensor(array) for name, array in make_batch(pair, rng).items()}
    with torch.no_grad():
        before, after = (model.eval()(**batch) for model in (pair.theirs, again))
    assert_close(after[0].numpy(), before[0])


def test_every_family_is_among_them() -> None:
    names = {name.split("-unusual")[0].replace("-", "").replace("_", "") for name in SAVERS}
    for family in FAMILIES:
        name = family.removesuffix("_text").replace("-", "").replace("_", "")
        assert any(known.startswith(name) for known in names), family


def test_other_shapes_are_refused() -> None:
    softcapped = dataclasses.replace(SHAPES["gpt2"], head=dataclasses.replace(SHAPES["gpt2"].head, softcap=3.0))
    for config in (encoder_only(40, length=19, dim=24, layers=1, heads=3), softcapped):
        with pytest.raises(InputError, match="the shape of no family"):
            as_pretrained(Transformer(config, rngs=nnx.Rngs(0)))


def test_what_does_not_fit_a_family_is_named() -> None:
    model = Transformer(SHAPES["gpt2"], rngs=nnx.Rngs(0))
    with pytest.raises(
        InputError, match=r"not the shape of llama: decoder\.blocks\[0\]\.attention\.rope is None, not Rope"
    ):
        as_pretrained(model, family="llama")
    with pytest.raises(InputError, match="family='gpt3' is not known: give one of bart, "):
        as_pretrained(model, family="gpt3")
    blocks = tuple(
        dataclasses.replace(block, attention=AttentionConfig(3, sinks=True)) for block in SHAPES["gpt2"].decoder.blocks
    )
    sinks = dataclasses.replace(SHAPES["gpt2"], decoder=dataclasses.replace(SHAPES["gpt2"].decoder, blocks=blocks))
    with pytest.raises(InputError, match=r"decoder\.blocks\[0\]\.attention\.sinks is True, not False"):
        as_pretrained(Transformer(sinks, rngs=nnx.Rngs(0)), family="gpt2")


def test_tables_of_two_lengths_are_named() -> None:
    settings = transformers.BartConfig(
        vocab_size=40,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_position_embeddings=19,
    ).to_dict()
    config = FAMILIES["bart"].config(settings)
    longer = dataclasses.replace(config.encoder, positions=LearnedPositions(25, offset=2))
    model = Transformer(dataclasses.replace(config, encoder=longer), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=r"encoder\.positions\.length is 25, not 19"):
        as_pretrained(model, family="bart")


def test_weights_laid_out_for_decoding_are_not_written(tmp_path: Path) -> None:
    model = Transformer(SHAPES["llama"], rngs=nnx.Rngs(0))
    lm = as_pretrained(model)
    transposed = nnx.clone(model)
    replace_linear(transposed, TransposedLinear, lambda *_: True)
    prepared = dataclasses.replace(lm, model=transposed)
    with pytest.raises(InputError, match="laid out for decoding are not written"):
        save_pretrained(prepared, tmp_path)


def with_first(config: TransformerConfig, **attention: Any) -> TransformerConfig:
    """A model with other fields in the attention of all blocks."""
    blocks = tuple(
        dataclasses.replace(block, attention=dataclasses.replace(block.attention, **attention))
        for block in config.decoder.blocks
    )
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=blocks))


def of_family(name: str, folder: Path) -> TransformerConfig:
    """Our configuration of a tiny model of a family."""
    SAVERS[name](folder)
    return from_pretrained(folder).model.config


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama", {"scale": 0.0}, r"attention\.scale is 0\.0, not 0\."),
        ("gemma2", {"scale": 0.3}, r"attention\.scale is 0\.3, not 0\.0625"),
        ("gemma2", {"scale": float("nan")}, "scale is nan"),
        ("gemma2", {"scale": 1e-170}, "scale is 1e-170"),
        ("llama", {"heads": 5, "kv_heads": 5, "head_dim": 8}, "num_attention_heads=5 does not divide hidden_size=24"),
    ],
)
def test_what_transformers_would_compute_otherwise_is_refused(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = Transformer(with_first(of_family(name, tmp_path), **change), rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=message):
        as_pretrained(model, family=name)


@pytest.mark.parametrize("name", ["gemma2", "marian", "mixtral", "deepseek-v3-unusual", "gpt-neox"])
def test_settings_of_another_type_or_left_to_defaults_are_written_as_transformers_wants_them(
    name: str, tmp_path: Path
) -> None:
    config = of_family(name, tmp_path / "given")
    if name == "gemma2":
        config = with_first(config, scale=None, softcap=50, head_dim=16)
        config = dataclasses.replace(config, head=dataclasses.replace(config.head, softcap=30))
    if name == "mixtral":
        expert = dataclasses.replace(config.decoder.blocks[0].feed_forward.expert, d_ff=None)
        blocks = tuple(
            dataclasses.replace(block, feed_forward=dataclasses.replace(block.feed_forward, expert=expert))
            for block in config.decoder.blocks
        )
        config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, blocks=blocks))
    if name == "gpt-neox":  # of 44 dimensions 30: the share is rounded
        rope = dataclasses.replace(config.decoder.blocks[0].attention.rope, width=30)
        config = with_first(dataclasses.replace(config, dim=132), heads=3, rope=rope)
    model = Transformer(config, rngs=nnx.Rngs(0))
    lm = as_pretrained(model, family=name.removesuffix("-unusual").replace("-", "_"))
    save_pretrained(lm, tmp_path / "written")
    opener = getattr(transformers, lm.settings["architectures"][0])
    theirs = opener.from_pretrained(tmp_path / "written", **EAGER).eval()
    batch = {"input_ids": torch.arange(3, 17).reshape(2, 7)}
    more = {"decoder_input_ids": torch.arange(3, 11).reshape(2, 4)} if config.encoder else {}
    with torch.no_grad():
        expected = theirs(**batch, **more).logits
    assert_close(lm(**{key: value.numpy() for key, value in (batch | more).items()}).logits, expected)


def test_arguments_that_cannot_be_are_refused() -> None:
    model = Transformer(SHAPES["llama"], rngs=nnx.Rngs(0))
    for settings, message in (
        ({"family": ["llama"]}, r"family=\['llama'\] is not known"),
        ({"family": "x" * 5000}, "is not known"),
        ({"longest": 2.5}, "longest=2.5 must be a whole number"),
        ({"longest": 0}, "longest must be at least 1"),
        ({"generation": GenerationConfig(pad_token_id=40)}, "pad_token_id=40 is outside the vocabulary of 40 tokens"),
    ):
        with pytest.raises(InputError, match=message) as error:
            as_pretrained(model, **settings)
        assert len(str(error.value)) <= 400
