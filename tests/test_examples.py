"""The examples run, and do what they say."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

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
