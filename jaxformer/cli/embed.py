"""`jaxformer embed`: a vector for each sentence, from an encoder's checkpoint."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import tyro
from tqdm import tqdm

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in
from jaxformer.cli.streams import read_lines, replacing
from jaxformer.errors import InputError
from jaxformer.pretrained import Pretrained, from_pretrained
from jaxformer.pretrained.encoders import Pooling, embed, rows_of


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """folder of a checkpoint of Hugging Face, or its id on the hub: BERT, RoBERTa, DistilBERT, T5's encoder"""
    input_file: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """text file with a sentence per line; - is standard input"""
    output: Path = Path("embeddings.npy")
    """where the vectors are written, float32 [sentences, width], in the order of the lines that are not blank"""
    pooling: Pooling = "mean"
    """a sentence's vector: the mean of its tokens' last states, or the state of its first token"""
    batch_size: int = 32
    """sentences that are read together"""
    truncate: bool = False
    """cut sentences that are longer than the model's positions, instead of refusing them"""


def main(argv: list[str]) -> None:
    """Write the embeddings of the sentences that the command line names."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("embed"),
        description="Turn sentences into vectors with an encoder.",
    )
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    lines = read_lines(arguments.input_file)
    lm = from_pretrained(checkpoint_in(arguments.model))
    sentences = rows_of_lines(lm, lines, truncate=arguments.truncate)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output) as file:
        with tqdm(total=len(sentences), unit="sentence", disable=None) as bar:
            settings = {"pooling": arguments.pooling, "size": arguments.batch_size, "done": bar.update}
            vectors = embed(lm.model, sentences, **settings)  # pyrefly: ignore
        write_array(file, vectors)
    print(f"{len(vectors)} vectors of width {vectors.shape[1]}: {arguments.output}")


def write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array as a .npy file; unlike `np.save`, into a pipe too."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    file.write(header.getvalue())
    file.write(array.data)


def rows_of_lines(lm: Pretrained, lines: list[tuple[int, str]], *, truncate: bool) -> list[list[int]]:
    """Return the token ids of numbered lines. Raises InputError where the model or a line does not allow it."""
    texts = [line for _, line in lines]
    names = [f"line {number}" for number, _ in lines]
    return rows_of(
        lm.model, lm.tokenizer, texts, truncate=truncate, name=names.__getitem__, advice="shorten it, or add --truncate"
    )
