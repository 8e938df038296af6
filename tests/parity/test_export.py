"""Models that were made here, opened by transformers."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from flax import nnx
from hf_models import EAGER
from hf_pairs import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxformer import InputError, Transformer, as_pretrained, decoder_only, from_pretrained, save_pretrained
from jaxformer.config import TransformerConfig
from jaxformer.data import train_tokenizer
from jaxformer.presets import deepseek_tiny, encoder_only, modern_decoder_only, rematerialised

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


def test_other_shapes_are_refused() -> None:
    softcapped = dataclasses.replace(SHAPES["gpt2"], head=dataclasses.replace(SHAPES["gpt2"].head, softcap=3.0))
    for config in (encoder_only(40, length=19, dim=24, layers=1, heads=3), softcapped):
        with pytest.raises(InputError, match="the shape of no family"):
            as_pretrained(Transformer(config, rngs=nnx.Rngs(0)))
