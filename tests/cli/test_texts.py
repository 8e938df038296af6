"""`python generate.py --model FOLDER`: texts through checkpoints of Hugging Face, and every bad input."""

import functools
import json
import shutil
from pathlib import Path

import jax
import pytest
import torch
from commands import refusal
from hf_models import EOS, save_decoder, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from jaxformer import InputError, from_pretrained, save_pretrained
from jaxformer.cli.generate import decode_inputs
from jaxformer.cli.texts import encode

pytestmark = pytest.mark.xdist_group("texts")  # one worker makes what they share
LETTERS = {"<s>": 0, "<pad>": 1, "</s>": 2} | {
    letter: number for number, letter in enumerate("abcdefghijklmnop \n:", 3)
}
TEMPLATE = """{{ bos_token }}{% for message in messages -%}
{% if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('no ' + message['role']) }}{% endif %}
{{ message['role'][0] + ':' + message['content'] + '\n' }}
{%- endfor %}{% if add_generation_prompt %}a:{% endif %}"""
TWO_OF_FOUR = {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
SAID = {"max_new_tokens": 7, "eos_token_id": EOS, "do_sample": False}


def save_tokenizer(folder: Path, *, ends: bool) -> PreTrainedTokenizerFast:
    """One token per letter; ends: with an EOS token behind each text, as translation models have it."""
    tokenizer = Tokenizer(models.WordLevel(LETTERS, unk_token="<pad>"))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", EOS)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with 37 positions."""
    folder = tmp_path_factory.mktemp("texts") / "gpt2"
    model = save_decoder("gpt2", folder)
    model.generation_config.update(**SAID, suppress_tokens=[0, 1, *range(22, 53)])
    model.save_pretrained(folder)
    save_tokenizer(folder, ends=False)
    return folder


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts") / "marian"
    model = save_model("marian", folder)
    model.generation_config.update(**SAID, num_beams=3, suppress_tokens=[0, *range(22, 53)])
    model.save_pretrained(folder)
    save_tokenizer(folder, ends=True)
    return folder


def theirs(folder: Path, opener: type, texts: list[str], **settings: object) -> list[str]:
    """What transformers says to each text alone."""
    tokenizer, model = PreTrainedTokenizerFast.from_pretrained(folder), opener.from_pretrained(folder).eval()
    said = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            found = model.generate(**inputs, **settings)
        new = found[:, inputs["input_ids"].shape[1] if opener is AutoModelForCausalLM else 1 :]
        said += tokenizer.batch_decode(new, skip_special_tokens=True)
    return said


def test_a_file_of_prompts(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In batches of like length, printed in their order, each as alone."""
    texts = ["abc", "a", "fed cab" * 3, "no: no", "bad", *["ab" * n for n in range(1, 15)]]
    (tmp_path / "texts").write_text("\n".join(texts))
    decode_inputs(["--model", str(decoder), "--input-file", str(tmp_path / "texts"), "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["input"] for line in lines] == texts
    assert [line["output"] for line in lines] == theirs(decoder, AutoModelForCausalLM, texts)


def test_one_prompt_is_streamed_behind_itself(decoder: Path, capsys: pytest.CaptureFixture) -> None:
    decode_inputs(["--model", str(decoder), "--prompt", "abc"])
    (expected,) = theirs(decoder, AutoModelForCausalLM, ["abc"])
    assert capsys.readouterr().out == f"abc{expected}\n"


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ([], {}),
        SLOW(["--beam", "4", "--n-best", "2", "--length-penalty", "0.5"], TWO_OF_FOUR),
        SLOW(["--greedy", "--max-new-tokens", "3"], {"num_beams": 1, "max_new_tokens": 3}),
    ],
)
def test_translations(translator: Path, capsys: pytest.CaptureFixture, flags: list[str], settings: dict) -> None:
    """With the folder's own beams, or as the flags say."""
    texts = ["abc", "deaf cab"]
    prompts = [flag for text in texts for flag in ("--prompt", text)]
    decode_inputs(["--model", str(translator), *prompts, *flags])
    expected = theirs(translator, AutoModelForSeq2SeqLM, texts, **settings)
    asked = [text for text in texts for _ in range(settings.get("num_return_sequences", 1))]
    blocks = [f"{text}\n-> {said}\n\n" for text, said in zip(asked, expected, strict=True)]
    assert capsys.readouterr().out == "".join(blocks)


def test_stop_strings_of_the_folder_count(decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (said,) = theirs(decoder, AutoModelForCausalLM, ["abc"])
    shutil.copytree(decoder, tmp_path / "stops")
    settings = tmp_path / "stops/generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"stop_strings": [said[1:3]]}))
    decode_inputs(["--model", str(tmp_path / "stops"), "--prompt", "abc"])
    assert capsys.readouterr().out == f"abc{said[: said.index(said[1:3]) + 2]}\n"


def test_a_single_translation_is_streamed(translator: Path, capsys: pytest.CaptureFixture) -> None:
    decode_inputs(["--model", str(translator), "--prompt", "deaf", "--greedy"])
    (expected,) = theirs(translator, AutoModelForSeq2SeqLM, ["deaf"], num_beams=1)
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.slow
def test_sampling_repeats_itself(decoder: Path, capsys: pytest.CaptureFixture) -> None:
    """With a seed, and a text draws what it draws alone."""
    said = []
    for prompts in (["abc"], ["abc", "feed a deaf"], ["abc"]):
        flags = [flag for text in prompts for flag in ("--prompt", text)]
        decode_inputs(
            ["--model", str(decoder), *flags, "--temperature", "1.5", "--seed", "4", "--n-best", "2", "--json"]
        )
        said.append([json.loads(line)["output"] for line in capsys.readouterr().out.splitlines()][:2])
    assert said[0] == said[1] == said[2]
    assert said[0][0] != said[0][1]


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_chat_model_is_asked_as_it_wants(decoder: Path, tmp_path: Path, where: str) -> None:
    """The template of the folder, or --raw; it stays with the folder when that is saved."""
    lm = from_pretrained(decoder)
    with pytest.raises(InputError, match="no chat template"):
        lm.chat([{"role": "user", "content": "a"}])
    save_pretrained(lm, tmp_path / "chat")
    path = tmp_path / "chat" / where
    settings = None if "jinja" in where else json.loads(path.read_text()) | {"chat_template": TEMPLATE}
    path.write_text(TEMPLATE if settings is None else json.dumps(settings))
    save_pretrained(from_pretrained(tmp_path / "chat"), tmp_path / "copy")
    lm, fast = from_pretrained(tmp_path / "copy"), PreTrainedTokenizerFast.from_pretrained(tmp_path / "copy")
    for messages in (
        [{"role": "user", "content": "deaf"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b: c"}, {"role": "user", "content": "d"}],
    ):
        assert lm.chat(messages) == fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    asked = [{"role": "user", "content": "deaf"}]
    expected = fast.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert encode(lm, lm.generation, ["deaf"], raw=False) == [expected]
    assert encode(lm, lm.generation, ["deaf"], raw=True) == [fast("deaf")["input_ids"]]
    with pytest.raises(InputError, match="does not take these messages: no poet"):
        lm.chat([{"role": "poet", "content": "a"}])


@pytest.mark.slow
def test_other_types(decoder: Path, capsys: pytest.CaptureFixture) -> None:
    decode_inputs(["--model", str(decoder), "--prompt", "abc", "--dtype", "bfloat16", "--max-new-tokens", "2"])
    assert capsys.readouterr().out.startswith("abc")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "nowhere/at/all", "--prompt", "a"], "there is no folder nowhere/at/all"),
        (["--model", "FOLDER", "--checkpoint", "runs/x"], "is no --checkpoint"),
        (["--model", "FOLDER", "--input", "3 1"], "reads --prompt or --input-file"),
        (
            ["--model", "FOLDER", "--prompt", "ab" * 16],
            "32 tokens of prompt and 7 new ones exceed the model's context of 37",
        ),
        (["--model", "FOLDER", "--prompt", "a\udcff"], "--prompt is not text in UTF-8: character 2 is the byte 0xff"),
        (["--model", "FOLDER", "--prompt", "a", "--n-best", "3"], "num_return_sequences=3 needs as many beams"),
        (["--model", "FOLDER", "--prompt", "a", "--top-p", "2"], "top_p must be above 0 and at most 1, not 2"),
        (["--model", "FOLDER", "--prompt", "a", "--beam", "0"], "--beam must be at least 1"),
        (["--raw", "--prompt", "a"], "--raw and --dtype belong to --model"),
        (["--model", "BARE", "--prompt", "a"], "has no tokenizer.json"),
    ],
)
def test_bad_input(
    decoder: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    if "BARE" in flags:
        save_decoder("llama", tmp_path / "bare")
        capsys.readouterr()
    named = {"FOLDER": str(decoder), "BARE": str(tmp_path / "bare")}
    assert message in refusal(lambda: decode_inputs([named.get(flag, flag) for flag in flags]), capsys)


def test_a_long_text_is_cut_where_asked(decoder: Path, capsys: pytest.CaptureFixture) -> None:
    decode_inputs(["--model", str(decoder), "--prompt", "ab" * 40, "--truncate", "--json"])
    (expected,) = theirs(decoder, AutoModelForCausalLM, [("ab" * 40)[-30:]])
    assert json.loads(capsys.readouterr().out)["output"] == expected


def test_rotary_positions_have_no_end_but_the_model_was_made_for_some(
    decoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """More are read where somebody says how many tokens are to follow, and refused or cut where nobody does."""
    save_decoder("llama", tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_text((decoder / "tokenizer.json").read_text())
    flags = ["--model", str(tmp_path / "llama"), "--json", "--prompt", "ab" * 40]
    capsys.readouterr()
    assert "80 tokens of prompt and 1 new ones exceed the model's context of 64" in refusal(
        lambda: decode_inputs(flags), capsys
    )
    outputs = []
    for more in (["--truncate"], ["--max-new-tokens", "5"], ["--max-new-tokens", "5", "--truncate"]):
        decode_inputs([*flags, *more])
        outputs.append(json.loads(capsys.readouterr().out)["output"])
    decode_inputs([*flags[:-1], ("ab" * 40)[-59:], "--max-new-tokens", "5"])
    assert outputs[2] == json.loads(capsys.readouterr().out)["output"]
    for more in ([], ["--truncate"]):  # what fits is not cut for tokens that go beyond the context
        decode_inputs([*flags[:-1], "ab" * 15, "--max-new-tokens", "64", *more])
        outputs.append(json.loads(capsys.readouterr().out)["output"])
    assert outputs[-1] == outputs[-2]


def test_a_pipe_is_read_where_no_text_is_given(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    flags = ["--model", str(decoder), "--json"]
    for content, expected in ((b"abc\n\ndeaf\n", ["abc", "deaf"]), (b"caf\xe9", "standard input is not text in UTF-8")):
        (tmp_path / "input").write_bytes(content)
        with (tmp_path / "input").open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            if isinstance(expected, str):
                assert expected in refusal(lambda: decode_inputs(flags), capsys)
                continue
            decode_inputs(flags)
            assert [json.loads(line)["input"] for line in capsys.readouterr().out.splitlines()] == expected
    for nothing in (tmp_path / "empty", Path("/dev/null")):
        (tmp_path / "empty").touch()
        with nothing.open() as stream:
            monkeypatch.setattr("sys.stdin", stream)
            assert "there is no text to read: give --prompt" in refusal(lambda: decode_inputs(flags), capsys)
            assert "exclude" not in capsys.readouterr().err
            decode_inputs([*flags, "--prompt", "a", "--max-new-tokens", "1"])
            assert json.loads(capsys.readouterr().out)["input"] == "a"


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_too_little_memory_is_one_message(error: Exception, capsys: pytest.CaptureFixture) -> None:
    def ask_for_too_much() -> None:
        raise error

    assert "not enough memory: ask for fewer tokens" in refusal(ask_for_too_much, capsys)
