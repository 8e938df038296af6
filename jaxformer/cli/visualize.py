"""`jaxformer visualize`: pictures of what a trained model attends to, and of its masks and positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxformer.cli import terminal
from jaxformer.cli.continuations import encode
from jaxformer.cli.invocation import command_line
from jaxformer.cli.kind import Run
from jaxformer.cli.language import read_texts
from jaxformer.cli.runs import open_run
from jaxformer.cli.streams import replacing
from jaxformer.data import BOS, EOS, PAD, Symbols, held_out
from jaxformer.errors import InputError
from jaxformer.generation import generate
from jaxformer.layers import LearnedPositionEmbedding, Sinusoids
from jaxformer.model import Transformer
from jaxformer.ops import causal_mask, padding_mask
from jaxformer.visualize import (
    Observation,
    attention_figure,
    attention_page,
    graph_figure,
    heat_map,
    mask_figure,
    positions_figure,
)

SPECIAL = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}
SHOWN = 48  # tokens of the validation text that a language model reads when none is given
POSITIONS = 128  # the most positions that are drawn
MASK, REAL = 8, 5  # length of the masks drawn, and how many of the tokens are no padding


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    checkpoint: Annotated[Path | None, terminal.optional("RUN")] = None
    """folder of the run (default: the one below runs/ that was finished last)"""
    input: Annotated[str | None, terminal.optional("TEXT", aliases=["--prompt"])] = None
    """what the model reads, such as "3 1 4 1 5", or a text (default: held-out data)"""
    output: Annotated[Path | None, terminal.optional("FOLDER")] = None
    """where the pictures go (default: pictures/ in the folder of the run)"""
    text: bool = False
    """print the maps as well, as text"""
    layer: Annotated[int | None, terminal.optional("INT")] = None
    """print this layer (default: the last)"""
    head: Annotated[int | None, terminal.optional("INT")] = None
    """print this head (default: the mean over the layer's heads)"""

    @property
    def printed(self) -> bool:
        """Whether maps are printed: a layer or a head to print is asked for, or text as such."""
        return self.text or self.layer is not None or self.head is not None


class Seen(NamedTuple):
    """What a model read and answered, in one line, and what it attended to meanwhile: all that there is to draw."""

    answer: str
    observations: tuple[Observation, ...]


def main(argv: list[str]) -> None:
    """Draw the pictures that the command line asks for and print their paths."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("visualize"),
        description="Draw what a trained model attends to, its masks, its positions and its layers.",
    )
    run = open_run(arguments.checkpoint)
    seen = observe(run, arguments.input)
    printed = [
        heat_map(
            observation,
            layer=len(observation.maps) if arguments.layer is None else arguments.layer,
            head=arguments.head,
        )
        for observation in seen.observations
        if arguments.printed
    ]
    print("\n\n".join([seen.answer, *printed]), end="\n\n" if printed else "\n")
    folder = arguments.output or run.folder / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "attention.html"
    title = f"What {run.folder.name} attends to"
    with replacing(page) as file:
        file.write(attention_page(seen.observations, title=title, subtitle=seen.answer).encode())
    print(page)
    for name, figure in pictures(run.model, seen.observations):
        path = folder / f"{name}.png"
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=120)
        print(path)


forward = jax.jit(Transformer.__call__, static_argnames="return_intermediates")


def observe(run: Run, text: str | None) -> Seen:
    """What a run makes of a text or a sequence; None: of a held-out one."""
    if run.task_name == "lm":
        return observe_text(run, text)
    source = held_out_source(run) if text is None else run.task.text.read(text)
    target = decode_greedily(run, source)
    answer = f"{run.task.text.show(source)}  ->  {run.task.text.show(target)}"
    return Seen(answer, observe_sequences(run, source, target))


def observe_text(run: Run, text: str | None) -> Seen:
    """The attention of a language model that reads a text, or the beginning of its validation text."""
    if text is None:
        ids = np.asarray(read_texts(run.settings.text, run.folder).validation.tokens[:SHOWN], np.int32)
    else:
        ids = encode(run.task, text)
    limit = run.model.max_length
    if limit is not None and len(ids) > limit:
        raise InputError(f"{len(ids)} tokens exceed the model's {limit} positions: give a shorter text")
    observed = forward(run.model, ids[None], return_intermediates=True)
    maps, names = first_row(observed.decoder.attentions), run.task.names(ids)
    said = Observation("decoder", "Self-attention", maps, names, query_label="token that the model reads")
    return Seen(run.task.decode(ids), (said,))


def held_out_source(run: Run) -> np.ndarray:
    """A held-out sequence, int32 [S]: the longest of a few, because it shows most."""
    rows = held_out(run.task, 8, run.settings.seed)["source"]
    longest = max(rows, key=lambda row: int((row != PAD).sum()))
    return longest[longest != PAD]


def decode_greedily(run: Run, source: np.ndarray) -> np.ndarray:
    """What the model makes of a source [S], int32 [T + 1]: the start token, what it says, EOS where it ended."""
    sequence = np.asarray(generate(run.model, source[None], run.generation).sequences)[0]
    ends = np.flatnonzero(sequence == EOS)
    return sequence[: ends[0] + 1] if ends.size else sequence


def observe_sequences(run: Run, source: np.ndarray, target: np.ndarray) -> tuple[Observation, ...]:
    """The attention of an encoder-decoder that reads source [S] and is made to say target [T + 1]."""
    observed = forward(run.model, source[None], target[None, :-1], return_intermediates=True)
    reads = token_names(run.task.text, source)
    heard, says = token_names(run.task.text, target[:-1]), token_names(run.task.text, target[1:])
    encoder, decoder, cross = map(
        first_row, (observed.encoder.attentions, observed.decoder.attentions, observed.decoder.cross_attentions)
    )
    return (
        Observation("encoder", "Encoder self-attention", encoder, reads, query_label="token of the source"),
        Observation("decoder", "Decoder self-attention", decoder, heard, query_label="token that the decoder reads"),
        Observation(
            "cross",
            "Cross-attention",
            cross,
            says,
            reads,
            query_label="token that the decoder says next",
            key_label="attends to the source",
        ),
    )


def pictures(model: Transformer, observations: tuple[Observation, ...]) -> Iterator[tuple[str, Figure]]:
    """The pictures of a model and of what it attended to, with their names."""
    for seen in observations:
        labels = {"title": seen.title, "query_label": seen.query_label, "key_label": seen.key_label}
        yield f"{seen.name}-attention", attention_figure(seen.maps, seen.queries, seen.sources, **labels)
    yield "masks", mask_figure(example_masks())
    stack = model.decoder or model.encoder
    if stack is not None and isinstance(stack.positions, LearnedPositionEmbedding | Sinusoids):
        count = min(POSITIONS, model.max_length or POSITIONS)
        yield "positions", positions_figure(np.asarray(stack.positions(jnp.arange(count)[None])[0]))
    yield "layers", graph_figure(model.config)


def first_row(maps: tuple[jax.Array, ...]) -> list[np.ndarray]:
    """Maps [B, N, T, S] of the first sequence of a batch: L arrays [N, T, S]."""
    return [np.asarray(layer[0]) for layer in maps]


def token_names(text: Symbols, ids: np.ndarray) -> list[str]:
    """Every token as people read it, special tokens included."""
    return [SPECIAL.get(int(token)) or text.show(token[None]) for token in ids]


def example_masks() -> dict[str, np.ndarray]:
    """The masks of section 3.2.3 for a short sequence: boolean arrays [T, S] by name."""
    causal = np.asarray(causal_mask(MASK))
    padding = np.broadcast_to(np.asarray(padding_mask(jnp.array([REAL]), MASK)), causal.shape)
    return {"causal": causal, f"padding ({REAL} real tokens)": padding, "both": causal & padding}
