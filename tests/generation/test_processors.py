"""Processors and warpers: equal to the classes of transformers on random scores with ties."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from jaxformer.generation import GenerationConfig, selection
from jaxformer.generation.processors import process
from jaxformer.generation.selection import INVALID_TOKEN, best_token, draw_token
from jaxformer.generation.spec import FSMStates, SearchSpec, make_context, make_spec

R, V, SLOTS = 7, 53, 19
SOURCE = np.random.default_rng(8).integers(V, size=(R, 13))


@jax.jit
def process_compiled(spec: SearchSpec, scores: np.ndarray, tokens: np.ndarray, length: np.ndarray) -> jax.Array:
    """The scores after every processor."""
    return process(spec.processors, scores, make_context(spec, tokens, length, FSMStates(None, None)))


def draw_scores(rng: np.random.Generator, kind: str) -> np.ndarray:
    """Scores [R, V]: distinct, with many ties, zeros of both signs, or partly -inf."""
    scores = (3 * rng.normal(size=(R, V))).astype(np.float32)
    if kind == "ties":
        return np.round(scores)
    if kind == "zeros":
        return np.where(rng.random((R, V)) < 0.5, np.float32(0.0), np.float32(-0.0))
    if kind == "partly":
        return np.where(rng.random((R, V)) < 0.6, np.float32(-np.inf), scores)
    return scores


def ours(scores: np.ndarray, tokens: np.ndarray, mask: np.ndarray | None = None, **settings: Any) -> np.ndarray:
    """The scores after our processors, for a prompt of 3 tokens (or as long as its mask) within `tokens`."""
    config = GenerationConfig(**settings)
    mask = np.ones((R, 3), bool) if mask is None else mask
    spec = make_spec(config, config.length_limits(mask.shape[1]), tokens[:, : mask.shape[1]], mask, source=SOURCE)
    stale = np.pad(tokens, ((0, 0), (0, SLOTS - tokens.shape[1])), constant_values=1)  # what lies behind is not read
    return np.asarray(process_compiled(spec, scores, stale, np.int32(tokens.shape[1])))


def theirs(scores: np.ndarray, tokens: np.ndarray, *processors: hf.LogitsProcessor) -> np.ndarray:
    """The scores after processors of transformers."""
    return hf.LogitsProcessorList(processors)(torch.tensor(tokens), torch.tensor(scores)).numpy()


KINDS = ["distinct", "ties", "zeros", "partly"]
SAMPLE = {"do_sample": True, "top_k": 0}


@pytest.fixture
def seen_first(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """So many scores are looked at before all are."""
    monkeypatch.setattr(selection, "FEW", request.param)
    process_compiled.clear_cache()
    yield request.param
    process_compiled.clear_cache()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("beams", "seen_first"), [(1, 256), (1, 3), (3, 4)], indirect=["seen_first"])
def test_warpers(kind: str, beams: int, seen_first: int, rng: np.random.Generator) -> None:
    """Temperature, top-k, top-p, min-p and all in a row, whether their thresholds are among a few scores or not."""
    tokens = rng.integers(V, size=(R, 5))
    keep = 1 if beams == 1 else 3
    base = SAMPLE | {"num_beams": beams, "eos_token_id": (4, 9)}
    for _ in range(4):
        scores = draw_scores(rng, kind)
        temperature, k, p = float(rng.uniform(0.3, 2)), int(rng.integers(1, 60)), float(rng.uniform(0.01, 0.99))
        minimum = float(rng.uniform(0, 1))
        warm = hf.TemperatureLogitsWarper(temperature)
        top_k, top_p = hf.TopKLogitsWarper(k, min_tokens_to_keep=keep), hf.TopPLogitsWarper(p, min_tokens_to_keep=keep)
        min_p = hf.MinPLogitsWarper(minimum, min_tokens_to_keep=keep)
        cases = [
            ({"temperature": temperature}, [warm]),
            ({"top_k": k}, [top_k]),
            ({"top_k": 1}, [hf.TopKLogitsWarper(1, min_tokens_to_keep=keep)]),
            ({"top_p": p}, [top_p]),
            ({"temperature": temperature, "top_k": k, "top_p": p}, [warm, top_k, top_p]),
        ]
        if kind == "distinct" or keep == 1:  # which of equal tokens min_p spares is not specified there
            cases += [({"min_p": minimum}, [min_p]), ({"top_k": k, "min_p": minimum}, [top_k, min_p])]
        for settings, processors in cases:
            found, expected = ours(scores, tokens, **base | settings), theirs(scores, tokens, *processors)
            if kind in ("ties", "zeros"):  # which of equal tokens top_p keeps is not specified there, but how many
                found, expected = np.sort(found), np.sort(expected)
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(settings))


@pytest.mark.parametrize("seen_first", [4], indirect=True)
@pytest.mark.parametrize("kind", KINDS)
def test_the_kth_largest_of_any_k(kind: str, seen_first: int, rng: np.random.Generator) -> None:
    """The best, among the few that are seen first, and beyond."""
    scores = draw_scores(rng, kind)
    found = jax.jit(jax.vmap(partial(selection.kth_largest, scores)))(np.arange(1, V + 2))
    descending = -np.sort(-scores, axis=1)
    expected = np.concatenate([descending, descending[:, -1:]], axis=1)
    np.testing.assert_allclose(found[..., 0].T, expected, rtol=0, atol=1e-37)  # XLA compares subnormals as zeros


@pytest.mark.parametrize("kind", [*KINDS, "equal", "mostly -inf"])
@pytest.mark.parametrize(("size", "count"), [(53, 53), (1000, 1), (1000, 7), (4099, 8), (4099, 64)])
def test_the_few_largest(kind: str, size: int, count: int, rng: np.random.Generator) -> None:
    """As from a stable sort, of few scores and of many; which of -inf are among them is not specified."""
    scores = np.concatenate([draw_scores(rng, kind) for _ in range(-(-size // V))], axis=1)[:, :size]
    if kind in ("equal", "mostly -inf"):
        scores = np.full_like(scores, -np.inf)
        scores[:, rng.permutation(size)[: size if kind == "equal" else max(1, count // 2)]] = 2.0
    scores += np.float32(0.0)  # no -0.0, which `top_k` puts behind 0.0
    find = jax.jit(partial(selection.top_k, count=count, first_of_equals=True))
    values, places = map(np.asarray, find(scores))
    np.testing.assert_array_equal(selection.top_k(scores, count)[0], values)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(values, np.take_along_axis(scores, order, axis=1))
    np.testing.assert_array_equal(np.where(np.isinf(values), -1, places), np.where(np.isinf(values), -1, order))
    np.testing.assert_array_equal(np.take_along_axis(scores, places, axis=1), values)
    assert all(len(set(row)) == count for row in places.tolist())


def test_of_equal_scores_the_first_comes_first() -> None:
    """Wherever they stand: beside better ones, and far behind."""
    scores = np.arange(-4000, 0, dtype=np.float32)[None]
    below = 4000 // selection.DEPTH
    scores[0, [40, 40 + 3 * below, 12 + 3 * below]] = [9, 7, 7]
    places = selection.top_k(scores, 3, first_of_equals=True)[1]
    assert places.tolist() == [[40, 12 + 3 * below, 40 + 3 * below]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "spread"), [(5_000, 3.0), (20_000, 0.5), (20_000, 3.0)])
def test_warpers_of_many_tokens(kind: str, size: int, spread: float, rng: np.random.Generator) -> None:
    """Top-k and top-p over thousands of tokens, whose thresholds are among the 256 that are seen first or beyond."""
    tokens = rng.integers(V, size=(R, 5))
    scores = spread * np.concatenate([draw_scores(rng, kind) for _ in range(size // V)], axis=1)
    scores += np.float32(0.0)  # no -0.0
    for k, p in ((50, 0.9), (3, 0.4), (1000, 0.7), (0, 0.5)):
        top_k, top_p = [hf.TopKLogitsWarper(k)] if k else [], hf.TopPLogitsWarper(p)
        found = np.isfinite(ours(scores, tokens, **SAMPLE | {"top_k": k, "top_p": p}))
        expected = np.isfinite(theirs(scores, tokens, *top_k, top_p))
        if kind in ("ties", "zeros"):
            found, expected = found.sum(axis=1), expected.sum(axis=1)
        np.testing.assert_array_equal(found, expected, err_msg=f"top_k={k}, top_p={p}")


@pytest.mark.parametrize("size", [1000, 5000, 20_000])
def test_sampling_sorts_no_vocabulary(size: int) -> None:
    """XLA makes a sort of a `top_k` whose result is sliced, which takes ten times as long."""
    config = GenerationConfig(do_sample=True, temperature=0.8, top_k=50, top_p=0.9)
    tokens = np.ones((1, 3), np.int32)
    spec = make_spec(config, config.length_limits(3), tokens, np.ones((1, 3), bool), source=tokens)

    def draw(spec: SearchSpec, scores: jax.Array, keys: jax.Array) -> jax.Array:
        context = make_context(spec, jnp.ones((1, SLOTS), jnp.int32), 3, FSMStates(None, None))
        return draw_token(process(spec.processors, scores, context), keys)

    keys = jax.random.split(jax.random.key(0), 1)
    text = jax.jit(draw).lower(spec, jnp.zeros((1, size)), keys).compile().as_text()
    assert "TopK" in text
    assert not re.search(rf"\[1,{size}\].* sort\(", text)


def test_sampling_with_numbers_of_64_bits_enabled(rng: np.random.Generator) -> None:
    """As without: some programs use both."""
    scores, tokens = 3 * rng.normal(size=(R, 20_000)).astype(np.float32), np.ones((R, 5), np.int32)
    settings = SAMPLE | {"temperature": 0.7, "top_k": 300, "top_p": 0.8}
    narrow, keys = ours(scores, tokens, **settings), jax.random.split(jax.random.key(0), R)
    with jax.enable_x64(True):
        wide = ours(scores, tokens, **settings)
        np.testing.assert_array_equal(wide, narrow)
        assert (np.asarray(best_token(jnp.asarray(wide))) == narrow.argmax(axis=1)).all()
        assert np.isfinite(narrow[np.arange(R), np.asarray(draw_token(jnp.asarray(wide), keys))]).all()


@pytest.mark.parametrize(
    "settings", [{"top_k": 5}, {"top_k": 300}, {"top_p": 0.9}, {"top_h": 0.4}, {"min_p": 0.1}], ids=str
)
def test_a_score_that_is_no_number_draws_nothing(settings: dict[str, Any], rng: np.random.Generator) -> None:
    """Wherever it stands: `generate` says so."""
    scores = rng.normal(size=(R, 20_000)).astype(np.float32)
    scores[np.arange(R - 1), rng.integers(20_000, size=R - 1)] = np.nan
    drawn = draw_token(
        jnp.asarray(ours(scores, np.ones((R, 5), np.int32), **SAMPLE | settings)),
        jax.random.split(jax.random.key(0), R),
    )
    assert (np.asarray(drawn) == INVALID_TOKEN).tolist() == [True] * (R - 1) + [False]


@pytest.mark.parametrize("top_p", [0.99, 0.9999, 0.999999])
def test_top_p_weighs_a_light_tail(top_p: float, rng: np.random.Generator) -> None:
    """What falls is weighed by itself: beside a token of nearly all mass it would be rounded away."""
    tails = rng.dirichlet(np.ones(V - 1), size=R) * (1 - top_p) * rng.uniform(0.95, 1.6, size=(R, 1))
    scores = np.log(np.concatenate([1 - tails.sum(axis=1, keepdims=True), tails], axis=1)).astype(np.float32)
    tokens = rng.integers(V, size=(R, 5))
    found = ours(scores, tokens, **SAMPLE, top_p=top_p)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(theirs(scores, tokens, hf.TopPLogitsWarper(top_p))))


def test_top_p_splits_ties_by_token_id() -> None:
    """Of equally likely tokens at the border the lower ids fall: four of 1/4 and a mass of 1/2 leave the last two."""
    scores = np.zeros((R, 4), np.float32)
    kept = np.isfinite(ours(scores, np.ones((R, 3), np.int64), **SAMPLE, top_p=0.5))
    assert kept.tolist() == [[False, False, True, True]] * R


@pytest.mark.parametrize("penalty", [0.6, 1.0, 1.8])
def test_repetition_penalty(penalty: float, rng: np.random.Generator) -> None:
    """Tokens already there, once each, without the left padding of each row."""
    tokens, scores = rng.integers(V, size=(R, 11)), draw_scores(rng, "distinct")
    expected = theirs(scores, tokens, hf.RepetitionPenaltyLogitsProcessor(penalty))
    np.testing.assert_allclose(ours(scores, tokens, repetition_penalty=penalty), expected, rtol=1e-6)
    padding = rng.integers(5, size=R)
    mask = np.arange(6)[None] >= padding[:, None]
    processor = hf.RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=torch.tensor(padding))
    expected = theirs(scores, tokens, processor)
    np.testing.assert_allclose(ours(scores, tokens, mask, repetition_penalty=penalty), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 12, 30, 2**31 - 1])
def test_no_repeat_ngram(size: int, rng: np.random.Generator) -> None:
    """N-grams of every size, up to the whole sequence and beyond it."""
    for alphabet in (2, 3, 7):
        tokens, scores = rng.integers(alphabet, size=(R, 12)), draw_scores(rng, "distinct")
        expected = theirs(scores, tokens, hf.NoRepeatNGramLogitsProcessor(size))
        np.testing.assert_array_equal(ours(scores, tokens, no_repeat_ngram_size=size), expected)


@pytest.mark.parametrize("length", [1, 4, 5, 6, 8, 9])
def test_lengths_and_forced_tokens(length: int, rng: np.random.Generator) -> None:
    """Minimum lengths and forced tokens, at, before and after the step where they act; a forced EOS wins."""
    tokens, scores, eos = rng.integers(V, size=(R, length)), draw_scores(rng, "distinct"), [4, 9]
    new = hf.MinNewTokensLengthLogitsProcessor(3, 2, eos)
    short = hf.MinLengthLogitsProcessor(9, eos)
    first, last = hf.ForcedBOSTokenLogitsProcessor(7), hf.ForcedEOSTokenLogitsProcessor(9, [8, 3])
    for settings, processors in (
        ({"eos_token_id": eos, "min_new_tokens": 2}, [new]),
        ({"eos_token_id": eos, "min_length": 9}, [short]),
        ({"forced_bos_token_id": 7}, [first]),
        ({"max_length": 9, "forced_eos_token_id": (8, 3)}, [last]),
        (
            {"eos_token_id": eos, "min_length": 9, "max_length": 9, "forced_eos_token_id": (8, 3)},
            [short, last],
        ),
        ({"min_length": 9}, []),
    ):
        np.testing.assert_array_equal(ours(scores, tokens, **settings), theirs(scores, tokens, *processors))


@pytest.mark.parametrize(("kind", "beams"), [*((kind, 1) for kind in KINDS), ("distinct", 3)])
def test_rarer_warpers(kind: str, beams: int, rng: np.random.Generator) -> None:
    """Typical, epsilon, eta and top-h sampling, narrow and wide."""
    tokens = rng.integers(V, size=(R, 5))
    keep = 1 if beams == 1 else 3
    base = SAMPLE | {"num_beams": beams, "eos_token_id": (4, 9)}
    for _ in range(4):
        scores = draw_scores(rng, kind)
        p, least = float(rng.uniform(0.05, 0.99)), float(10 ** rng.uniform(-4, -0.3))
        cases = [({"top_h": p}, hf.TopHLogitsWarper(p))] if kind == "distinct" else []
        if kind == "distinct" or keep == 1:  # which of equal tokens is spared is not specified there
            cases += [
                ({"typical_p": p}, hf.TypicalLogitsWarper(p, min_tokens_to_keep=keep)),
                ({"epsilon_cutoff": least}, hf.EpsilonLogitsWarper(least, min_tokens_to_keep=keep)),
                ({"eta_cutoff": least}, hf.EtaLogitsWarper(least, min_tokens_to_keep=keep)),
            ]
        for settings, processor in cases:
            found, expected = ours(scores, tokens, **base | settings), theirs(scores, tokens, processor)
            if kind in ("ties", "zeros"):
                found, expected = np.sort(found), np.sort(expected)
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=str(settings))


@pytest.mark.parametrize("length", [1, 2, 3, 9])
def test_phrases_that_are_favoured_or_forbidden(length: int, rng: np.random.Generator) -> None:
    """Single tokens always, longer phrases behind their beginning, which may be all that is there."""
    phrases = [[5], [1, 0], [0, 1, 2], [2, 2, 1, 0], [1, 1], [0, 0, 0, 1, 2]]
    for _ in range(5):
        tokens, scores = rng.integers(3, size=(R, length)), draw_scores(rng, "distinct")
        bias = [(phrase, float(rng.normal())) for phrase in phrases]
        expected = theirs(scores, tokens, hf.SequenceBiasLogitsProcessor({tuple(each): by for each, by in bias}))
        np.testing.assert_allclose(ours(scores, tokens, sequence_bias=bias), expected, rtol=1e-6)
        same = ours(scores, tokens, sequence_bias={tuple(each): by for each, by in bias})
        np.testing.assert_allclose(same, expected, rtol=1e-6)
        twice = [*bias, (phrases[0], 7.0), (phrases[1], -7.0)]  # the last number counts
        expected = theirs(scores, tokens, hf.SequenceBiasLogitsProcessor([[list(each), by] for each, by in twice]))
        np.testing.assert_allclose(ours(scores, tokens, sequence_bias=twice), expected, rtol=1e-6)
        expected = theirs(scores, tokens, hf.NoBadWordsLogitsProcessor(phrases, eos_token_id=[5]))
        np.testing.assert_array_equal(ours(scores, tokens, bad_words_ids=phrases, eos_token_id=5), expected)


def test_what_the_source_says(rng: np.random.Generator) -> None:
    """Its tokens favoured or disfavoured, its n-grams forbidden."""
    source = torch.tensor(SOURCE)
    for penalty in (0.6, 1.8):
        tokens, scores = rng.integers(V, size=(R, 4)), draw_scores(rng, "distinct")
        expected = theirs(scores, tokens, hf.EncoderRepetitionPenaltyLogitsProcessor(penalty, source))
        np.testing.assert_allclose(ours(scores, tokens, encoder_repetition_penalty=penalty), expected, rtol=1e-6)
    for size in (1, 2, 3, 14):
        tokens, scores = np.concatenate([SOURCE[:, :3], SOURCE[:, 4:6]], axis=1), draw_scores(rng, "distinct")
        expected = theirs(scores, tokens, hf.EncoderNoRepeatNGramLogitsProcessor(size, source))
        np.testing.assert_array_equal(ours(scores, tokens, encoder_no_repeat_ngram_size=size), expected)


@pytest.mark.parametrize("length", [3, 4, 6, 9])
def test_tokens_suppressed_and_ends_that_come_nearer(length: int, rng: np.random.Generator) -> None:
    """At the first new token or at every one; an EOS that rises; numbers that are none."""
    tokens, scores, ids = rng.integers(V, size=(R, length)), draw_scores(rng, "partly"), [7, 3, 11]
    broken = scores.copy()
    broken[:, 5], broken[:, 6] = np.nan, np.inf
    for given, settings, processor in (
        (scores, {"suppress_tokens": ids}, hf.SuppressTokensLogitsProcessor(ids)),
        (scores, {"begin_suppress_tokens": ids}, hf.SuppressTokensAtBeginLogitsProcessor(ids, 3)),
        (
            scores,
            {"eos_token_id": [4, 9], "exponential_decay_length_penalty": (2, 1.3)},
            hf.ExponentialDecayLengthPenalty((2, 1.3), [4, 9], 3),
        ),
        (broken, {"remove_invalid_values": True}, hf.InfNanRemoveLogitsProcessor()),
        (scores, {"renormalize_logits": True}, hf.LogitNormalization()),
    ):
        found, expected = ours(given, tokens, **settings), theirs(given, tokens, processor)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, err_msg=str(settings))


def test_all_in_order(rng: np.random.Generator) -> None:
    """Every processor at once, in the order of `generate()`."""
    tokens, scores = rng.integers(5, size=(R, 6)), draw_scores(rng, "distinct")
    found = ours(
        scores,
        tokens,
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        min_new_tokens=9,
        eos_token_id=4,
        do_sample=True,
        temperature=0.7,
        top_k=9,
        top_p=0.8,
        min_p=0.05,
    )
    expected = theirs(
        scores,
        tokens,
        hf.RepetitionPenaltyLogitsProcessor(1.4),
        hf.NoRepeatNGramLogitsProcessor(2),
        hf.MinNewTokensLengthLogitsProcessor(3, 9, [4]),
        hf.TemperatureLogitsWarper(0.7),
        hf.TopKLogitsWarper(9),
        hf.TopPLogitsWarper(0.8),
        hf.MinPLogitsWarper(0.05),
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
