"""The examples run, and do what they say."""

import json
import runpy
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import AutoModelForSequenceClassification
from word_models import save_bert, save_chat_llama, save_mbart

import jaxformer

EXAMPLES = Path(__file__).parents[1] / "examples"
ANY_MODEL = runpy.run_path(str(EXAMPLES / "decode_any_model.py"))


def continued(step: object, cache: object, prompt: list[int], length: int) -> list[int]:
    """Greedy decoding without the engine: the likeliest token, read one after the other."""
    tokens = list(prompt)
    logits, cache = step(jnp.array([prompt]), cache)
    while len(tokens) < length:
        tokens.append(int(np.argmax(logits[0])))
        logits, cache = step(jnp.array([tokens[-1:]]), cache)
    return tokens


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY_MODEL["models"](1))
def test_any_model_decodes(name: str) -> None:
    """As without the engine; rows do not know each other; four beams find nothing less likely than one."""
    prompts = [[3, 1, 4], [1, 5, 9]]
    step, cache = ANY_MODEL["models"](2)[name]
    call = {"max_new_tokens": 9}
    greedy = jaxformer.decode(step, cache, prompts, **call)
    alone_step, alone_cache = ANY_MODEL["models"](1)[name]
    assert greedy.sequences.tolist() == [continued(alone_step, alone_cache, prompt, 12) for prompt in prompts]
    beams = jaxformer.decode(step, cache, prompts, num_beams=4, length_penalty=0.0, **call)
    assert (beams.sequences_scores >= greedy.sequences_scores - 1e-4).all()


@pytest.mark.slow
def test_the_example_prints_what_it_found(capsys: pytest.CaptureFixture) -> None:
    ANY_MODEL["main"]()
    assert capsys.readouterr().out.count("score") == 18


def test_a_model_of_ones_own_learns_and_decodes(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "own_model.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "[[ 3  4  5  6  7  8  9 10 11  0]" in said
    assert " [10 11  0  1  2  3  4  5  6  7]]" in said


@pytest.mark.slow
def test_a_cache_changes_no_answer_of_that_model() -> None:
    """Token by token as at once; and a window sees its four tokens only."""
    own = runpy.run_path(str(EXAMPLES / "own_model.py"))
    model, tokens = own["NearAndFar"](nnx.Rngs(1)), jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]])
    whole, _ = model(tokens, model.init_cache(1))
    cache, pieces = model.init_cache(1), []
    for place in range(8):
        logits, cache = model(tokens[:, place : place + 1], cache)
        pieces.append(logits)
    np.testing.assert_allclose(jnp.concatenate(pieces, axis=1), whole, atol=1e-5)
    mask = jaxformer.AttentionMask(causal=True)
    weights = model.near(jnp.ones((1, 8, own["D"])), mask=mask, return_weights=True).weights
    visible = np.tri(8, dtype=bool) & ~np.tri(8, k=-4, dtype=bool)
    np.testing.assert_array_equal(np.asarray(weights[0, 0]) > 0, visible)


def run(name: str, *arguments: object, **settings: Any) -> None:
    runpy.run_path(str(EXAMPLES / name))["main"](*map(str, arguments), **settings)


def losses(said: str) -> list[float]:
    return [float(line.split()[-1]) for line in said.splitlines() if line.startswith("step ")]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def test_a_classifier_is_fine_tuned(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [("the cat sat", "cats"), ("a dog sat", "dogs"), ("cat on a mat", "cats"), ("dog on a log", "dogs")]
    (tmp_path / "rows.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))
    run("finetune_classifier.py", bert, tmp_path / "rows.tsv", tmp_path / "made", steps=161, batch_size=8)
    said = capsys.readouterr().out
    assert losses(said)[-1] < losses(said)[0] / 2
    assert "'the cat sat' is {'cats': 0.9" in said
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "made").config.id2label[0] == "cats"


def test_a_head_of_ones_own_learns(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "stars.tsv").write_text("the cat sat\t5\na dog sat\t1\na dog on a log\t2\n")
    run("own_head.py", bert, tmp_path / "stars.tsv", steps=81, batch_size=8)
    errors = losses(capsys.readouterr().out)
    assert errors[-1] < errors[0] / 10


def test_a_chat_model_is_taught_by_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = ["zero", "one", "two", "three", "four"]
    rows = [
        {"messages": [{"role": "user", "content": numbers[i]}, {"role": "assistant", "content": numbers[i + 1]}]}
        for i in range(4)
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = save_chat_llama(tmp_path / "base", [json.dumps(row) for row in rows])
    run("chat_lora.py", base, tmp_path / "chats.jsonl", tmp_path / "adapter", steps=91, rate=3e-2)
    said = capsys.readouterr().out
    assert losses(said)[-1] < losses(said)[0] / 5
    assert "zero -> one" in said
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["r"] == 8


def test_lines_are_translated_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_mbart(tmp_path / "mbart")
    (tmp_path / "source.txt").write_text("the cat sat on a mat\n\na dog\n")
    run("translate.py", folder, tmp_path / "source.txt", tmp_path / "target.txt", "fr_XX", "de_DE", max_new_tokens=24)
    assert "2 lines in" in capsys.readouterr().out
    lm = jaxformer.from_pretrained(folder)
    beams = {"num_beams": 4, "early_stopping": True, "max_new_tokens": 24, "src_lang": "fr_XX", "tgt_lang": "de_DE"}
    expected = [lm.translate("the cat sat on a mat", **beams), "", lm.translate("a dog", **beams)]
    assert (tmp_path / "target.txt").read_text().split("\n")[:-1] == expected


def test_a_watermark_can_be_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_chat_llama(tmp_path / "base", ["zero one two three four"])
    run("own_processor.py", base, "one two")
    plain, marked = (int(line.split(": ")[1].split("%")[0]) for line in capsys.readouterr().out.splitlines())
    assert plain < 75
    assert marked > 90
