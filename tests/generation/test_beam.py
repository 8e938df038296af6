"""Beam search: against the plain Python oracle, against all sequences there are, and rule by rule."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from generation.beam_oracle import Settings, beam_search, log_softmax
from generation.chain import CODES, empty_cache, logits_after, make_step, make_tables

from jaxformer.generation import decode

V = 7


def penalize(penalty: float) -> Callable:
    """Repetition penalty: tokens already there count as less likely."""

    def process(scores: list[float], tokens: list[int], prompt: int) -> list[float]:
        return [(s * penalty if s < 0 else s / penalty) if token in tokens else s for token, s in enumerate(scores)]

    return process


def ban_ngrams(n: int) -> Callable:
    """No n-gram twice."""

    def process(scores: list[float], tokens: list[int], prompt: int) -> list[float]:
        ngrams = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
        recent = tokens[len(tokens) - n + 1 :]
        return [-math.inf if (*recent, token) in ngrams else s for token, s in enumerate(scores)]

    return process


def at_least(new: int, eos: tuple[int, ...]) -> Callable:
    """No EOS before `new` tokens were generated."""

    def process(scores: list[float], tokens: list[int], prompt: int) -> list[float]:
        return [-math.inf if token in eos and len(tokens) - prompt < new else s for token, s in enumerate(scores)]

    return process


def force_last(token: int, max_length: int) -> Callable:
    """The last token is this one."""

    def process(scores: list[float], tokens: list[int], prompt: int) -> list[float]:
        return (
            [0.0 if t == token else -math.inf for t in range(len(scores))] if len(tokens) == max_length - 1 else scores
        )

    return process


def draw_settings(rng: np.random.Generator, eos: tuple[int, ...], processed: bool) -> dict:
    """Settings that all run in the same compiled program."""
    drawn = {
        "max_new_tokens": int(rng.integers(2, 11)),
        "length_penalty": float(rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0])),
        "early_stopping": [False, True, "never"][rng.integers(3)],
        "eos_token_id": eos or None,
    }
    if processed:
        drawn |= {
            "repetition_penalty": float(rng.choice([0.7, 1.5])),
            "no_repeat_ngram_size": int(rng.choice([2, 3])),
            "min_new_tokens": int(rng.integers(1, drawn["max_new_tokens"])),
            "forced_eos_token_id": int(rng.integers(V)),
        }
    return drawn


@pytest.mark.parametrize(
    ("beams", "eos", "processed"),
    [
        (2, (), False),
        (2, (1,), False),
        (3, (1,), False),
        pytest.param(3, (1, 4), True, marks=pytest.mark.smoke),
        pytest.param(5, (4, 1), False, marks=pytest.mark.slow),
        pytest.param(5, (0,), True, marks=pytest.mark.slow),
        pytest.param(2, (0, 1, 2), False, marks=pytest.mark.slow),
        pytest.param(4, (), True, marks=pytest.mark.slow),
    ],
)
def test_agrees_with_the_oracle(beams: int, eos: tuple[int, ...], processed: bool, rng: np.random.Generator) -> None:
    """Tokens, scores and order of every returned sequence, over random models and settings."""
    for _ in range(80):
        tables, prompts = make_tables(rng, V), rng.integers(V, size=(3, 4))
        drawn = draw_settings(rng, eos, processed)
        max_length = 4 + drawn["max_new_tokens"]
        processors = ()
        if processed:
            processors = (
                penalize(drawn["repetition_penalty"]),
                ban_ngrams(drawn["no_repeat_ngram_size"]),
                at_least(drawn["min_new_tokens"], eos),
                force_last(drawn["forced_eos_token_id"], max_length),
            )
        settings = Settings(beams, max_length, eos, drawn["length_penalty"], drawn["early_stopping"], processors)
        expected = beam_search(lambda tokens: logits_after(tables, tokens), prompts.tolist(), settings)  # noqa: B023
        found = decode(make_step(tables), empty_cache(3), prompts, num_beams=beams, num_return_sequences=beams, **drawn)
        rows = [beam for finished in expected for beam in finished]
        width = max(len(beam.tokens) for beam in rows)
        padding = eos[0] if eos else 0
        assert found.sequences.shape == (3 * beams, width)
        for beam, sequence, score in zip(rows, found.sequences.tolist(), found.sequences_scores, strict=True):
            if beam.score > -1e8:  # else fewer sequences were possible than beams, and this place is nobody's
                assert sequence == beam.tokens + [padding] * (width - len(beam.tokens)), drawn
                assert score == pytest.approx(beam.score, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("length_penalty", [-0.5, 0.0, 1.0, 1.7])
def test_wide_beams_find_the_best_of_all_sequences(length_penalty: float, rng: np.random.Generator) -> None:
    """With 5 tokens and 4 steps, 320 beams hold every sequence, so the search is exhaustive."""
    tables, eos, steps = make_tables(rng, 5, scale=1.0), 2, 4
    for start in range(2):
        scored = []
        for length in range(1, steps + 1):
            for tokens in itertools.product(range(5), repeat=length):
                ends = tokens[-1] == eos or length == steps
                if ends and eos not in tokens[:-1]:
                    path = [start, *tokens]
                    total = sum(
                        log_softmax(logits_after(tables, path[: i + 1]))[token] for i, token in enumerate(tokens)
                    )
                    scored.append((total / length**length_penalty, path))
        best = sorted(scored, reverse=True)[:3]
        found = decode(
            make_step(tables),
            empty_cache(1),
            [[start]],
            num_beams=320,
            num_return_sequences=3,
            max_new_tokens=steps,
            eos_token_id=eos,
            length_penalty=length_penalty,
            early_stopping="never",
        )
        assert [row[: len(path)] for row, (_, path) in zip(found.sequences.tolist(), best, strict=True)] == [
            path for _, path in best
        ]
        np.testing.assert_allclose(found.sequences_scores, [score for score, _ in best], rtol=1e-5)


def test_pads_with_the_pad_token_and_takes_zero_for_none(rng: np.random.Generator) -> None:
    """Rows shorter than the longest end in padding; pad token 0 counts as unset in beam search, as in `generate()`."""
    tables = make_tables(rng, V)
    tables[:, 3] += 2.0
    call = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9, "eos_token_id": 3}
    for pad, shown in ((5, 5), (0, 3), (None, 3)):
        found = decode(make_step(tables), empty_cache(1), [[1]], pad_token_id=pad, **call)
        tails = [row[list(row).index(3) + 1 :] for row in found.sequences.tolist() if 3 in row]
        assert any(tails)
        assert all(token == shown for tail in tails for token in tail)


def test_fewer_sequences_than_beams(rng: np.random.Generator) -> None:
    """Two tokens and two steps make four sequences: they come first, no place is longer, the fifth scores as none."""
    tables = make_tables(rng, 2)
    call = {"num_beams": 5, "num_return_sequences": 5, "max_new_tokens": 2, "length_penalty": 1.0}
    found = decode(make_step(tables), empty_cache(1), [[1]], **call)
    assert found.sequences.shape == (5, 3)
    assert sorted(found.sequences[:4, 1:].tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert (found.sequences_scores[:4] > -100).all()
    assert found.sequences_scores[4] < -1e8


def test_returns_the_best_first_and_no_wider_than_they_are(rng: np.random.Generator) -> None:
    """The sequences returned are the first of all finished, cut to the longest of these alone."""
    step = make_step(make_tables(rng, V))
    call = {"num_beams": 4, "max_new_tokens": 12, "eos_token_id": 3, "length_penalty": 0.0}
    everything = decode(step, empty_cache(3), [[1], [2], [4]], num_return_sequences=4, **call)
    first = decode(step, empty_cache(3), [[1], [2], [4]], **call)
    assert (np.diff(everything.sequences_scores.reshape(3, 4)) <= 0).all()
    assert first.sequences_scores.tolist() == everything.sequences_scores[::4].tolist()
    width = first.sequences.shape[1]
    assert first.sequences.tolist() == everything.sequences[::4, :width].tolist()
    assert all(3 in row or width == 13 for row in first.sequences.tolist())
    assert width < everything.sequences.shape[1]


def test_beam_sampling_draws_in_proportion(rng: np.random.Generator) -> None:
    """The best of two drawn beams, after one step, is the likelier of four draws without replacement."""
    tables = np.zeros((CODES, 4), np.float32) + np.log(np.array([0.4, 0.3, 0.2, 0.1], np.float32))
    found = decode(
        make_step(tables),
        empty_cache(4000),
        [[1]] * 4000,
        num_beams=2,
        do_sample=True,
        max_new_tokens=1,
        top_k=0,
        seed=3,
    )
    # All four tokens are drawn; the first two drawn may finish, and the likelier of those is returned.
    p = [0.4, 0.3, 0.2, 0.1]
    expected = np.zeros(4)
    for a, b in itertools.permutations(range(4), 2):
        expected[min(a, b)] += p[a] * p[b] / (1 - p[a])
    counts = np.bincount(found.sequences[:, 1], minlength=4)
    assert abs(counts / 4000 - expected).max() < 4 * 0.5 / math.sqrt(4000)
    assert counts[3] == 0


def test_beam_sampling_follows_its_seed(rng: np.random.Generator) -> None:
    """Equal seeds, equal beams; a row's draws do not depend on the other rows."""
    step, prompts = make_step(make_tables(rng, V, scale=0.3)), [[1, 2], [3, 4], [5, 6]]
    call = {"num_beams": 3, "do_sample": True, "max_new_tokens": 8, "eos_token_id": 3}
    first = decode(step, empty_cache(3), prompts, seed=1, **call)
    assert first.sequences.tolist() == decode(step, empty_cache(3), prompts, seed=1, **call).sequences.tolist()
    assert first.sequences.tolist() != decode(step, empty_cache(3), prompts, seed=2, **call).sequences.tolist()
    others = decode(step, empty_cache(3), [*prompts[:2], [1, 1]], seed=1, **call)
    assert others.sequences_scores[:2].tolist() == first.sequences_scores[:2].tolist()
