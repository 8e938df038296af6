"""Changed keys of config.json: those that were once misread, and a sample of all others."""

from pathlib import Path

import pytest
from configs import SCALINGS, YARN, Case, bases, fuzz, outcome, singles

LINEAR = SCALINGS[0]
EQUAL = [
    Case("llama", None, {}, {"rope_scaling": LINEAR}),
    Case("llama", None, {}, {"rope_scaling": YARN}),
    Case("mixtral", None, {}, {"rope_scaling": LINEAR}),
    Case("deepseek-v3", None, {}, {"rope_scaling": YARN}),
    Case("llama", None, {}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, "rope_scaling": LINEAR}),
    Case("llama", None, {}, {"partial_rotary_factor": 0.5}),
    Case("llama-llama3", None, {}, {"original_max_position_embeddings": 9}),
    Case("gpt-neox", None, {}, {"partial_rotary_factor": 0.5, "rope_theta": 33.0}),
    Case("gemma3", None, {}, {"rope_scaling": LINEAR}),
    Case("t5", None, {}, {"dense_act_fn": "gelu_new"}),
    Case("t5", None, {}, {"feed_forward_proj": "silu"}),
    *(Case(name, None, {"tie_word_embeddings": False}, {}) for name in ("bart", "mbart", "pegasus", "marian")),
]


@pytest.mark.parametrize("case", EQUAL, ids=str)
def test_what_once_was_misread_is_equal(tmp_path: Path, case: Case) -> None:
    assert outcome(case, tmp_path) == "equal"


@pytest.mark.parametrize(
    "case",
    [
        Case("t5", None, {}, {"dense_act_fn": "tanh"}),
        Case("gpt2", None, {}, {"num_hidden_layers": 7}),
        Case("phi3", None, {}, {"rope_scaling": LINEAR}),
    ],
    ids=str,
)
def test_what_cannot_be_equal_is_refused_by_name(tmp_path: Path, case: Case) -> None:
    assert outcome(case, tmp_path) in ("refused", "theirs refuses")


def test_every_family_is_tried() -> None:
    cases = [*singles()]
    assert {case[:2] for case in cases} == set(bases())
    assert len(cases) > 5000


def test_some_configurations() -> None:
    assert not fuzz(4, seed=1).failures


@pytest.mark.slow
@pytest.mark.long
def test_many_configurations() -> None:
    assert not fuzz(450, seed=2).failures
