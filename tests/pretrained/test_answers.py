"""What people ask a checkpoint for, in texts: fillings of masks, vectors, classes, translations; and padding."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast, pipeline
from word_models import save_bert, save_mbart

import jaxformer
from jaxformer import InputError
from jaxformer.pretrained import Pretrained

TEXTS = ["the [MASK] sat on a [MASK]", "a dog sat on the mat [MASK]", "[MASK] cat"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def mbart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mbart(tmp_path_factory.mktemp("mbart"))


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_masks_are_filled_as_by_transformers(mask: str, tmp_path: Path) -> None:
    folder = save_bert(tmp_path, mask)
    fill = pipeline("fill-mask", model=str(folder), tokenizer=str(folder), top_k=4)
    found = jaxformer.from_pretrained(folder).fill_mask(TEXTS, top_k=4)
    for text, masks in zip(TEXTS, found, strict=True):
        theirs = fill(text.replace("[MASK]", mask))
        expected = theirs if text.count("[MASK]") > 1 else [theirs]
        assert [[token for token, _ in each] for each in masks] == [[row["token_str"] for row in e] for e in expected]
        shares = [[share for _, share in each] for each in masks]
        np.testing.assert_allclose(shares, [[row["score"] for row in each] for each in expected], atol=1e-5)


def test_vectors_are_those_of_transformers(bert: Path) -> None:
    lm, fast = jaxformer.from_pretrained(bert), PreTrainedTokenizerFast.from_pretrained(bert)
    texts = ["the cat", "a dog sat on the log on a mat", "cat"]
    batch = fast(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        states = AutoModel.from_pretrained(bert).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = ((states * mask).sum(1) / mask.sum(1)).numpy()
    np.testing.assert_allclose(lm.embed(texts), mean, atol=1e-5)
    np.testing.assert_allclose(lm.embed(texts, pooling="cls"), states[:, 0].numpy(), atol=1e-5)
    unit = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(lm.embed(texts[1], normalize=True), unit[1], atol=1e-5)
    assert lm.embed(["cat " * 40], truncate=True).shape == (1, 32)


def test_translations_between_languages_are_those_of_transformers(mbart: Path) -> None:
    lm, model = jaxformer.from_pretrained(mbart), AutoModelForSeq2SeqLM.from_pretrained(mbart).eval()
    fast = PreTrainedTokenizerFast.from_pretrained(mbart)
    texts, vocabulary = ["the cat sat", "a dog"], fast.get_vocab()
    found = []
    for source, target in [("fr_XX", "de_DE"), (None, "fr_XX"), ("de_DE", None)]:
        batch = fast(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        if source is not None:
            batch["input_ids"][batch["input_ids"] == vocabulary["en_XX"]] = vocabulary[source]
        forced = {} if target is None else {"forced_bos_token_id": vocabulary[target]}
        theirs = model.generate(**batch, **forced, num_beams=2, max_new_tokens=6)
        ours = lm.translate(texts, src_lang=source, tgt_lang=target, num_beams=2, max_new_tokens=6)
        assert ours == fast.batch_decode(theirs, skip_special_tokens=True)
        found.append(tuple(ours))
    assert len(set(found)) == 3
    assert lm.translate("cat", prefix="the ", max_new_tokens=6) == lm.complete("the cat", max_new_tokens=6)


def test_rows_are_padded() -> None:
    ids, mask = jaxformer.pad([[5, 6, 7], np.array([8]), []], 9, multiple_of=4)
    np.testing.assert_array_equal(ids, [[5, 6, 7, 9], [8, 9, 9, 9], [9] * 4])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0], [1, 0, 0, 0], [0] * 4])
    ids, mask = jaxformer.pad([[5, 6], [8]], side="left")
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, [[5, 6], [0, 8]])
    np.testing.assert_array_equal(mask, [[1, 1], [0, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bert, mbart: mbart.fill_mask("cat"), "no token .MASK. or <mask>"),
        (lambda bert, mbart: bert.fill_mask("cat"), r"text 0 has no \[MASK\] to fill"),
        (lambda bert, mbart: bert.fill_mask("[MASK]", top_k=0), "top_k must be a whole number of at least 1"),
        (lambda bert, mbart: bert.embed("cat " * 40), "text 0 has 42 tokens, more than 24: .* give truncate=True"),
        (lambda bert, mbart: bert.embed("cat", pooling="sum"), "pooling must be"),
        (lambda bert, mbart: mbart.embed("cat"), "an encoder-only model is needed"),
        (lambda bert, mbart: bert.translate("cat"), "is no encoder-decoder"),
        (lambda bert, mbart: mbart.translate("cat", tgt_lang="xx"), 'no language "xx": there are de_DE, en_XX, fr_XX'),
        (lambda bert, mbart: jaxformer.pad([[1.5]]), "row 0 must be a list of token ids"),
        (lambda bert, mbart: jaxformer.pad([]), "no token to pad"),
        (lambda bert, mbart: jaxformer.pad([[2**40]]), "row 0 must be a list of token ids"),
        (lambda bert, mbart: jaxformer.pad(None), "rows must be lists of token ids"),
        (lambda bert, mbart: jaxformer.pad([[1]], 0.5), "pad_id must be a token id"),
        (lambda bert, mbart: jaxformer.pad([[1]], multiple_of=2.5), "multiple_of at least 1"),
        (lambda bert, mbart: bert.fill_mask("cat " * 40 + "[MASK]"), "text 0 has 43 tokens, more than 24: shorten it$"),
        (lambda bert, mbart: jaxformer.pad([[1]], side="top"), "side must be"),
        (lambda bert, mbart: bert([[1, 2], [3]]), "pad the shorter ones with jaxformer.pad"),
    ],
)
def test_bad_calls_are_one_line(call: Any, message: str, bert: Path, mbart: Path) -> None:
    both: list[Pretrained] = [jaxformer.from_pretrained(folder) for folder in (bert, mbart)]
    with pytest.raises(InputError, match=message):
        call(*both)


def test_languages_that_are_not_written_cannot_be_changed(bert: Path, mbart: Path) -> None:
    lm = jaxformer.from_pretrained(mbart)
    assert lm.tokenizer is not None
    lm.tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    with pytest.raises(InputError, match="writes no language around sources"):
        lm.translate("cat", src_lang="de_DE")
