"""Calls of `generate()` drawn by seed, in transformers and here: as many as wanted, and how many of them differ.

What a compiled program is made for, a mode, is drawn first, and then many calls of it: settings and inputs together.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from differences import difference
from hf_decoders import FURTHER
from hf_models import DECODERS, EOS, MODELS, PAD, START
from hf_pairs import Pair, open_pair

from jaxformer import InputError

LONGEST, VOCAB = 15, 45  # tokens from VOCAB on are not in every vocabulary
MODES = 3  # of each family with a language-model head; of those in `FURTHER`, like others but in small numbers, one
SEARCHES = ("greedy", "one likely token drawn", "beams")
# What is active or not in a program: each with a chance of a third.
ACTIVE = (
    "least",
    "sequence_bias",
    "encoder_repetition_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "bad_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "suppress_tokens",
    "begin_suppress_tokens",
    "renormalize_logits",
    "remove_invalid_values",
)
Call = dict[str, Any]


class Mode(NamedTuple):
    """What one compiled program serves: a model, a way to search, the rows of a batch, what is active."""

    model: str
    search: str
    beams: int  # or samples
    rows: int
    ends: int  # EOS tokens
    prompted: bool  # an encoder-decoder's decoder goes on from decoder_input_ids
    active: frozenset[str]


def modes(seed: int = 0) -> list[Mode]:
    """Three for each family with a language-model head, which differ in the search; of further families one."""
    families: dict[str, list[str]] = {}
    for name, (config, _) in {**DECODERS, **MODELS}.items():
        families.setdefault(config.model_type, []).append(name)
    further = [names for names in families.values() if names[0] in FURTHER]
    turns = [(turn, names) for turn in range(MODES) for names in families.values() if names[0] not in FURTHER]
    turns += [(seed + index, names) for index, names in enumerate(further)]
    rng, found, size = np.random.default_rng([seed, 0]), [], len(families) - len(further)
    for index, (turn, names) in enumerate(turns):
        search = SEARCHES[(index % size + turn) % len(SEARCHES)]
        beams = {"greedy": 1, "beams": int(rng.integers(2, 6))}.get(search, int(rng.integers(1, 4)))
        active = frozenset(str(name) for name in ACTIVE if rng.random() < 1 / 3)
        rows, ends = int(rng.integers(1, 5)), int(rng.choice([1, 1, 2, 3]))
        found.append(Mode(names[turn % len(names)], search, beams, rows, ends, bool(rng.integers(2)), active))
    return found


def draw_settings(rng: np.random.Generator, mode: Mode, prompt: int) -> Call:
    """The settings of one call: all that a compiled program takes as an argument."""
    token = lambda: int(rng.integers(3, VOCAB))  # noqa: E731
    some = lambda most: [token() for _ in range(rng.integers(1, most))]  # noqa: E731
    limit = int(rng.integers(1, LONGEST))
    ends = [EOS, *rng.permutation(np.arange(3, VOCAB))[: mode.ends - 1].tolist()]
    call: Call = {
        "eos_token_id": rng.permutation(ends).tolist(),
        "pad_token_id": int(rng.choice([PAD, PAD, 0, ends[0], token()])),
        **({"max_new_tokens": limit} if rng.random() < 0.7 else {"max_length": prompt + limit}),
    }
    if mode.search == "beams":
        call |= {
            "num_beams": mode.beams,
            "num_return_sequences": int(rng.integers(1, mode.beams + 1)),
            "length_penalty": float(rng.choice([-1.0, 0.0, 0.5, 1.0, 2.0])),
            "early_stopping": [False, True, "never"][rng.integers(3)],
        }
    elif mode.search != "greedy":
        call |= {"do_sample": True, "top_k": 1, "num_return_sequences": mode.beams}
        call |= {"temperature": float(rng.uniform(0.3, 2)), "top_p": 0.9, "typical_p": 0.9}
    least = {"min_new_tokens": int(rng.integers(1, limit + 3))}
    if rng.random() < 0.5:
        least = {"min_length": int(rng.integers(1, prompt + limit + 1))}
    drawn = {
        "least": least,
        "sequence_bias": [[[token()], float(rng.normal())], [some(4), 4.0], [[token(), token()], float(rng.normal())]],
        "encoder_repetition_penalty": float(rng.choice([0.7, 1.2])),
        "repetition_penalty": float(rng.choice([0.8, 1.3, 2.0])),
        "no_repeat_ngram_size": int(rng.integers(1, 5)),
        "encoder_no_repeat_ngram_size": int(rng.integers(1, 4)),
        "bad_words_ids": [[token()], [token(), token()], [EOS]],
        "forced_bos_token_id": token(),
        "forced_eos_token_id": ends[0] if rng.random() < 0.5 else [ends[0]],
        "exponential_decay_length_penalty": (int(rng.integers(0, 5)), float(rng.uniform(1.01, 1.5))),
        "suppress_tokens": [*some(6), *[EOS] * int(rng.integers(2))],
        "begin_suppress_tokens": [*some(6), *[EOS] * int(rng.integers(2))],
        "renormalize_logits": True,
        "remove_invalid_values": True,
    }
    for name in sorted(mode.active):
        call |= drawn[name] if name == "least" else {name: drawn[name]}
    return call


def draw_call(rng: np.random.Generator, mode: Mode, encoder: bool) -> Call:
    """The arguments of one call: settings, and token ids that are padded as the model wants it."""
    T, B = int(rng.integers(1, 10)), mode.rows
    tokens = rng.integers(0 if rng.random() < 0.2 else 3, VOCAB, (B, T))
    lengths, places = (
        np.append(rng.integers(1, T + 1, B - 1), rng.integers(max(1, T - 2), T + 1))[:, None],
        np.arange(T),
    )
    if not encoder:
        mask = places[None] >= T - lengths
    elif rng.random() < 0.7:
        mask = places[None] < lengths
    else:  # holes
        mask = rng.random((B, T)) < 0.7
        mask[np.arange(B), rng.integers(T, size=B)] = True
    call: Call = {"input_ids": tokens, "attention_mask": mask.astype(rng.choice([int, bool]))}
    prompt = 1 if encoder else T
    if encoder and mode.prompted:
        start = rng.integers(3, VOCAB, (B, int(rng.integers(1, 7))))
        start[:, 0] = np.where(rng.random(B) < rng.choice([0, 0.5, 1]), START, start[:, 0])
        call["decoder_input_ids"] = start
        prompt = start.shape[1] + (not (start[:, 0] == START).any())
    call |= draw_settings(rng, mode, prompt)
    if not encoder and call["pad_token_id"] not in call["eos_token_id"] and rng.random() < 0.3:
        call["input_ids"] = np.where(mask, np.where(tokens == call["pad_token_id"], 46, tokens), call["pad_token_id"])
        del call["attention_mask"]  # to be seen in the ids
    return call


def outcome(pair: Pair, call: Call) -> str:
    """What differs in one call: "" nothing, "tie: ..." a choice between equals, else what and where."""
    asked = {"output_scores": True, "output_logits": True}
    ours = theirs = None
    try:
        ours = pair.ours.generate(**call, **asked)
    except InputError as error:
        refused = f"refused: {error}"
    arrays = {name: torch.tensor(value) for name, value in call.items() if isinstance(value, np.ndarray)}
    try:
        theirs = pair.theirs.generate(**{"do_sample": False} | call | arrays, **asked, return_dict_in_generate=True)
    except (ValueError, RuntimeError) as error:
        return "" if ours is None else f"transformers alone refuses: {error}"
    return refused if ours is None else difference(pair, call, ours, theirs)


def differences(mode: Mode, calls: int, rng: np.random.Generator) -> Iterator[str]:
    """What differs, call by call, with the call: see `outcome`."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        pair = open_pair(mode.model, Path(folder))
        for _ in range(calls):
            call = draw_call(rng, mode, pair.ours.model.encoder is not None)
            found = outcome(pair, call)
            shown = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in call.items()}
            yield found and f"{found} ({mode.model} {shown})"


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
    counts, every = {"equal": 0, "ties": 0, "different": 0}, modes(arguments.seed)
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
