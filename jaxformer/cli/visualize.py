"""`jaxformer visualize`: pictures of what a trained model attends to, and of its masks and positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in, find_run, reads_plain
from jaxformer.cli.streams import replacing
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.layers import LearnedPositionEmbedding, Sinusoids
from jaxformer.model import Transformer
from jaxformer.ops import causal_mask, padding_mask
from jaxformer.pretrained import from_pretrained
from jaxformer.tasks.observing import observe_text
from jaxformer.tasks.task import AttentionView
from jaxformer.visualize import (
    Observation,
    alignment_figure,
    attention_figure,
    attention_page,
    graph_figure,
    heat_map,
    mask_figure,
    positions_figure,
)

POSITIONS = 128  # the most positions that are drawn
SENTENCE = "The cat sat on the mat, because it was tired."
MASK, REAL = 8, 5  # length of the masks drawn, and how many of the tokens are no padding


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str | None, optional("FOLDER")] = None
    """a checkpoint folder of Hugging Face, or a hub id, in place of a run"""
    checkpoint: Annotated[Path | None, optional("RUN")] = None
    """folder of the run (default: the one below runs/ that was finished last)"""
    task: Annotated[str | None, optional("NAME")] = None
    """task of the run; needed for a task of your own, FILE.py:CLASS"""
    input: Annotated[str | None, optional("TEXT", aliases=["--prompt"])] = None
    """what the model reads, such as "3 1 4 1 5", or a text (default: held-out data; with --model, a sentence)"""
    raw: bool = False
    """with --model: the text as it is, without the chat template"""
    output: Annotated[Path | None, optional("FOLDER")] = None
    """where the pictures go (default: pictures/ in the folder of the run; with --model, pictures/ here)"""
    text: bool = False
    """print the maps as well, as text"""
    layer: Annotated[int | None, optional("INT")] = None
    """print this layer (default: the last)"""
    head: Annotated[int | None, optional("INT")] = None
    """print this head (default: the mean over the layer's heads)"""

    @property
    def printed(self) -> bool:
        """Whether maps are printed: a layer or a head to print is asked for, or text as such."""
        return self.text or self.layer is not None or self.head is not None


def main(argv: list[str]) -> None:
    """Draw the pictures that the command line asks for and print their paths."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("visualize"),
        description="Draw what a trained model attends to, its masks, its positions and its layers.",
    )
    model, seen, name, folder = observed(arguments)
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
    folder = arguments.output or folder
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "attention.html"
    title = f"What {name} attends to"
    with replacing(page) as file:
        file.write(attention_page(seen.observations, title=title, subtitle=seen.answer).encode())
    print(page)
    for name, figure in pictures(model, seen.observations):
        path = folder / f"{name}.png"
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=120)
        print(path)


def observed(arguments: Arguments) -> tuple[Transformer, AttentionView, str, Path]:
    """Return the model, what it attends to, its name, and where its pictures go unless the command line says."""
    if arguments.model is None:
        if arguments.raw:
            raise InputError("--raw belongs to --model: leave it out")
        run = find_run(arguments.checkpoint, arguments.task)
        return run.model, run.task.observe(run.model, arguments.input), run.folder.name, run.folder / "pictures"
    if arguments.checkpoint or arguments.task:
        raise InputError("--model is no run: leave --checkpoint and --task out")
    lm = from_pretrained(checkpoint_in(arguments.model))
    text = SENTENCE if arguments.input is None else arguments.input
    raw = arguments.raw or reads_plain(arguments.model)
    return lm.model, observe_text(lm, text, raw=raw), Path(arguments.model).name, Path("pictures")


def pictures(model: Transformer, observations: tuple[Observation, ...]) -> Iterator[tuple[str, Figure]]:
    """Yield the pictures of a model and of what it attended to, with their names."""
    for seen in observations:
        labels = {"title": seen.title, "query_label": seen.query_label, "key_label": seen.key_label}
        yield f"{seen.name}-attention", attention_figure(seen.maps, seen.queries, seen.sources, **labels)
        if seen.keys is not None:
            yield "words", alignment_figure(seen)
    yield "masks", mask_figure(example_masks())
    stack = model.decoder or model.encoder
    if stack is not None and isinstance(stack.positions, LearnedPositionEmbedding | Sinusoids):
        count = min(POSITIONS, model.max_length or POSITIONS)
        yield "positions", positions_figure(np.asarray(stack.positions(jnp.arange(count)[None])[0]))
    yield "layers", graph_figure(model.config)


def example_masks() -> dict[str, np.ndarray]:
    """Return the masks of section 3.2.3 for a short sequence: boolean arrays [T, S] by name."""
    causal = np.asarray(causal_mask(MASK))
    padding = np.broadcast_to(np.asarray(padding_mask(jnp.array([REAL]), MASK)), causal.shape)
    return {"causal": causal, f"padding ({REAL} real tokens)": padding, "both": causal & padding}
