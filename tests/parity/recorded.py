"""Calls of `generate()` that were recorded from transformers, and whether ours give the same.

Those of a family, or of all: python tests/parity/recorded.py [gpt2 llama t5 bart marian]
"""

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxformer.generation import api, beam, sampling
from jaxformer.pretrained import Pretrained, from_pretrained

FOLDER = Path(__file__).parents[1] / "goldens/generation"
TIE = 1e-4  # below this margin, rounding decides
LOGITS = 1e-5  # of scores of a step, relative to the largest where that exceeds 1: penalties multiply them


class Case(NamedTuple):
    """One call: model, arguments, what came back, and the smallest gap between candidates at any decision."""

    id: str
    model: str
    group: str
    inputs: dict[str, Any]
    kwargs: dict[str, Any]
    expect: dict[str, Any]
    margin: float | None
    has_scores: bool


def cases() -> list[Case]:
    """All of them; drawn ones last, as each of those clears what was compiled for others."""
    lines = (json.loads(line) for line in (FOLDER / "cases.jsonl").read_text().splitlines())
    found = [Case(**{key: value for key, value in line.items() if key in Case._fields}) for line in lines]
    return sorted(found, key=lambda case: "draws" in case.expect)


def replay(case: Case, lm: Pretrained, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What ours gives; where tokens were drawn, those that were recorded."""
    settings = dict(case.kwargs)
    if "stop_strings" in settings:
        settings["token_texts"] = json.loads((FOLDER / "meta.json").read_text())["stop_string_vocab"]
    draws = case.expect.get("draws")
    if draws is None:
        return call(case, lm, settings)
    with monkeypatch.context() as patch:
        recorded = jnp.asarray(draws)
        for module, name in ((sampling, "draw_token"), (beam, "draw_candidates")):
            patch.setattr(module, "row_keys", lambda seeds, copies, step: step)
            patch.setattr(module, name, lambda *arguments: recorded[arguments[-1]])
        api.generate_compiled.clear()
        try:
            return call(case, lm, settings)
        finally:
            api.generate_compiled.clear()


def call(case: Case, lm: Pretrained, settings: dict[str, Any]) -> Any:
    """The call itself."""
    inputs = dict(case.inputs)
    return lm.generate(
        inputs.pop("input_ids", None), inputs.pop("attention_mask", None), output_scores=True, **inputs, **settings
    )


def difference(case: Case, found: Any, scores: dict[str, np.ndarray]) -> str:
    """What is unlike the recording; empty if nothing is."""
    expect = case.expect
    if found.sequences.tolist() != expect["sequences"]:
        return f"{case.id} {case.kwargs}: {found.sequences.tolist()} instead of {expect['sequences']}"
    if "beam_indices" in expect and found.beam_indices.tolist() != expect["beam_indices"]:
        return f"{case.id}: beam_indices {found.beam_indices.tolist()} instead of {expect['beam_indices']}"
    if "sequences_scores" in expect and np.abs(found.sequences_scores - expect["sequences_scores"]).max() > TIE:
        return f"{case.id}: sequences_scores {found.sequences_scores} instead of {expect['sequences_scores']}"
    if len(found.scores) != expect["steps"]:
        return f"{case.id}: {len(found.scores)} steps instead of {expect['steps']}"
    if case.has_scores:
        ours, theirs = found.scores, scores[case.id]
        if "draws" in expect and found.beam_indices is not None:
            # Where fewer candidates are left than drawn, beams die, in an order that nothing decides: those that lead
            # to a result are compared.
            steps, rows = np.arange(len(ours)), np.maximum(found.beam_indices, 0)
            ours, theirs = ours[steps[None], rows], theirs[steps[None], rows]
        if ours.shape != theirs.shape or (np.isinf(ours) != np.isinf(theirs)).any():
            return f"{case.id}: scores of another shape, or infinite elsewhere"
        ours, theirs = ours[np.isfinite(ours)], theirs[np.isfinite(theirs)]
        if np.abs(ours - theirs).max() > LOGITS * max(1, np.abs(theirs).max()):
            return f"{case.id}: scores differ by {np.abs(ours - theirs).max()} of {np.abs(theirs).max()}"
    return ""


def recorded_scores() -> dict[str, np.ndarray]:
    """The processed scores of some calls."""
    return load_file(FOLDER / "scores.safetensors")


def main(families: list[str]) -> None:
    """Replay, compare, count."""
    scores, patch, opened = recorded_scores(), pytest.MonkeyPatch(), {}
    total = ties = different = 0
    for case in cases():
        if families and case.model.removesuffix("_eos") not in families:
            continue
        if case.model not in opened:
            opened[case.model] = from_pretrained(FOLDER / "models" / case.model)
        total += 1
        if found := difference(case, replay(case, opened[case.model], patch), scores):
            is_tie = case.margin is not None and case.margin < TIE
            ties, different = ties + is_tie, different + (not is_tie)
            print(f"{'tie: ' * is_tie}{found}", flush=True)
    print(f"{total} recorded calls: {total - ties - different} equal, {ties} ties, {different} different")
    sys.exit(bool(different))


if __name__ == "__main__":
    main(sys.argv[1:])
