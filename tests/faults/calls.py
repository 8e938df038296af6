"""Python calls with odd arguments: each returns, or raises InputError with one short line, and nothing else."""

import dataclasses
import decimal
import enum
import fractions
import functools
import itertools
import math
import os
import signal
import threading
import warnings
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from tally import Tally, main

from jaxformer import (
    GenerationConfig,
    InputError,
    Session,
    Transformer,
    allow_phrases,
    allow_regex,
    decode,
    decoder_only,
    encoder_decoder,
    encoder_only,
    generate,
    modern_decoder_only,
    stream,
)
from jaxformer.errors import shortened
from jaxformer.pretrained import Pretrained

VOCAB, EOS, LENGTH = 13, 2, 40
ODD_LENGTH = 2**31 - 1
SECONDS = 100  # a call that takes longer hangs
Call = tuple[str, dict[str, Any]]


class Three(enum.IntEnum):
    """A number that is not of Python's own type."""

    THREE = 3


ODD: list[Any] = [
    None,
    True,
    False,
    *(-1, 0, 1, 2, 3, VOCAB, LENGTH, ODD_LENGTH, 2**31, 2**63, 2**64, -(2**63), 10**400),
    *(0.0, -0.0, 0.5, 1.0, -1.5, 1e-300, 1e39, 1e308, math.nan, math.inf, -math.inf, 1j),
    *("", "x", "3", "never", "\n" * 400, "x" * 5000, b"x", "\ud800"),
    *([], [[]], [[[]]], (), [1], [1, 2], [[1, 2], [3]], [[1, 2], [3, 4]], [[1.0, 2.0]], [["a"]], [None], [[None]]),
    *([[2**63]], [[-1]], [[True, False]], [1, "a"], [[1], 2], list(range(5000)), [[3], [0.5]], [[[3], 0.5]]),
    *({}, {1: 2}, {"a": 3}, {(3, 4): 1.0}, {(3,): math.nan}, {(3,): 1e300}, {3}, range(3), slice(3)),
    *(object(), len, int, Ellipsis, NotImplemented, ValueError("x"), decimal.Decimal(3), fractions.Fraction(1, 2)),
    *(Three.THREE, np.int64(3), np.float32(0.5), np.bool_(True), np.str_("x"), np.datetime64("2020-01-01")),
    *(np.array([1, 2]), np.zeros((0, 3), int), np.ones((2, 3, 4), int), np.array(3), np.array([[1, 2]], object)),
    *(np.array([["1", "2"]]), np.ones((2, 5)), np.ones((2, 5), ml_dtypes.bfloat16), np.full((2, 5), np.nan)),
    *(np.zeros((2, 5), [("a", int)]), np.full((2, 5), 2**63, np.uint64), np.ma.masked_array([[1, 2]], [[0, 1]])),
    *(jnp.arange(3), jnp.ones((2, 5), int), jnp.ones((2, 5)), jax.ShapeDtypeStruct((2, 5), jnp.int32)),
]
EDGES = [0.0, -1.0, 1e-300, 1e-37, 1e-5, 0.3, 0.999, 1.0, 1.5, 1e5, 2.9e38, 1e39]
LIKE_IDS = {"token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask"}
SETTINGS = {field.name for field in dataclasses.fields(GenerationConfig)} - {"output_attentions"}


@functools.cache
def models() -> list[Pretrained]:
    """Models of all kinds, so small that compiling is all that takes time."""
    configs = (
        decoder_only(VOCAB, length=LENGTH, dim=4, layers=1, heads=1),
        modern_decoder_only(VOCAB, dim=4, layers=1, heads=1, kv_heads=1),
        encoder_decoder(VOCAB, dim=4, layers=1, heads=1, dropout=0.0),
        encoder_only(VOCAB, length=LENGTH, dim=4, layers=1, heads=1),
    )
    settings = GenerationConfig(eos_token_id=EOS, decoder_start_token_id=1, pad_token_id=0, max_new_tokens=3)
    return [Pretrained(Transformer(config, rngs=nnx.Rngs(0)), None, settings, {}) for config in configs]


def odd(rng: np.random.Generator, usual: Any) -> Any:
    """Something odd in the place of an argument: of another type, or much like what is usual there."""
    strange, array = ODD[rng.integers(len(ODD))], usual
    if (
        type(array) is not np.ndarray  # nor a masked array, which an earlier change has put there
        or array.dtype != int
        or array.ndim != 2
        or not array.size
        or rng.random() < 0.4
    ):
        return strange
    rows = array.tolist()
    rows[rng.integers(len(rows))][rng.integers(len(rows[0]))] = strange
    types = ["float32", "bool", "uint8", "object", "str", "complex64", "int32"]
    variants = [
        rows,
        *(array[:-1], array[:, :-1], array[:, :0], array[:0], array[0], array.T, array[None]),
        *(array.repeat(3, axis=0), array.repeat(30, axis=1), jnp.asarray(array), array.tolist()),
        *(array.astype(rng.choice(types)), array - int(rng.integers(1, 5)), array + int(rng.choice([1, 50, 2**40]))),
        *(np.zeros_like(array), [*array[:-1].tolist(), array[-1, 1:].tolist()]),
    ]
    return variants[rng.integers(len(variants))]


def setting(rng: np.random.Generator, name: str) -> Any:
    """A value for a setting: mostly of its type, at the edges of what it may be or beyond."""
    usual, token = getattr(GenerationConfig(), name), lambda: int(rng.choice([0, 1, 3, VOCAB - 1, VOCAB, 2**31 - 1]))
    if rng.random() < 0.2:
        return ODD[rng.integers(len(ODD))]
    if name in ("sequence_bias", "bad_words_ids"):
        words = [[token() for _ in range(rng.integers(0, 6))] for _ in range(rng.integers(0, 4))]
        return words if name == "bad_words_ids" else [[word, float(rng.choice(EDGES))] for word in words]
    if name == "exponential_decay_length_penalty":
        return int(rng.choice([0, 2, 2**31 - 1])), float(rng.choice(EDGES))
    if name in ("suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id", "eos_token_id"):
        return [token() for _ in range(rng.integers(0, 5))] if rng.random() < 0.7 else token()
    if name.endswith("token_id"):
        return token()
    if name == "stop_strings":
        return [["a"], "b", ["ab", "c" * 100], "", []][rng.integers(5)]
    if name == "seed":
        return [0, 2**40, [1, 2], [3], (2**70, 0)][rng.integers(5)]
    if isinstance(usual, bool):
        return [True, False, "never"][rng.integers(3 if name == "early_stopping" else 2)]
    if isinstance(usual, float) or name in ("min_p", "top_h"):
        return float(rng.choice(EDGES))
    return int(rng.choice([0, 1, 2, 3, 7, LENGTH, 2**31 - 1] if rng.random() < 0.3 else [1, 2, 3]))


def draw_call(rng: np.random.Generator) -> Call:
    """A call, by name, with the arguments that make it right and some that are odd."""
    ids = rng.integers(3, VOCAB, (2, 5))
    model = int(rng.integers(len(models())))
    name = str(rng.choice(["lm.generate", "generate", "stream", "Session", "lm", "decode", "replace", "allow"]))
    arguments: dict[str, Any] = {"model": model}
    settings, others = sorted(SETTINGS), list[str]()
    if name == "lm":
        arguments |= {"input_ids": ids, "attention_mask": np.ones((2, 5), int)}
        others = ["token_type_ids", "position_ids", "output_hidden_states", "output_attentions"]
        if model == 2:
            arguments["decoder_input_ids"] = ids[:, :3]
            others += ["decoder_input_ids", "decoder_attention_mask"]
        others, settings = [*others, *arguments], []
    elif name == "allow":
        arguments |= {"phrases": [[3, 4]], "eos": [EOS]} if rng.random() < 0.5 else {"pattern": "ab*", "eos": [EOS]}
        others, settings = [*arguments, "texts", "vocabulary"], []
    elif name != "replace":
        model = arguments["model"] = 0 if name == "decode" else model % 3 if rng.random() < 0.9 else model
        prompt, mask = {"decode": ("prompt", "prompt_mask"), "lm.generate": ("input_ids", "attention_mask")}.get(
            name, ("inputs", "inputs_mask")
        )
        arguments |= {prompt: ids, mask: np.ones((2, 5), int)}
        others = [prompt, mask] * 3 + ["allowed", "token_texts", "config", "output_attentions"]
        others += ["select"] if name == "decode" else ["decoder_input_ids"] * (1 + 2 * (model == 2))
        others += ["allowed_phrases", "allowed_regex", "inputs_mask"] if name == "lm.generate" else []
        others = others * 2
    for _ in range(int(rng.integers(1, 4))):
        changed = str(rng.choice([*others, *settings]))
        if changed in settings:
            arguments[changed] = setting(rng, changed)
        elif changed != "model":
            arguments[changed] = odd(rng, arguments.get(changed, ids if changed in LIKE_IDS else None))
    if name == "decode":  # of any length, where memory allows
        longest = {name for name in ("max_new_tokens", "max_length") if repr(arguments.get(name)) == repr(ODD_LENGTH)}
        arguments = {key: value for key, value in arguments.items() if key not in longest}
    return name, arguments


def perform(call: Call) -> Any:
    """Make the call."""
    name, arguments = call[0], dict(call[1])
    lm = models()[arguments.pop("model")]
    whole = {"config": lm.generation} | arguments
    match name:
        case "lm.generate":
            return lm.generate(**arguments)
        case "lm":
            return lm(**arguments)
        case "generate":
            return generate(lm.model, **whole)
        case "stream":
            return list(itertools.islice(stream(lm.model, **whole), 5))
        case "replace":
            return lm.generation.replace(**arguments)
        case "decode":
            return decode(jax.tree_util.Partial(any_step, jnp.ones(VOCAB)), {}, **whole)
        case "allow":
            texts = arguments.pop("texts", list("abcdefghijklm"))
            if "pattern" in arguments:
                return allow_regex(arguments["pattern"], texts, arguments["eos"])
            return allow_phrases(arguments["phrases"], arguments.get("vocabulary", VOCAB), arguments["eos"])
    session = Session(lm.model, **whole)
    for _ in range(3):
        if not session.finished:
            session.advance()
    return session.result()


def any_step(logits: jax.Array, tokens: jax.Array, cache: dict) -> tuple[jax.Array, dict]:
    """A step that says the same after all tokens."""
    return jnp.broadcast_to(logits, (tokens.shape[0], VOCAB)), cache


def problem(call: Call) -> str | None:
    """What is wrong with how the call ends, if anything."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"hangs: {SECONDS} seconds are over")

    def end() -> None:
        print(f"hangs in a compiled program, where no signal is heard: {shortened(repr(call), 1000)}", flush=True)
        os._exit(1)

    timer = threading.Timer(2 * SECONDS, end)
    timer.start()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            perform(call)
    except InputError as error:
        message = str(error)
        return (
            None
            if 0 < len(message) <= 300 and "\n" not in message
            else f"a bad message: {shortened(repr(message), 200)}"
        )
    except Exception as error:
        return f"{type(error).__name__}: {shortened(str(error), 150)}"
    finally:
        timer.cancel()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def calls(cases: int, seed: int) -> Tally:
    """Draw so many calls and make them."""
    tally = Tally("calls")
    for number in range(cases):
        call = draw_call(np.random.default_rng([seed, number]))
        tally.record(f"call {number} of seed {seed}: {shortened(repr(call), 300)}", problem(call))
    return tally


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    main(calls, cases=1500)
