"""Processors of a user's own: where they act, that their numbers are traced, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from generation.chain import empty_cache, make_step, make_tables
from hf_models import save_decoder
from transformers import AutoModelForCausalLM
from transformers.generation import logits_process as hf

import jaxformer
from jaxformer import InputError, Session, Transformer, decode, decoder_only, generate, stream
from jaxformer.generation import Context, api
from jaxformer.pretrained import from_pretrained

GPT = Transformer(decoder_only(31, length=24, dim=24, layers=2, heads=3), rngs=nnx.Rngs(0))
PROMPTS = np.array([[1, 5, 9], [7, 8, 3]])
CALL = {"max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": 4}


@jaxformer.logits_processor
class Avoid:
    """Lowers the score of one token."""

    token: int
    penalty: float

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        return scores.at[:, self.token].add(-self.penalty)


@jaxformer.logits_processor
class Alternate:
    """Allows even tokens after odd ones, and odd after even."""

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        last = jnp.take(context.tokens, context.length - 1, axis=1)
        wrong = (jnp.arange(scores.shape[1])[None] + last[:, None]) % 2 == 0
        return jnp.where(wrong, -jnp.inf, scores)


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"num_beams": 3}, marks=pytest.mark.slow), {"do_sample": True, "seed": 3}],
    ids=["greedy", "beams", "drawn"],
)
def test_every_search_heeds_them(settings: dict[str, Any]) -> None:
    call = CALL | settings | {"eos_token_id": None}
    found = generate(GPT, PROMPTS, logits_processors=[Alternate()], **call).sequences
    assert (np.diff(found[:, 2:], axis=1) % 2 != 0).all()
    assert (np.diff(generate(GPT, PROMPTS, **call).sequences[:, 2:], axis=1) % 2 == 0).any()
    parts = list(stream(GPT, PROMPTS, logits_processors=Alternate(), **call)) if "num_beams" not in settings else []
    if parts:
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), found[:, 3:])
    session = Session(GPT, PROMPTS, logits_processors=(Alternate(),), **call)
    while not session.finished:
        session.advance()
    np.testing.assert_array_equal(session.result().sequences, found)
    jitted = jax.jit(lambda ids: generate(GPT, ids, logits_processors=Alternate(), **call).sequences)
    np.testing.assert_array_equal(jitted(PROMPTS), found)


def test_decode_heeds_them(rng: np.random.Generator) -> None:
    step = make_step(make_tables(rng, 8))
    plain = decode(step, empty_cache(1), [[1]], max_new_tokens=5).sequences
    avoided = int(plain[0, 1])
    found = decode(step, empty_cache(1), [[1]], max_new_tokens=5, logits_processors=Avoid(avoided, 1e9)).sequences
    assert avoided not in found[0, 1:]


def test_numbers_are_traced_and_types_are_not() -> None:
    """Another number is another call of the same program."""
    generate(GPT, PROMPTS, logits_processors=Avoid(3, 0.5), **CALL)
    before = api.generate_compiled.kept
    outcomes = {
        generate(GPT, PROMPTS, logits_processors=Avoid(token, 1e9), **CALL).sequences.tobytes() for token in range(31)
    }
    assert api.generate_compiled.kept == before
    assert len(outcomes) > 1


def test_they_act_as_custom_ones_of_transformers(tmp_path: Any, rng: np.random.Generator) -> None:
    """After the other rules and before temperature and truncations; order matters among a forced token and these."""
    save_decoder("gpt2", tmp_path)
    lm, theirs = from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = rng.integers(3, 53, (3, 4))

    class TheirAvoid(hf.LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.clone()
            scores[:, 7] += 4.0
            scores[:, 5] -= 1e9
            return scores

    both = [Avoid(7, -4.0), Avoid(5, 1e9)]
    for settings in (
        {},
        {"num_beams": 3},
        {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2},
        {"suppress_tokens": [7, 9]},
        {"forced_eos_token_id": 2},
    ):
        call = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": 2, "pad_token_id": 1} | settings
        with torch.no_grad():
            expected = theirs.generate(
                torch.tensor(prompts), attention_mask=torch.ones(3, 4, dtype=torch.long),
                logits_processor=[TheirAvoid()], **call,
            )  # fmt: skip
        assert lm.generate(prompts, logits_processors=both, **call).sequences.tolist() == expected.tolist(), settings


def test_a_constraint_is_never_violated() -> None:
    allowed = jaxformer.allow_phrases([[5, 6], [9]], 31, [4])
    found = generate(GPT, PROMPTS, allowed=allowed, logits_processors=Avoid(5, 1e9), **CALL)
    assert found.sequences[:, 3:].tolist() in ([[9, 4], [9, 4]], [[5, 6, 4], [5, 6, 4]])
    every = generate(GPT, PROMPTS, allowed=allowed, logits_processors=[Avoid(9, np.inf), Avoid(5, np.inf)], **CALL)
    assert {tuple(row) for row in every.sequences[:, 3:].tolist()} <= {(9, 4, 0), (9, 4), (5, 6, 4)}


@pytest.mark.parametrize("wrong", [Avoid, "avoid", lambda scores, context: scores, 3, [Alternate(), None]])
def test_what_is_no_processor_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="logits_processor"):
        generate(GPT, PROMPTS, logits_processors=wrong, **CALL)


@jaxformer.logits_processor
class First:
    """Returns the scores of the first row, for all."""

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        return scores[:1]


@jaxformer.logits_processor
class Narrow:
    """Computes in 16 bits."""

    def __call__(self, scores: jax.Array, context: Context) -> jax.Array:
        return scores.astype(jnp.bfloat16)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True}])
def test_what_a_processor_returns_is_checked(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="First must return scores"):
        generate(GPT, PROMPTS, logits_processors=First(), **CALL | settings)
    scores = generate(GPT, PROMPTS, logits_processors=Narrow(), output_scores=True, **CALL | settings).scores
    assert scores.dtype == np.float32


def test_none_is_no_processor() -> None:
    found = generate(GPT, PROMPTS, logits_processors=None, **CALL).sequences
    np.testing.assert_array_equal(found, generate(GPT, PROMPTS, **CALL).sequences)
