"""Greedy decoding and beam search against `generate()` of transformers: every token, every score."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_models import EOS, save_model

from jaxformer import generate
from jaxformer.pretrained import from_pretrained

CALLS = 40


def draw_settings(rng: np.random.Generator) -> dict[str, object]:
    """One call's settings, from everything that greedy decoding and beam search know; few modes, to compile seldom."""
    beams = int(rng.choice([1, 3, 4]))
    limit = int(rng.integers(1, 16))
    settings: dict[str, object] = {
        "num_beams": beams,
        "num_return_sequences": int(rng.integers(1, beams + 1)),
        "max_new_tokens": limit,
        "eos_token_id": [EOS, int(rng.integers(3, 40))] if rng.random() < 0.3 else EOS,
    }
    if beams > 1:
        settings["length_penalty"] = float(rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0]))
        settings["early_stopping"] = [False, True, "never"][rng.integers(3)]
    if rng.random() < 0.5:
        settings["min_new_tokens"] = int(rng.integers(1, limit + 1))
        settings["repetition_penalty"] = float(rng.choice([0.8, 1.3, 2.0]))
        settings["no_repeat_ngram_size"] = int(rng.integers(1, 4))
        if limit > 1:  # else one candidate is possible, and the other beams are ties of nothing
            settings["forced_eos_token_id"] = EOS
    return settings


@pytest.mark.slow
@pytest.mark.parametrize("name", ["marian", "marian-two-vocabularies", "bart"])
def test_tokens_and_scores_equal_generate(tmp_path: Path, name: str) -> None:
    reference = save_model(name, tmp_path)
    lm = from_pretrained(tmp_path)
    model, base = lm.model, lm.generation
    rng = np.random.default_rng(11)
    lengths = set()
    for _ in range(CALLS):
        settings = draw_settings(rng)
        source = rng.integers(3, 45, (3, 6))
        valid = np.arange(6) < rng.integers(1, 7, 3)[:, None]
        with torch.no_grad():
            expected = reference.generate(
                torch.tensor(source),
                attention_mask=torch.tensor(valid),
                output_scores=True,
                return_dict_in_generate=True,
                do_sample=False,
                **settings,
            )
        ours = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        actual = generate(model, jnp.asarray(source), base, inputs_mask=jnp.asarray(valid), **ours)
        np.testing.assert_array_equal(actual.sequences, expected.sequences.numpy(), err_msg=str(settings))
        if settings["num_beams"] > 1:
            scores = expected.sequences_scores.numpy()
            bound = 1e-5 * max(1, np.abs(scores).max())
            np.testing.assert_allclose(actual.scores, scores, rtol=0, atol=bound, err_msg=str(settings))
        lengths.update((actual.sequences != 1).sum(axis=1).tolist())
    assert len(lengths) > CALLS // 5, "the models should end early, late, and at the limit"
