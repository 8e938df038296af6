"""Generating with what a folder holds: its tokenizer says what tokens say, for stop strings and for what is allowed."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_models import EOS, PAD, save_decoder
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from jaxformer import InputError
from jaxformer.pretrained import Pretrained, from_pretrained

pytestmark = pytest.mark.xdist_group("bundle")  # one worker makes what they share
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["<s>", "<pad>", "</s>", *LETTERS, "\u2581", "\u2581a", "ab", "bc", "\u2581the", "he", "12", "3", "0", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with a vocabulary of pieces of words, where a bar stands for a space and a text never begins with one."""
    folder = tmp_path_factory.mktemp("bundle")
    save_decoder("gpt2", folder)
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(WORDS)}, [], fuse_unk=True))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def lm(folder: Path) -> Pretrained:
    return from_pretrained(folder)


def test_token_texts(lm: Pretrained) -> None:
    assert lm.token_texts == [*(word.replace("\u2581", " ") for word in WORDS), *[""] * (53 - len(WORDS))]


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_stop_strings_equal_generate(lm: Pretrained, folder: Path, rng: np.random.Generator, beams: int) -> None:
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    stopped = 0
    for _ in range(12):
        prompts = rng.integers(3, len(WORDS), (3, 4))
        stops = ["".join(rng.choice(list("abchet "), size=2)) for _ in range(6)]
        call = {"max_new_tokens": 9, "num_beams": beams, "eos_token_id": EOS, "stop_strings": stops}
        call |= {"suppress_tokens": list(range(len(WORDS), 53))}
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor(prompts), attention_mask=torch.ones(3, 4, dtype=torch.long), tokenizer=tokenizer,
                do_sample=False, **call,
            )  # fmt: skip
        assert lm.generate(prompts, **call).sequences.tolist() == expected.tolist()
        stopped += int((expected[:, -1] == PAD).sum())
    assert stopped > 0


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_allowed_is_said(lm: Pretrained, beams: int) -> None:
    """As strings, as token ids, as a pattern; for all or for each."""
    call = {"max_new_tokens": 12, "num_beams": beams, "eos_token_id": EOS}

    def said(**allowed: object) -> list[str]:
        found = lm.generate([[5, 6], [7, 8]], **call, **allowed).sequences[:, 2:].tolist()
        assert all(EOS in row for row in found)
        return ["".join(lm.token_texts[token] for token in row[: row.index(EOS)]) for row in found]

    assert set(said(allowed_phrases=["abc", "he"])) <= {"abc", "he"}
    assert set(said(allowed_phrases=[[3, 4], [31, 5]])) <= {"ab", "abc"}
    assert said(allowed_phrases=[["abc"], ["he"]]) == ["abc", "he"]
    assert set(said(allowed_phrases="abc")) == {"abc"}
    assert all(re.fullmatch("(12|3){2} the", text) for text in said(allowed_regex="(12|3){2} the"))
    assert said(allowed_regex=["cab", "12+"])[0] == "cab"


@pytest.mark.parametrize(
    ("allowed", "message"),
    [
        ({"allowed_phrases": []}, "at least one phrase"),
        ({"allowed_phrases": [3, 4]}, "strings or lists of token ids"),
        ({"allowed_phrases": ["ab"], "allowed_regex": "a"}, "not both"),
        ({"allowed_regex": "\u00e4+"}, "no sequence of the vocabulary's tokens"),
        ({"allowed_phrases": ["ab"], "eos_token_id": None}, "give an eos_token_id"),
        ({"allowed_phrases": [["ab"]]}, "2 inputs, but 1 automata"),
        ({"stop_strings": ""}, "stop_strings must be"),
        ({"allowed_phrases": 3}, "allowed_phrases must be at least one phrase: .* not 3"),
        ({"allowed_phrases": [["ab"], 3]}, "strings or lists of token ids"),
        ({"allowed_phrases": [[3, 4.5]]}, "lists of token ids"),
        ({"allowed_regex": 3}, "allowed_regex must be a string or several, not 3"),
        ({"allowed_regex": ["a", None]}, "must be a string, not None"),
        ({"inputs_mask": [[1, 1], [1, 1]]}, "as attention_mask"),
    ],
)
def test_what_cannot_be_allowed_is_refused(lm: Pretrained, allowed: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        lm.generate([[5, 6], [7, 8]], **{"eos_token_id": EOS, "max_new_tokens": 3} | allowed)


def test_without_a_tokenizer_texts_are_unknown(tmp_path: Path) -> None:
    save_decoder("gpt2", tmp_path)
    lm = from_pretrained(tmp_path)
    for allowed in ({"allowed_regex": "a"}, {"stop_strings": "a"}, {"allowed_phrases": ["a"]}):
        with pytest.raises(InputError, match="has no tokenizer"):
            lm.generate([[5]], eos_token_id=EOS, **allowed)
