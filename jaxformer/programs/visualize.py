"""`python -m jaxformer visualize`: pictures of what a trained model attends to, and of its masks and positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure

from jaxformer.data import BOS, EOS, PAD, Symbols, held_out
from jaxformer.decode import generate
from jaxformer.model import Transformer
from jaxformer.ops import causal_mask, padding_mask, sinusoidal_positions
from jaxformer.programs.runs import Run, open_run
from jaxformer.visualize import attention_figure, mask_figure, positions_figure

SPECIAL = {PAD: "<pad>", BOS: "<bos>", EOS: "<eos>"}
POSITIONS = 128  # how many positional encodings are drawn
MASK, REAL = 8, 5  # length of the masks drawn, and how many of the tokens are no padding


@dataclass(frozen=True)
class Arguments:
    """What the command line says."""

    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """folder of the run (default: the one below runs/ that was finished last)"""
    input: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """what the model reads, for example "3 1 4 1 5" (default: a held-out sequence)"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """where the pictures go (default: pictures/ in the folder of the run)"""


def main(argv: list[str]) -> None:
    """Draw the pictures that the command line asks for and print their paths."""
    arguments = tyro.cli(
        Arguments,
        prog="python -m jaxformer visualize",
        description="Draw what a trained model attends to, its masks and its positions.",
        args=argv,
    )
    run = open_run(arguments.checkpoint)
    folder = arguments.output or run.folder / "pictures"
    source = held_out_source(run) if arguments.input is None else run.task.text.read(arguments.input)
    target = decode_greedily(run, source)
    print(f"{run.task.text.show(source)}  ->  {run.task.text.show(target)}")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures(run, source, target):
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=120)
        print(path)


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


def pictures(run: Run, source: np.ndarray, target: np.ndarray) -> Iterator[tuple[str, Figure]]:
    """The pictures and their names, of a run that answers source [S] with target [T + 1]."""
    observed = jax.jit(Transformer.observe)(run.model, source[None], target[None, :-1])
    reads = token_names(run.task.text, source)
    heard, says = token_names(run.task.text, target[:-1]), token_names(run.task.text, target[1:])
    yield (
        "encoder-attention",
        attention_figure(
            first_row(observed.encoder.attentions),
            reads,
            reads,
            title="Encoder self-attention",
            query_label="token of the source",
            key_label="attends to",
        ),
    )
    yield (
        "decoder-attention",
        attention_figure(
            first_row(observed.decoder.attentions),
            heard,
            heard,
            title="Decoder self-attention (causal)",
            query_label="token that the decoder reads",
            key_label="attends to",
        ),
    )
    yield (
        "cross-attention",
        attention_figure(
            first_row(observed.decoder.cross_attentions),
            says,
            reads,
            title="Cross-attention",
            query_label="token that the decoder says next",
            key_label="attends to the source",
        ),
    )
    yield "masks", mask_figure(example_masks())
    yield "positions", positions_figure(np.asarray(sinusoidal_positions(POSITIONS, run.settings.model.dim)))


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
