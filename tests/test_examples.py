"""The examples run, and do what they say."""

import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer

ANY_MODEL = runpy.run_path(str(Path(__file__).parents[1] / "examples/decode_any_model.py"))


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
