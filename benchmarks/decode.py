"""How fast jaxformer generates: against itself without a cache, against others, and against what memory allows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from common import TORCH_DEVICE, Row, compare, prepare, race, random_gpt2, random_marian, report
from in_ctranslate2 import in_ctranslate2
from in_llama_cpp import in_llama_cpp
from jax import lax
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from jaxformer import PRESETS, Transformer, from_pretrained, generate

OURS, ONCE, HF, CT2, GGML = (
    "jaxformer",
    "no cache: every token reads all again",
    "transformers `generate()`, eager PyTorch",
    "CTranslate2",
    "llama.cpp",
)
SEARCHES = (("greedy, batch 1", 1, 1), ("greedy, batch 8", 8, 1), ("beam 4, batch 1", 1, 4))


@dataclass(frozen=True)
class Arguments:
    """Race jaxformer's generation against others, with equal weights and equal tokens."""

    shape: Literal["paper-base", "gpt2", "symbols"] = "paper-base"
    """the preset whose widths and depths are taken, with random weights"""
    model: Path | None = None
    """folder of a checkpoint of Hugging Face, instead of a preset"""
    vocab_size: int = 32000
    """tokens of the vocabulary of an encoder-decoder; GPT-2 has its own"""
    prompt: int = 30
    """tokens of each source or prompt"""
    weights: Literal["float32", "int8"] = "float32"
    """of jaxformer, CTranslate2 and llama.cpp; with int8 tokens need not be equal any more"""
    new_tokens: int = 100
    """tokens generated in each run; no sequence ends earlier"""
    runs: int = 5
    """rounds, in each of which every rival runs once"""
    output: Path | None = None
    """where the table is written (default: docs/benchmarks/decode-SHAPE.md)"""
    quick: bool = False
    """a tiny shape, few tokens, one round: shows that all works, measures and writes nothing"""


class Subject(NamedTuple):
    """One model in two libraries, the token that ends sequences, and what a decoder behind an encoder begins with.

    rounded: ours with weights of 8 bits (None: these are not asked for).
    """

    name: str
    theirs: Any
    ours: Transformer
    end: int
    start: int | None
    rounded: Transformer | None = None

    def prompts(self, batch: int, length: int) -> np.ndarray:
        """Random token ids [B, length]."""
        return np.random.default_rng(batch).integers(3, self.ours.config.main.embedding.vocab_size - 3, (batch, length))


def main(arguments: Arguments) -> None:
    """Race, print, and write the table."""
    if arguments.quick:
        arguments = replace(arguments, shape="symbols", vocab_size=101, new_tokens=7, runs=1)
    prepare()
    subject, full = open_subject(arguments), arguments.weights == "float32"
    if not full:
        subject = subject._replace(rounded=subject.ours.quantize())
    rows = race_naive(subject, arguments) if full and subject.start is not None else []
    races = {"the first token, batch 1": race_others(subject, 1, 1, replace(arguments, new_tokens=1))}
    races |= {what: race_others(subject, batch, beams, arguments) for what, batch, beams in SEARCHES}
    rows += [row for what, seconds in races.items() for row in compare(what, seconds)]
    rows += race_sampling(subject, arguments)
    share = share_of_memory(subject, arguments)
    kind = "float32; all tokens were equal" if full else "weights of 8 bits here, in CTranslate2 and in llama.cpp"
    method = (
        f"{arguments.new_tokens} new tokens from {arguments.prompt}; {subject.name}; {kind}. Time of the rival / time "
        f"of jaxformer, compilation not counted: the median of {arguments.runs} interleaved rounds, and the ratio of "
        "the best times of all rounds."
    )
    print(share)
    name = arguments.shape if arguments.model is None else arguments.model.name
    file = arguments.output or Path(f"docs/benchmarks/decode-{name}{'' if full else '-int8'}.md")
    report("Generation", None if arguments.quick else file, rows, f"{method}\n\n{share}")


def open_subject(arguments: Arguments) -> Subject:
    """The model that the arguments name, in both libraries."""
    if arguments.model is not None:
        lm = from_pretrained(arguments.model, dtype="float32")
        both = lm.model.encoder is not None
        loader = AutoModelForSeq2SeqLM if both else AutoModelForCausalLM
        theirs = loader.from_pretrained(arguments.model, dtype=torch.float32).eval().to(TORCH_DEVICE)
        ends = lm.generation.eos_token_id
        end = 0 if ends is None else int(np.ravel(ends)[0])
        start = (lm.generation.decoder_start_token_id or 0) if both else None
        return Subject(arguments.model.name, theirs, lm.model, end, start)
    if arguments.shape == "gpt2":
        return Subject("the shape of GPT-2, random weights", *random_gpt2(), end=50256, start=None)
    shape = PRESETS[arguments.shape](arguments.vocab_size)
    blocks = shape.main.blocks
    # The decoder begins with padding, whose vector is zero and which has to be the last token for CTranslate2.
    start, heads = arguments.vocab_size - 1, blocks[0].attention.heads
    pair = random_marian(arguments.vocab_size, dim=shape.dim, layers=len(blocks), heads=heads, pad=start)
    name = f"the shape `{arguments.shape}` with a vocabulary of {arguments.vocab_size}, random weights"
    return Subject(name, pair[0].eval(), pair[1], end=0, start=start)


def race_naive(subject: Subject, arguments: Arguments) -> list[Row]:
    """Greedy decoding with a cache against reading the whole prefix again for every token."""
    source = subject.prompts(1, arguments.prompt)
    cached = partial(generated, subject, source, 1, arguments.new_tokens)
    naive = partial(naively_generated, subject, source, arguments.new_tokens)
    np.testing.assert_array_equal(cached(), naive())
    return compare("greedy, batch 1", race({"cached": cached, ONCE: naive}, arguments.runs))


def race_others(subject: Subject, batch: int, beams: int, arguments: Arguments) -> dict[str, list[float]]:
    """Seconds of generation by all libraries that are here, with the same settings."""
    full, prompts = subject.rounded is None, subject.prompts(batch, arguments.prompt)
    kind = None if full else "int8"
    rivals: dict[str, Callable[[], np.ndarray]] = {
        OURS: partial(generated, subject, prompts, beams, arguments.new_tokens),
        HF: partial(generated_by_transformers, subject, prompts, beams, arguments.new_tokens),
    }
    if translator := in_ctranslate2(subject.theirs, kind):
        rivals[CT2] = partial(translator, prompts, beams, arguments.new_tokens)
    if beams == 1 and (continued := in_llama_cpp(subject.theirs, kind)):  # which has no beam search
        rivals[GGML] = partial(continued, prompts, arguments.new_tokens)
    if full:
        expected = rivals[OURS]()
        for rival in rivals.values():
            np.testing.assert_array_equal(rival(), expected)
    else:
        whole = subject._replace(rounded=None)
        rivals["jaxformer, float32"] = partial(generated, whole, prompts, beams, arguments.new_tokens)
    return race(rivals, arguments.runs)


def race_sampling(subject: Subject, arguments: Arguments) -> list[Row]:
    """Greedy decoding against sampling with three thresholds, which none of them sorts the vocabulary for."""
    prompts = subject.prompts(1, arguments.prompt)
    drawn = {"do_sample": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "seed": 1}
    rivals = {
        "greedy": partial(generated, subject, prompts, 1, arguments.new_tokens),
        "sampling, temperature, top-k, top-p": partial(generated, subject, prompts, 1, arguments.new_tokens, **drawn),
    }
    return compare("greedy, batch 1", race(rivals, arguments.runs))


def generated(subject: Subject, prompts: np.ndarray, beams: int, new_tokens: int, **more: Any) -> np.ndarray:
    """The sequences by jaxformer, [B, 1 + new_tokens] behind an encoder, else [B, prompt + new_tokens]."""
    settings = settings_of(beams, new_tokens) | more
    if subject.start is not None:
        settings["decoder_start_token_id"] = subject.start
    return generate(subject.rounded or subject.ours, prompts, eos_token_id=subject.end, **settings).sequences


def generated_by_transformers(subject: Subject, prompts: np.ndarray, beams: int, new_tokens: int) -> np.ndarray:
    """The same by transformers."""
    inputs = torch.tensor(prompts, device=TORCH_DEVICE)
    ends = {"eos_token_id": subject.end, "pad_token_id": subject.end if subject.start is None else subject.start}
    settings = settings_of(beams, new_tokens) | ends | {"do_sample": False, "attention_mask": torch.ones_like(inputs)}
    with torch.no_grad():
        return subject.theirs.generate(inputs, **settings).cpu().numpy()


def settings_of(beams: int, new_tokens: int) -> dict[str, Any]:
    """What all are asked for: as many tokens as allowed, and no end before."""
    return {"num_beams": beams, "max_new_tokens": new_tokens, "min_new_tokens": new_tokens}


def naively_generated(subject: Subject, source: np.ndarray, new_tokens: int) -> np.ndarray:
    """The sequences [B, 1 + new_tokens] by greedy decoding without a cache."""
    return np.asarray(naive_compiled(subject.ours, jnp.asarray(source), new_tokens, subject.end, subject.start))


@partial(jax.jit, static_argnames=("new_tokens", "end", "start"))
def naive_compiled(model: Transformer, source: jax.Array, new_tokens: int, end: int, start: int) -> jax.Array:
    """The decoder reads the whole sequence, padded to its final length, once for each new token.

    All else is as quick as with a cache: one compiled loop, the source encoded once, logits of one position alone.
    """
    encoded = model.encode(source)

    def lengthen(position: int, tokens: jax.Array) -> jax.Array:
        cache = model.init_cache(*tokens.shape, encoded=encoded)
        hidden, _ = model.extend(tokens, cache)
        logits = model.logits(lax.dynamic_index_in_dim(hidden, position, axis=1, keepdims=False))
        best = jnp.argmax(logits.at[:, end].set(-jnp.inf), axis=1).astype(tokens.dtype)
        return lax.dynamic_update_slice_in_dim(tokens, best[:, None], position + 1, axis=1)

    return lax.fori_loop(0, new_tokens, lengthen, jnp.full((source.shape[0], 1 + new_tokens), start))


def share_of_memory(subject: Subject, arguments: Arguments) -> str:
    """How near a token of greedy decoding comes to what reading its weights takes, measured beside each other.

    Other tenants of a machine change the speed of its memory by half within seconds, so that a round measures both,
    each for about as long, and the way to read is chosen before: the best of several in a round is the luckiest.
    """
    prompts, new_tokens = subject.prompts(1, arguments.prompt), arguments.new_tokens
    generations = {count: partial(generated, subject, prompts, 1, count) for count in (1, new_tokens)}
    megabytes, passes = (1, 1) if arguments.quick else (512, 10)
    tried = race(ways_to_read(megabytes, passes), arguments.runs + 2)
    fastest = min(tried, key=lambda way: np.median(tried[way]))
    passes *= 5
    reading = ways_to_read(megabytes, passes)[fastest]
    seconds = race({"1": generations[1], "all": generations[new_tokens], "reading": reading}, 4 * arguments.runs + 4)
    tokens = (np.array(seconds["all"]) - seconds["1"]) / (new_tokens - 1)
    speeds = passes * megabytes * 2**20 / np.array(seconds["reading"])
    read = weights_read(subject.rounded or subject.ours)
    shares = read / speeds / tokens
    return (
        f"A token of greedy decoding at batch 1 reads {read / 1e6:.0f} MB of weights and takes "
        f"{np.median(tokens) * 1e3:.1f} ms. In the same rounds the fastest of four ways to read memory reached "
        f"{np.median(speeds) / 1e9:.1f} GB/s ({speeds.min() / 1e9:.1f} to {speeds.max() / 1e9:.1f}), with which the "
        f"weights take {np.median(read / speeds) * 1e3:.1f} ms: {np.median(shares):.0%} of what memory allows "
        f"({shares.min():.0%} to {shares.max():.0%} in a round, {len(shares)} rounds)."
    )


def weights_read(model: Transformer) -> int:
    """Bytes of the weights that one more token needs: of the head, and of the decoder.

    But for its positions, and what makes keys and values of a source.
    """
    leaves = jax.tree_util.tree_leaves_with_path(model.decoder)
    skipped = ("positions", "cross.key.", "cross.value.")
    used = [leaf for path, leaf in leaves if not any(part in jax.tree_util.keystr(path) for part in skipped)]
    head = jax.tree.leaves(getattr(model.head, "output", None)) or [model.embedding.embedding[...]]
    return sum(leaf.nbytes for leaf in (*head, *used))


def ways_to_read(megabytes: int, passes: int) -> dict[str, Callable[[], Any]]:
    """Ways to read an array that no cache holds, so many times."""
    numbers = np.ones((1024, megabytes * 256), np.float32)
    tensor, array = torch.from_numpy(numbers), jnp.asarray(numbers)
    row, total = jnp.ones((1, 1024)), jax.jit(jnp.sum)
    product = jax.jit(jnp.matmul)
    ways: dict[str, Callable[[], Any]] = {
        "torch.sum": lambda: torch.sum(tensor),
        "torch.matmul": lambda: torch.ones(1, 1024) @ tensor,
        "jnp.sum": lambda: jax.block_until_ready(total(array)),
        "jnp.matmul": lambda: jax.block_until_ready(product(row, array)),
    }
    return {name: partial(repeatedly, way, passes) for name, way in ways.items()}


def repeatedly(way: Callable[[], Any], passes: int) -> None:
    """Call it so many times."""
    for _ in range(passes):
        way()


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=Arguments.__doc__))
