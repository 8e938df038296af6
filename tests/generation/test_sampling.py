"""Greedy decoding and sampling over hand-made models."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generation.beam_oracle import log_softmax
from generation.chain import CODES, empty_cache, logits_after, make_step, make_tables

from jaxformer.errors import InputError
from jaxformer.generation import decode
from jaxformer.generation.selection import draw_token, inverse_cdf_index

V = 11


def test_greedy_follows_the_likeliest_tokens(rng: np.random.Generator) -> None:
    """Token by token, padded behind EOS, as wide as the longest row; scores are log-probabilities."""
    tables = make_tables(rng, V)
    for new in (1, 2, 5, 17, 70):
        prompts = rng.integers(V, size=(5, 3))
        found = decode(
            make_step(tables), empty_cache(5), prompts, max_new_tokens=new, eos_token_id=(2, 6), pad_token_id=9
        )
        rows, scores = [], []
        for prompt in prompts.tolist():
            total, row = 0.0, list(prompt)
            while len(row) < 3 + new and (len(row) == 3 or row[-1] not in (2, 6)):
                log_probabilities = log_softmax(logits_after(tables, row))
                row.append(int(np.argmax(log_probabilities)))
                total += max(log_probabilities)
            rows.append(row)
            scores.append(total)
        width = max(map(len, rows))
        assert found.sequences.tolist() == [row + [9] * (width - len(row)) for row in rows]
        np.testing.assert_allclose(found.sequences_scores, scores, rtol=1e-5)


@pytest.mark.smoke
def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    """All logits equal: token 0; two largest: the lower."""
    tables = np.zeros((CODES, V), np.float32)
    assert decode(make_step(tables), empty_cache(1), [[1]], max_new_tokens=3).sequences.tolist() == [[1, 0, 0, 0]]
    tables[:, [4, 7]] = 1
    assert decode(make_step(tables), empty_cache(1), [[1]], max_new_tokens=2).sequences.tolist() == [[1, 4, 4]]


def test_default_length_and_padding() -> None:
    """Twenty new tokens by default; without a pad token the first EOS token pads, and pad token 0 is one."""
    tables = np.zeros((CODES, V), np.float32)
    assert decode(make_step(tables), empty_cache(1), [[1, 2]]).sequences.shape == (1, 22)
    tables = make_tables(np.random.default_rng(5), V)
    tables[:, 3] += 2.5
    prompts = [[i] for i in range(V)]
    for pad, shown in ((None, 3), (0, 0), (8, 8)):
        found = decode(make_step(tables), empty_cache(V), prompts, eos_token_id=(3, 4), pad_token_id=pad)
        assert {token for row in found.sequences.tolist() for token in behind(row, (3, 4))} == {shown}


def behind(row: list[int], eos: tuple[int, ...]) -> list[int]:
    """What follows the first EOS token after the prompt's one token."""
    ends = [i for i, token in enumerate(row) if i > 0 and token in eos]
    return row[ends[0] + 1 :] if ends else []


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 0.0, "top_p": 0.5, "top_k": 3}])
def test_temperature_zero_is_greedy(settings: dict, rng: np.random.Generator) -> None:
    """No division by zero: the same as without sampling."""
    step, prompts = make_step(make_tables(rng, V)), rng.integers(V, size=(4, 2))
    greedy = decode(step, empty_cache(4), prompts, max_new_tokens=9)
    sampled = decode(step, empty_cache(4), prompts, max_new_tokens=9, do_sample=True, **settings)
    assert sampled.sequences.tolist() == greedy.sequences.tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"top_k": 0}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 0, "temperature": 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_k": 0, "top_p": 0.6}, [4 / 7, 3 / 7, 0, 0]),
        pytest.param({"top_k": 0, "top_p": 0.75}, [4 / 9, 3 / 9, 2 / 9, 0], marks=pytest.mark.smoke),
        ({"top_k": 0, "min_p": 0.45}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ],
)
def test_sampling_draws_in_proportion(settings: dict, expected: list[float]) -> None:
    """Over 6000 rows and two steps each token comes as often as it should, within four standard deviations."""
    tables = np.zeros((CODES, 4), np.float32) + np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    found = decode(
        make_step(tables), empty_cache(6000), [[1]] * 6000, max_new_tokens=2, do_sample=True, seed=7, **settings
    )
    for step in (1, 2):
        frequency = np.bincount(found.sequences[:, step], minlength=4) / 6000
        for seen, p in zip(frequency, expected, strict=True):
            assert abs(seen - p) <= 4 * math.sqrt(p * (1 - p) / 6000)
    repeats = np.mean(found.sequences[:, 1] == found.sequences[:, 2])
    assert abs(repeats - sum(p * p for p in expected)) < 0.03


def test_draws_never_leave_what_is_possible() -> None:
    """Tokens of probability 0 are not drawn, wherever they stand and whatever the random number."""
    scores = jnp.full((2000, 9), -jnp.inf).at[:, jnp.array([2, 5])].set(jnp.array([0.0, -9.0])[None])
    drawn = draw_token(scores, jax.random.split(jax.random.key(0), 2000))
    assert set(np.asarray(drawn).tolist()) <= {2, 5}
    single = jnp.full((50, 9), -jnp.inf).at[:, 8].set(-1000.0)
    assert (np.asarray(draw_token(single, jax.random.split(jax.random.key(1), 50))) == 8).all()


@pytest.mark.parametrize("V", [1, 127, 128, 129, 1000])
def test_a_mark_finds_its_stretch_of_the_line(V: int, rng: np.random.Generator) -> None:
    """As the running sum finds it, never one of length 0; behind the end, where rounding may put it, the last."""
    lengths = rng.integers(0, 4, size=(40, V)) * (rng.random((40, V)) < 0.1)
    lengths[:, rng.integers(V)] += 1
    ends = np.cumsum(lengths, axis=1)
    marks = np.floor(rng.random((40, 1)) * ends[:, -1:])
    expected = [np.searchsorted(row, mark, side="right") for row, mark in zip(ends, marks[:, 0], strict=True)]
    found = inverse_cdf_index(jnp.asarray(lengths, jnp.float32), jnp.asarray(marks, jnp.float32))[:, 0]
    assert found.tolist() == expected
    assert (np.take_along_axis(lengths, np.asarray(found)[:, None], axis=1) > 0).all()
    behind = inverse_cdf_index(jnp.asarray(lengths, jnp.float32), jnp.asarray(ends[:, -1:], jnp.float32))[:, 0]
    assert behind.tolist() == [np.flatnonzero(row)[-1] for row in lengths]


def test_rows_do_not_depend_on_each_other(rng: np.random.Generator) -> None:
    """A row draws the same tokens beside other rows, beside none, and whatever those others are."""
    step, prompts = make_step(make_tables(rng, V, scale=0.5)), rng.integers(V, size=(5, 3))
    call = {"do_sample": True, "max_new_tokens": 12, "seed": 4}
    together = decode(step, empty_cache(5), prompts, **call).sequences
    assert decode(step, empty_cache(2), prompts[:2], **call).sequences.tolist() == together[:2].tolist()
    others = np.concatenate([prompts[:1], rng.integers(V, size=(4, 3))])
    assert decode(step, empty_cache(5), others, **call).sequences[0].tolist() == together[0].tolist()
    assert decode(step, empty_cache(5), prompts, **call | {"seed": 5}).sequences.tolist() != together.tolist()


@pytest.mark.parametrize("settings", [{}, {"num_return_sequences": 3}, {"num_beams": 3}])
def test_with_a_seed_each_inputs_draw_what_they_draw_alone(settings: dict, rng: np.random.Generator) -> None:
    """Whatever their place in the batch; a seed too few or too many is told."""
    step, prompts = make_step(make_tables(rng, V, scale=0.5)), rng.integers(V, size=(3, 2))
    call = {"do_sample": True, "max_new_tokens": 9, **settings}
    together = decode(step, empty_cache(3), prompts, seed=(5, 6, 5), **call).sequences
    rows = settings.get("num_return_sequences", 1)
    for place, seed in enumerate((5, 6, 5)):
        alone = decode(step, empty_cache(1), prompts[place : place + 1], seed=seed, **call).sequences
        assert together[place * rows : (place + 1) * rows].tolist() == alone.tolist()
    with pytest.raises(InputError, match="there are 3 inputs, but 2 seeds"):
        decode(step, empty_cache(3), prompts, seed=(5, 6), **call)


def test_several_samples_per_prompt(rng: np.random.Generator) -> None:
    """Samples of a prompt stand together, start with it and differ from each other."""
    step, prompts = make_step(make_tables(rng, V, scale=0.3)), np.array([[1, 2], [3, 4], [5, 6]])
    found = decode(step, empty_cache(3), prompts, do_sample=True, num_return_sequences=4, max_new_tokens=10)
    assert found.sequences.shape == (12, 12)
    assert found.sequences_scores.shape == (12,)
    assert found.sequences[:, :2].tolist() == np.repeat(prompts, 4, axis=0).tolist()
    assert len({tuple(row) for row in found.sequences.tolist()}) == 12


def test_scores_are_the_models_log_probabilities(rng: np.random.Generator) -> None:
    """Whatever the processors made of them before the choice."""
    tables = make_tables(rng, V)
    found = decode(
        make_step(tables),
        empty_cache(1),
        [[1]],
        max_new_tokens=6,
        do_sample=True,
        temperature=3.0,
        repetition_penalty=2.0,
    )
    row = found.sequences[0].tolist()
    expected = sum(log_softmax(logits_after(tables, row[:i]))[row[i]] for i in range(1, 7))
    np.testing.assert_allclose(found.sequences_scores, [expected], rtol=1e-5)


def test_left_padding_escapes_the_repetition_penalty() -> None:
    """Token 5 is the likeliest; it is penalised where it was said, not where it only fills the left."""
    tables = np.zeros((CODES, V), np.float32)
    tables[:, 5], tables[:, 6] = 2.0, 1.5
    call = {"max_new_tokens": 1, "repetition_penalty": 2.0}
    prompts, mask = [[5, 5, 1], [5, 5, 1]], [[0, 0, 1], [1, 1, 1]]
    found = decode(make_step(tables), empty_cache(2), prompts, prompt_mask=mask, **call)
    assert found.sequences[:, 3].tolist() == [5, 6]


def test_half_precision_logits_are_scored_in_float32(rng: np.random.Generator) -> None:
    """A step may compute in bfloat16."""
    tables = jnp.asarray(make_tables(rng, V), jnp.bfloat16)
    found = decode(make_step(tables), empty_cache(2), [[1], [2]], max_new_tokens=4, num_beams=2)
    same = decode(make_step(tables.astype(jnp.float32)), empty_cache(2), [[1], [2]], max_new_tokens=4, num_beams=2)
    assert found.sequences.tolist() == same.sequences.tolist()
    assert found.sequences_scores.tolist() == same.sequences_scores.tolist()
