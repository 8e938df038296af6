"""Folders of sentence-transformers: pooling, norm and prompts as their files say, and every bad file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hf_models import save_decoder
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast
from word_models import WORDS, save_bert

import jaxformer
from jaxformer import InputError
from jaxformer.pretrained import with_classifier
from jaxformer.pretrained.files import read_tensors

TEXTS = ["the cat", "a dog sat on the log on a mat", "cat"]
TYPE = "sentence_transformers.models"


def describe(folder: Path, pooling: dict[str, Any], *further: str, prompts: Any = None, **about: Any) -> None:
    """Write the files of sentence-transformers for a model with these modules."""
    modules = [
        ("Transformer", ""),
        ("Pooling", "1_Pooling"),
        *((name, f"{i}_{name}") for i, name in enumerate(further, 2)),
    ]
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"{TYPE}.{name}"} for i, (name, path) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 32} | pooling))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 16, "do_lower_case": False} | about)
    )
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def states_of(folder: Path, texts: list[str]) -> list[np.ndarray]:
    """The last states of each text alone, in transformers."""
    model, fast = AutoModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    with torch.no_grad():
        return [model(**fast(text, return_tensors="pt", return_token_type_ids=False))[0][0].numpy() for text in texts]


POOLED = {
    "pooling_mode_mean_tokens": lambda states: states.mean(0),
    "pooling_mode_cls_token": lambda states: states[0],
    "pooling_mode_max_tokens": lambda states: states.max(0),
    "pooling_mode_lasttoken": lambda states: states[-1],
}


@pytest.mark.parametrize(
    "mode", [name if "last" in name else pytest.param(name, marks=pytest.mark.slow) for name in POOLED]
)
def test_vectors_are_pooled_as_the_folder_says(mode: str, tmp_path: Path) -> None:
    save_bert(tmp_path)
    describe(tmp_path, dict.fromkeys(POOLED, False) | {mode: True})
    expected = np.stack([POOLED[mode](states) for states in states_of(tmp_path, TEXTS)])
    lm = jaxformer.from_pretrained(tmp_path)
    np.testing.assert_allclose(lm.embed(TEXTS), expected, atol=1e-5)
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(lm.embed(TEXTS, normalize=True), unit, atol=1e-5)
    describe(
        tmp_path,
        {"pooling_mode": mode.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")},
        "Normalize",
    )
    lm = jaxformer.from_pretrained(tmp_path)
    np.testing.assert_allclose(lm.embed(TEXTS), unit, atol=1e-5)
    np.testing.assert_allclose(
        lm.embed(TEXTS, pooling="cls", normalize=False)[2], states_of(tmp_path, TEXTS)[2][0], atol=1e-5
    )


def test_a_decoder_pools_its_last_token(tmp_path: Path) -> None:
    """As Qwen3-Embedding does, whatever pads the batch."""
    theirs = save_decoder("qwen3", tmp_path)
    tokenizer = Tokenizer(models.WordLevel({word: index + 3 for index, word in enumerate(WORDS)}, unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    describe(tmp_path, {"pooling_mode_lasttoken": True}, "Normalize")
    found = jaxformer.from_pretrained(tmp_path).embed(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = torch.tensor([[WORDS.index(word) + 3 for word in text.split()]])
        with torch.no_grad():
            state = theirs.model(ids).last_hidden_state[0, -1]
        np.testing.assert_allclose(vector, state / state.norm(), atol=1e-5)
    with pytest.raises(InputError, match="the first token of a decoder sees no other"):
        jaxformer.from_pretrained(tmp_path).embed(TEXTS, pooling="cls")


def test_prompts_stand_before_texts(tmp_path: Path) -> None:
    save_bert(tmp_path)
    prompts = {"prompts": {"query": "the dog ", "document": ""}, "default_prompt_name": None}
    describe(tmp_path, {"pooling_mode_mean_tokens": True}, prompts=prompts)
    lm = jaxformer.from_pretrained(tmp_path)
    expected = lm.embed([f"the dog {text}" for text in TEXTS])
    np.testing.assert_array_equal(lm.embed(TEXTS, prompt_name="query"), expected)
    np.testing.assert_array_equal(lm.embed(TEXTS, prompt="the dog "), expected)
    np.testing.assert_array_equal(lm.embed(TEXTS, prompt_name="document"), lm.embed(TEXTS))
    describe(tmp_path, {"pooling_mode_mean_tokens": True}, prompts=prompts | {"default_prompt_name": "query"})
    np.testing.assert_array_equal(jaxformer.from_pretrained(tmp_path).embed(TEXTS), expected)
    with pytest.raises(InputError, match='no prompt "passage": there are document, query'):
        lm.embed(TEXTS, prompt_name="passage")
    with pytest.raises(InputError, match="prompt or prompt_name, not both"):
        lm.embed(TEXTS, prompt_name="query", prompt="a ")
    with pytest.raises(InputError, match="text 0 has 18 tokens, more than 16"):  # fewer than the 24 positions
        lm.embed("cat " * 16)


def test_the_files_are_saved_with_the_model(tmp_path: Path) -> None:
    save_bert(tmp_path / "first")
    describe(tmp_path / "first", {"pooling_mode_cls_token": True}, "Normalize", prompts={"prompts": {"query": "a "}})
    lm = jaxformer.from_pretrained(tmp_path / "first")
    for _ in range(2):  # also over what is there
        jaxformer.save_pretrained(lm, tmp_path / "second")
        again = jaxformer.from_pretrained(tmp_path / "second")
        assert again.files == lm.files
        np.testing.assert_array_equal(again.embed(TEXTS, prompt_name="query"), lm.embed(TEXTS, prompt_name="query"))
    assert read_tensors(tmp_path / "first").keys() == read_tensors(tmp_path / "second").keys()
    classifier, _ = with_classifier(lm, ["no", "yes"], seed=0)
    assert "modules.json" not in classifier.files


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "modules.json",
            '[{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "2_Dense"}]',
            "module Dense is",
        ),
        ("modules.json", '[{"type": "x.Transformer", "path": ""}]', "has no module Pooling"),
        ("modules.json", "{", "modules.json: is not valid JSON"),
        ("modules.json", '{"a": 1}', "must be a list of objects"),
        ("modules.json", '[{"type": "x.Pooling", "path": "../other"}]', 'path="../other" must be the name of a folder'),
        ("modules.json", '[{"type": "x.Pooling", "path": "elsewhere"}]', "elsewhere/config.json: is missing"),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_weightedmean_tokens": true}',
            "pooling_mode_weightedmean_tokens is not",
        ),
        (
            "1_Pooling/config.json",
            '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}',
            "pooling pooling_mode_cls_token, pooling_mode_mean_tokens is not supported",
        ),
        ("1_Pooling/config.json", "[]", "must hold a JSON object"),
        ("sentence_bert_config.json", '{"do_lower_case": true}', "do_lower_case=true must be false"),
        ("sentence_bert_config.json", '{"max_seq_length": -1}', "max_seq_length=-1 must be"),
        ("config_sentence_transformers.json", '{"prompts": {"query": 3}}', "prompts must be texts"),
    ],
)
def test_what_is_not_supported_is_named(file: str, text: str, message: str, tmp_path: Path) -> None:
    save_bert(tmp_path)
    describe(tmp_path, {"pooling_mode_mean_tokens": True})
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        jaxformer.from_pretrained(tmp_path).embed("cat")
    assert len(str(error.value)) <= 300


def test_prompts_that_do_not_count_are_refused(tmp_path: Path) -> None:
    save_bert(tmp_path)
    describe(tmp_path, {"pooling_mode_mean_tokens": True, "include_prompt": False})
    lm = jaxformer.from_pretrained(tmp_path)
    assert lm.embed("cat").shape == (32,)
    with pytest.raises(InputError, match="include_prompt=false"):
        lm.embed("cat", prompt="the ")
