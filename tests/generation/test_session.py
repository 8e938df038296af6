"""Generations in parts: as far as they are, saved, and continued in another process."""

import functools
import subprocess
import sys
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pytest
from generation.chain import ChainModel, make_tables

from jaxformer import InputError, Session, generate

V = 11
SLOW = functools.partial(pytest.param, marks=pytest.mark.slow)
CALLS = {
    "greedy": {},
    "sampled": {"do_sample": True, "num_return_sequences": 2, "seed": 5},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "output_scores": True},
}


def begin(mode: str) -> tuple[Session, dict]:
    """A session, and the settings with which `generate` gives the same; the same in every process."""
    rng = np.random.default_rng(4)
    model, prompts = ChainModel(make_tables(rng, V), encoder=False), rng.integers(V, size=(2, 5))
    settings = {"max_new_tokens": 23, "eos_token_id": 3, "repetition_penalty": 1.3, **CALLS[mode]}
    return Session(model, prompts, **settings), {"model": model, "inputs": prompts, **settings}


def finish(session: Session) -> np.ndarray:
    while not session.finished:
        session.advance()
    return session.result().sequences


@pytest.mark.parametrize("mode", [SLOW("greedy"), "sampled", "beams"])
def test_a_session_ends_where_generate_does(mode: str) -> None:
    session, call = begin(mode)
    expected = generate(**call)
    assert finish(session).tolist() == expected.sequences.tolist()
    result = session.result()
    assert result.sequences_scores.tolist() == expected.sequences_scores.tolist()
    if mode == "beams":
        assert result.beam_indices.tolist() == expected.beam_indices.tolist()
        np.testing.assert_array_equal(result.scores, expected.scores)


@pytest.mark.parametrize("mode", [SLOW("sampled"), "beams"])
def test_what_was_saved_goes_on_in_another_process(mode: str, tmp_path: Path) -> None:
    """To the same tokens as what was not interrupted."""
    session, _ = begin(mode)
    session.advance()
    length = int(session.found.length)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", session.state)
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
import orbax.checkpoint as ocp
from generation.test_session import begin, finish
session, _ = begin({mode!r})
with ocp.StandardCheckpointer() as checkpointer:
    session.state = checkpointer.restore({str(tmp_path / "state")!r}, session.state)
print(int(session.found.length), finish(session).tolist())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{length} {finish(session).tolist()}"


def test_maps_come_from_whole_generations() -> None:
    with pytest.raises(InputError, match="attention maps belong to whole generations"):
        Session(ChainModel(make_tables(np.random.default_rng(0), V), encoder=False), [[1]], output_attentions=True)
