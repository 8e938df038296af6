"""Calls of `generate()` drawn by seed, in transformers and here: as many as wanted, and how many of them differ."""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from hf_models import DECODERS, EOS, MODELS
from hf_pairs import Pair, open_pair

from jaxformer.config import MoEConfig

TIE, ROUTER_TIE = 1e-4, 1e-5  # below these distances, of scores of tokens and of experts, rounding decides
LONGEST, ROWS = 15, 3
SEARCHES = {
    "greedy": {},
    "one likely token drawn": {"do_sample": True, "top_k": 1, "temperature": 0.7, "top_p": 0.9, "typical_p": 0.9},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "beams, two ends": {"num_beams": 4, "num_return_sequences": 4, "eos_token_id": [EOS, 17]},
}
PROCESSORS = ("none", "repetition", "bias")


class Mode(NamedTuple):
    """What one compiled program serves: a model, a way to search, and the processors at work."""

    model: str
    search: str
    processors: str


def modes() -> list[Mode]:
    """Sixty of them: every family with a language-model head in two or three."""
    families: dict[str, list[str]] = {}
    for name, (config, _) in {**DECODERS, **MODELS}.items():
        families.setdefault(config.model_type, []).append(name)
    kinds = [(search, processors) for processors in PROCESSORS for search in SEARCHES]
    found = []
    for turn in range(3):
        for index, names in enumerate(families.values()):
            found.append(Mode(names[turn % len(names)], *kinds[(index + 5 * turn) % len(kinds)]))
    return found[:60]


def draw_settings(rng: np.random.Generator, mode: Mode) -> dict[str, Any]:
    """The settings of one call: all that a compiled program takes as an argument."""
    settings = {"max_new_tokens": int(rng.integers(2, LONGEST)), "eos_token_id": EOS, **SEARCHES[mode.search]}
    limit = settings["max_new_tokens"]
    if "num_beams" in settings:
        settings["length_penalty"] = float(rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0]))
        settings["early_stopping"] = [False, True, "never"][rng.integers(3)]
    if mode.processors == "repetition":
        settings |= {
            "min_new_tokens": int(rng.integers(1, limit + 3)),
            "repetition_penalty": float(rng.choice([0.8, 1.3, 2.0])),
            "encoder_repetition_penalty": float(rng.choice([0.7, 1.2])),
            "no_repeat_ngram_size": int(rng.integers(1, 4)),
            "encoder_no_repeat_ngram_size": int(rng.integers(2, 4)),
            "forced_eos_token_id": EOS,
        }
    if mode.processors == "bias":
        token = lambda: int(rng.integers(3, 45))  # noqa: E731
        settings |= {
            "sequence_bias": [[[token()], float(rng.normal())], [[token(), token()], 4.0]],
            "bad_words_ids": [[token()], [token(), token()], [EOS]],
            "suppress_tokens": [token(), token()],
            "begin_suppress_tokens": [token(), EOS],
            "exponential_decay_length_penalty": (int(rng.integers(0, 5)), float(rng.uniform(1.01, 1.5))),
            "renormalize_logits": True,
        }
    return settings


def draw_inputs(rng: np.random.Generator, encoder: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [ROWS, T] and their mask: padded on the left for a decoder, on the right for an encoder."""
    T = int(rng.integers(3, 10))
    lengths = np.append(rng.integers(1, T + 1, ROWS - 1), T - 1)[:, None]
    places = np.arange(T)[None]
    return rng.integers(3, 45, (ROWS, T)), (places < lengths if encoder else places >= T - lengths).astype(int)


def differences(mode: Mode, calls: int, rng: np.random.Generator) -> Iterator[str]:
    """What differs, call by call: "" nothing, "tie: ..." a choice between equals, else what and where."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        pair = open_pair(mode.model, Path(folder))
        for _ in range(calls):
            settings = draw_settings(rng, mode)
            tokens, mask = draw_inputs(rng, pair.ours.model.encoder is not None)
            theirs = pair.theirs.generate(
                torch.tensor(tokens),
                attention_mask=torch.tensor(mask),
                output_scores=True,
                return_dict_in_generate=True,
                **{"do_sample": False} | settings,
            )
            ours = pair.ours.generate(tokens, mask, output_scores=True, **settings)
            found = difference(mode, settings, ours, theirs)
            if (
                found
                and not found.startswith("tie")
                and routing_margin(pair, theirs.sequences.numpy(), mask) < ROUTER_TIE
            ):
                found = f"tie: of a router: {found}"
            yield found


def routing_margin(pair: Pair, sequences: np.ndarray, mask: np.ndarray) -> float:
    """By how much the last expert or group that a token was sent to was better than the next; infinity without any."""
    model, margins = pair.ours.model, [np.inf]
    if not any(isinstance(block.feed_forward, MoEConfig) for block in model.config.main.blocks):
        return np.inf
    mask = np.repeat(mask, len(sequences) // len(mask), axis=0)
    valid = np.concatenate([mask == 1, np.ones((len(sequences), sequences.shape[1] - mask.shape[1]), bool)], axis=1)
    places = jnp.asarray(np.maximum(np.cumsum(valid, axis=1) - 1, 0))
    observed = model.observe(jnp.asarray(sequences), inputs_valid=jnp.asarray(valid), position_ids=places)
    for block, seen in zip(model.decoder.blocks, observed.decoder.routing, strict=True):
        if seen is None:
            continue
        experts, router = block.feed_forward, block.feed_forward.config.router
        scores, best = np.asarray(seen.probabilities)[valid], 1
        if experts.correction is not None:
            scores, best = 1 / (1 + np.exp(-np.asarray(seen.logits)[valid])) + np.asarray(experts.correction[...]), 2
        grouped = np.sort(scores.reshape(len(scores), router.groups, -1), axis=-1)
        strength = grouped[..., -best:].sum(axis=-1)
        ranked = np.sort(strength, axis=-1)[:, ::-1]
        if router.groups > router.kept_groups:
            margins.append(np.min(ranked[:, router.kept_groups - 1] - ranked[:, router.kept_groups]))
        kept = np.where(strength >= ranked[:, [router.kept_groups - 1]], 0, -np.inf)[..., None]
        among = np.sort((grouped + kept).reshape(len(scores), -1), axis=-1)[:, ::-1]
        chosen = experts.config.chosen
        margins.append(np.min(among[:, chosen - 1] - among[:, chosen]))
    return float(min(margins))


def difference(mode: Mode, settings: dict[str, Any], ours: Any, theirs: Any) -> str:
    """What differs in one call."""
    expected, beams = theirs.sequences.numpy(), "num_beams" in settings
    equal = ours.sequences.shape == expected.shape and np.array_equal(ours.sequences, expected)
    if beams:
        scores = theirs.sequences_scores.numpy()
        if np.abs(ours.sequences_scores - scores).max() > TIE * max(1, np.abs(scores).max()):
            return f"{mode} {settings}: scores {ours.sequences_scores} instead of {scores}"
        if equal and ours.beam_indices.tolist() != theirs.beam_indices.tolist():
            return f"tie: {mode}: other beams led to the same tokens"
    if equal:
        return ""
    found = f"{mode} {settings}: {ours.sequences.tolist()} instead of {expected.tolist()}"
    if beams:  # equal scores of other tokens
        return f"tie: {found}"
    width, P = min(ours.sequences.shape[1], expected.shape[1]), expected.shape[1] - len(theirs.scores)
    row, column = np.argwhere(ours.sequences[:, :width] != expected[:, :width])[0]
    best, second = theirs.scores[column - P][row].topk(2).values.tolist()
    return f"tie: {found}" if best - second < TIE else found


def main() -> None:
    """Draw, compare, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="1/1", help="which part of the modes, such as 2/4")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # two processes side by side would wait for each other's threads
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    part, parts = map(int, arguments.part.split("/"))
    counts, every = {"equal": 0, "ties": 0, "different": 0}, modes()
    for index, mode in list(enumerate(every))[part - 1 :: parts]:
        calls = arguments.calls // len(every) + (index < arguments.calls % len(every))
        for found in differences(mode, calls, np.random.default_rng([arguments.seed, index])):
            counts["equal" if not found else "ties" if found.startswith("tie: ") else "different"] += 1
            if found:
                print(found, flush=True)
    total = sum(counts.values())
    print(f"{total} calls: {counts['equal']} equal, {counts['ties']} ties, {counts['different']} different")
    sys.exit(bool(counts["different"]))


if __name__ == "__main__":
    main()
