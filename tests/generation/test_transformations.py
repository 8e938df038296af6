"""`generate` and `decode` inside transformations of JAX: the same tokens as outside, as part of one program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from generation.chain import empty_cache, make_step, make_tables

from jaxformer import InputError, Session, Transformer, allow_phrases, decode, decoder_only, encoder_decoder, generate

GPT = Transformer(decoder_only(31, length=24, dim=24, layers=2, heads=3), rngs=nnx.Rngs(0))
BART = Transformer(encoder_decoder(31, dim=24, layers=1, heads=2), rngs=nnx.Rngs(1))
PROMPTS = np.array([[0, 5, 9], [7, 8, 3]])
CALL = {"eos_token_id": (4, 11), "pad_token_id": 0, "max_new_tokens": 7}
SEARCHES = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7},
    "sampling": {"do_sample": True, "top_k": 9, "num_return_sequences": 2, "repetition_penalty": 1.3},
}


def agree(ours: Any, expected: Any) -> None:
    """As far as the sequences outside go; behind them is padding."""
    length = expected.sequences.shape[1]
    np.testing.assert_array_equal(ours.sequences[:, :length], expected.sequences)
    assert set(np.asarray(ours.sequences[:, length:]).ravel().tolist()) <= {0}
    np.testing.assert_allclose(ours.sequences_scores, expected.sequences_scores, rtol=1e-5)
    if expected.beam_indices is not None:
        width = expected.beam_indices.shape[1]
        np.testing.assert_array_equal(ours.beam_indices[:, :width], expected.beam_indices)


@pytest.mark.parametrize("search", SEARCHES)
def test_generate_under_jit(search: str) -> None:
    call = CALL | SEARCHES[search]
    mask = PROMPTS != 0
    jitted = jax.jit(lambda model, prompts, mask: generate(model, prompts, inputs_mask=mask, **call))
    agree(jitted(GPT, PROMPTS, mask.astype(int)), generate(GPT, PROMPTS, inputs_mask=mask, **call))
    agree(jax.jit(lambda model: generate(model, PROMPTS, **call))(GPT), generate(GPT, PROMPTS, **call))
    agree(jax.jit(lambda prompts: generate(GPT, prompts, **call))(PROMPTS), generate(GPT, PROMPTS, **call))
    agree(jax.jit(lambda: generate(GPT, PROMPTS, **call))(), generate(GPT, PROMPTS, **call))


@pytest.mark.parametrize("search", ["greedy", "beams"])
def test_an_encoder_decoder_under_jit(search: str) -> None:
    call = CALL | SEARCHES[search] | {"decoder_start_token_id": 2, "output_scores": True}
    expected = generate(BART, PROMPTS, **call)
    ours = jax.jit(lambda model, source: generate(model, source, **call))(BART, PROMPTS)
    agree(ours, expected)
    np.testing.assert_allclose(ours.scores[: len(expected.scores)], expected.scores, atol=1e-5)
    begun = np.array([[2, 6], [2, 9]])
    ours = jax.jit(lambda source, begun: generate(BART, source, decoder_input_ids=begun, **call))(PROMPTS, begun)
    agree(ours, generate(BART, PROMPTS, decoder_input_ids=begun, **call))


def test_decode_under_jit(rng: np.random.Generator) -> None:
    step = make_step(make_tables(rng, 8))
    call = {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": 3, "pad_token_id": 0}
    ours = jax.jit(lambda step, prompts: decode(step, empty_cache(2), prompts, **call))(step, np.array([[1], [2]]))
    expected = decode(step, empty_cache(2), np.array([[1], [2]]), **call)
    np.testing.assert_array_equal(ours.sequences[:, : expected.sequences.shape[1]], expected.sequences)


@pytest.mark.slow
def test_generate_under_vmap_and_beside_a_gradient() -> None:
    """Several models' worth of prompts at once; and a loss on what the model itself has generated."""
    prompts = np.stack([PROMPTS, PROMPTS[::-1]])
    found = jax.vmap(lambda prompts: generate(GPT, prompts, **CALL).sequences)(prompts)
    for ours, each in zip(found, prompts, strict=True):
        expected = generate(GPT, each, **CALL).sequences
        np.testing.assert_array_equal(ours[:, : expected.shape[1]], expected)

    def loss(model: Transformer) -> jax.Array:
        tokens = generate(model, PROMPTS, max_new_tokens=4).sequences
        return -jnp.mean(jax.nn.log_softmax(model(tokens))[:, -1, 3])

    def given(model: Transformer, tokens: jax.Array) -> jax.Array:
        return -jnp.mean(jax.nn.log_softmax(model(tokens))[:, -1, 3])

    tokens = jnp.asarray(generate(GPT, PROMPTS, max_new_tokens=4).sequences)
    ours, expected = jax.jit(jax.grad(loss))(GPT), jax.jit(jax.grad(given))(GPT, tokens)
    for leaf, other in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, atol=1e-6)


def test_a_key_draws_as_a_seed_does() -> None:
    call = CALL | SEARCHES["sampling"]
    first = generate(GPT, PROMPTS, key=jax.random.key(5), **call)
    again = jax.jit(lambda key: generate(GPT, PROMPTS, key=key, **call))(jax.random.key(5))
    agree(again, first)
    other = generate(GPT, PROMPTS, key=jax.random.key(6), **call)
    assert first.sequences.shape != other.sequences.shape or (first.sequences != other.sequences).any()
    for wrong in ("five", jax.random.split(jax.random.key(0), 3)):
        with pytest.raises(InputError, match=r"jax\.random\.key"):
            generate(GPT, PROMPTS, key=wrong, **call)
    for make in (generate, Session):
        with pytest.raises(InputError, match="not both"):
            make(GPT, PROMPTS, key=jax.random.key(5), seed=3, **call)


def test_places_that_no_allowed_sequence_took_under_jit() -> None:
    call = CALL | {"num_beams": 4, "num_return_sequences": 4, "allowed": allow_phrases([[9]], 31, (4, 11))}
    ours = jax.jit(lambda prompts: generate(GPT, prompts, **call))(PROMPTS)
    expected = generate(GPT, PROMPTS, **call)
    np.testing.assert_array_equal(ours.sequences[:, : expected.sequences.shape[1]], expected.sequences)
    np.testing.assert_allclose(ours.sequences_scores, expected.sequences_scores, rtol=1e-5)
    assert np.isneginf(ours.sequences_scores).any()


def test_what_needs_values_is_refused_inside() -> None:
    with pytest.raises(InputError, match="session"):
        jax.jit(lambda model: Session(model, PROMPTS, **CALL).result().sequences)(GPT)
    with pytest.raises(InputError, match="output_attentions"):
        jax.jit(lambda model: generate(model, PROMPTS, output_attentions=True, **CALL))(GPT)
    texts = [chr(97 + token) for token in range(31)]
    with pytest.raises(InputError, match="stop_strings"):
        jax.jit(lambda ids: generate(GPT, ids, stop_strings=["ab"], token_texts=texts, **CALL))(PROMPTS)


def test_generating_after_a_jit_is_not_spoilt() -> None:
    """What is kept between calls holds no part of another program."""
    model = Transformer(decoder_only(31, length=24, dim=24, layers=1, heads=3), rngs=nnx.Rngs(3))
    inside = jax.jit(lambda prompts: generate(model, prompts, **CALL))(PROMPTS)
    agree(inside, generate(model, PROMPTS, **CALL))
