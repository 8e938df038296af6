"""A process that lives long: thousands of calls over a thousand modes and shapes, alone and in threads.

Each call is drawn by its number: the same number is the same call, and has to give the same tokens, whether its program
is still there or has to be compiled again. Memory maps and resident memory have to stay bounded.
"""

import ctypes
import functools
import gc
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tally import Tally, main

from jaxformer import GenerationConfig, Session, Transformer, decoder_only, encoder_decoder, stream
from jaxformer.generation.compiling import PROGRAMS, maps_in_use, most_maps
from jaxformer.pretrained import Pretrained

VOCAB, EOS = 11, 2
REPEATED, OLD = 40, 0.2  # calls made again: mostly one of so many recent ones, whose programs may still be there
THREADS = 0.1  # how many steps are three calls at once


@functools.cache
def models() -> tuple[Pretrained, Pretrained]:
    """A decoder and an encoder-decoder, so small that compiling is all that takes time."""
    plain = decoder_only(VOCAB, length=128, dim=4, layers=1, heads=1)
    pair = encoder_decoder(VOCAB, dim=4, layers=1, heads=1, dropout=0.0)
    return as_model(Transformer(plain, rngs=nnx.Rngs(0))), as_model(Transformer(pair, rngs=nnx.Rngs(1)))


def as_model(model: Transformer) -> Pretrained:
    """The model with settings for generation."""
    settings = GenerationConfig(eos_token_id=EOS, decoder_start_token_id=1, pad_token_id=0)
    return Pretrained(model, None, settings, {})


def draw_settings(rng: np.random.Generator) -> dict[str, Any]:
    """Settings of which nearly each combination is a program of its own."""
    beams = int(rng.choice([1, 1, 2, 3]))
    settings: dict[str, Any] = {"num_beams": beams, "max_new_tokens": int(rng.integers(2, 9))}
    if beams == 1 and rng.random() < 0.5:
        settings |= {"do_sample": True, "num_return_sequences": int(rng.integers(1, 4)), "seed": 7}
    options = {
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "encoder_repetition_penalty": 1.2,
        "min_new_tokens": 2,
        "suppress_tokens": [3],
        "begin_suppress_tokens": [4],
        "forced_eos_token_id": EOS,
        "renormalize_logits": True,
        "output_scores": True,
        "output_logits": True,
        "eos_token_id": [EOS, 5],
        "bad_words_ids": [[6, 7]],
    }
    return settings | {name: value for name, value in options.items() if rng.random() < 0.25}


def call(number: int, seed: int) -> list[Any]:
    """What the call of that number gives: tokens, or of a forward pass the likeliest ones."""
    rng = np.random.default_rng([seed, number])
    encoder = bool(rng.integers(2))
    lm, settings = models()[encoder], draw_settings(rng)
    ids = rng.integers(3, VOCAB, (int(rng.integers(1, 7)), int(rng.choice([1, 5, 40]))))
    kind = rng.choice(["generate", "session", "stream", "forward"], p=[0.6, 0.2, 0.1, 0.1])
    if kind == "forward":
        targets = {"decoder_input_ids": ids[:, : 1 + number % 7]} if encoder else {}
        return lm(ids, output_attentions=bool(rng.integers(2)), **targets).logits.argmax(-1).tolist()
    if kind == "generate":
        return lm.generate(ids, **settings).sequences.tolist()
    if kind == "stream":
        settings = settings | {"num_beams": 1}
        return np.concatenate(list(stream(lm.model, ids, lm.generation, **settings)), axis=1).tolist()
    session = Session(lm.model, ids, lm.generation, **settings)
    while not session.finished:
        session.advance()
    return session.result().sequences.tolist()


@dataclass
class Memory:
    """Memory maps and resident megabytes, as they were measured."""

    maps: list[int] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)

    def measure(self, calls: int) -> None:
        """Measure, and print the line of a table."""
        gc.collect()
        with suppress(OSError, AttributeError):  # what glibc holds back for threads is not what the process holds
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        self.maps.append(maps_in_use())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident.append(pages * resource.getpagesize() / 1e6)
        kept = f"{len(PROGRAMS.kept)} programs of {PROGRAMS.made} compiled"
        print(f"{calls} calls: {kept}, {self.maps[-1]} maps, {self.resident[-1]:.0f} MB", flush=True)

    def problem(self, growth: float) -> str | None:
        """What has grown beyond its bound, if anything."""
        if max(self.maps) > most_maps() / 3:
            return f"{max(self.maps)} memory maps of {most_maps()}"
        half = self.resident[len(self.resident) // 2]
        return None if self.resident[-1] <= growth * half else f"{half:.0f} MB at half time, then {self.resident}"


def soak(cases: int, seed: int, every: int = 100, growth: float = 1.1) -> Tally:
    """Make `cases` calls, half of which are new ones and half repeat earlier ones; print memory every so many.

    growth: how much larger resident memory may be at the end than at half time.
    """
    tally, memory, rng = Tally("soak"), Memory(), np.random.default_rng(seed)
    given: list[list[Any]] = []

    def again(number: int) -> None:
        same = call(number, seed) == given[number]
        tally.record(f"call {number} of seed {seed}", None if same else "gives other tokens when repeated")

    with ThreadPoolExecutor(3) as pool:
        run: Callable[..., Any] = lambda function, numbers: list(pool.map(function, numbers))  # noqa: E731
        while tally.tried < cases:
            before, size = tally.tried, 3 if rng.random() < THREADS else 1
            new = range(len(given), len(given) + size)
            given += (run if size > 1 else map)(lambda number: call(number, seed), new)
            for _ in new:
                tally.record("a new call", None)
            least = 0 if rng.random() < OLD else max(0, len(given) - REPEATED)
            numbers = rng.integers(least, len(given), size).tolist()
            list((run if size > 1 else map)(again, numbers))
            if tally.tried // every > before // every:
                memory.measure(tally.tried)
    tally.record("memory", memory.problem(growth))
    return tally


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    main(soak, cases=2000)
