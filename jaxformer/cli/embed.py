"""`jaxformer embed`: a vector for each sentence, from a checkpoint."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import tyro
from tqdm import tqdm

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import checkpoint_in
from jaxformer.cli.streams import read_lines, replacing
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.pretrained import from_pretrained
from jaxformer.pretrained.encoders import Pooling, embed


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    model: Annotated[str, tyro.conf.arg(metavar="FOLDER")]
    """folder of a checkpoint of Hugging Face or sentence-transformers, or its id on the hub"""
    input_file: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """text file with a sentence per line; - is standard input"""
    output: Path = Path("embeddings.npy")
    """where the vectors are written, float32 [sentences, width], in the order of the lines that are not blank"""
    pooling: Annotated[Pooling | None, optional("HOW")] = None
    """a sentence's vector: mean or max over its tokens' last states, or the state of its first token (cls) or its last
    one (default: as modules.json of the folder says, else mean)"""
    normalize: Annotated[bool | None, optional("WHETHER")] = None
    """whether vectors have length 1 (default: as modules.json of the folder says)"""
    prompt: Annotated[str | None, optional("TEXT")] = None
    """what stands before every sentence (default: what the folder says, if anything)"""
    prompt_name: Annotated[str | None, optional("NAME")] = None
    """name of one of the folder's prompts, such as query"""
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
        description="Turn sentences into vectors.",
    )
    if arguments.batch_size < 1:
        raise InputError(f"--batch-size must be at least 1, not {arguments.batch_size}")
    lines = read_lines(arguments.input_file)
    lm = from_pretrained(checkpoint_in(arguments.model))
    prompt = None if arguments.prompt is None else terminal.argument_text("--prompt", arguments.prompt)
    sentences, settings = lm.sentence_rows(
        [line for _, line in lines],
        arguments.pooling,
        arguments.normalize,
        prompt=prompt,
        prompt_name=arguments.prompt_name,
        truncate=arguments.truncate,
        **for_lines(lines),
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output) as file:
        with tqdm(total=len(sentences), unit="sentence", disable=None) as bar:
            vectors = embed(lm.model, sentences, size=arguments.batch_size, done=bar.update, **settings)
        write_array(file, vectors)
    print(f"{len(vectors)} vectors of width {vectors.shape[1]}: {arguments.output}")


def write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array as a .npy file; unlike `np.save`, into a pipe too."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    file.write(header.getvalue())
    file.write(array.data)


def for_lines(lines: list[tuple[int, str]]) -> dict[str, Any]:
    """Return how messages call numbered lines, as arguments of `encoders.encodings_of`."""
    names = [f"line {number}" for number, _ in lines]
    return {"name": names.__getitem__, "advice": "shorten it, or add --truncate"}
