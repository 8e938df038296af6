"""`jaxformer embed`: a vector for each sentence, from an encoder's checkpoint."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.cli.streams import read_lines, replacing
from jaxformer.errors import InputError
from jaxformer.generation.compiling import compiled
from jaxformer.model import Transformer
from jaxformer.pretrained import Pretrained, from_pretrained
from jaxformer.pretrained.tokens import encode as encode_texts

Pooling = Literal["mean", "cls"]
ROUND = 16  # lengths are rounded up to a multiple of it, so that few programs are compiled


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
    lm = from_pretrained(arguments.model)
    sentences = encode(lm, lines, truncate=arguments.truncate)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(arguments.output) as file:
        with tqdm(total=len(sentences), unit="sentence", disable=None) as bar:
            vectors = embed(lm.model, sentences, arguments.pooling, arguments.batch_size, bar)
        write_array(file, vectors)
    print(f"{len(vectors)} vectors of width {vectors.shape[1]}: {arguments.output}")


def write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write an array as a .npy file; unlike `np.save`, into a pipe too."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    file.write(header.getvalue())
    file.write(array.data)


def encode(lm: Pretrained, lines: list[tuple[int, str]], *, truncate: bool) -> list[list[int]]:
    """Return the token ids of each line. Raises InputError where the model or a line does not allow it."""
    if lm.model.encoder is None or lm.model.decoder is not None:
        raise InputError(f"an encoder-only model is needed, such as BERT, not {lm.settings.get('model_type')}")
    if lm.tokenizer is None:
        raise InputError("the folder has no tokenizer.json to read sentences with")
    limit = lm.model.max_source_length
    ids = encode_texts(lm.tokenizer, [line for _, line in lines], limit=limit if truncate else None)
    for (number, _), tokens in zip(lines, ids, strict=True):
        if not tokens:
            raise InputError(f"line {number} has no token that the tokenizer knows")
        if limit is not None and len(tokens) > limit:
            raise InputError(f"line {number} has {len(tokens)} tokens, more than {limit}: cut it, or add --truncate")
    return ids


def embed(
    model: Transformer, sentences: list[list[int]], pooling: Pooling, batch_size: int, bar: tqdm | None = None
) -> np.ndarray:
    """Return float32 vectors [sentences, D] of token ids. Sentences of like length are read together."""
    vectors = np.zeros((len(sentences), model.config.dim), np.float32)
    for rows, tokens, valid in batches(sentences, batch_size, model.max_source_length):
        vectors[rows] = pooled(model, tokens, valid, pooling=pooling)[: len(rows)]
        if bar is not None:
            bar.update(len(rows))
    return vectors


def batches(
    sentences: list[list[int]], batch_size: int, limit: int | None
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yield indices of sentences, their ids [batch_size, S] and a mask of real tokens.

    The longest first, so that it fits.

    Rows without a sentence repeat the first one.
    """
    order = sorted(range(len(sentences)), key=lambda row: -len(sentences[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = -(-len(sentences[rows[0]]) // ROUND) * ROUND
        width = width if limit is None else min(width, limit)
        tokens, valid = np.zeros((batch_size, width), np.int32), np.zeros((batch_size, width), bool)
        for place, row in enumerate([*rows, *rows[:1] * (batch_size - len(rows))]):
            tokens[place, : len(sentences[row])] = sentences[row]
            valid[place, : len(sentences[row])] = True
        yield rows, tokens, valid


@compiled(few_rows=False)
def pooled(model: Transformer, tokens: jax.Array, valid: jax.Array, *, pooling: Pooling) -> jax.Array:
    """Return the states [B, D] of sentences [B, S]."""
    states = model.encode(tokens, mask=valid)
    if pooling == "cls":
        return states[:, 0]
    return jnp.where(valid[..., None], states, 0).sum(axis=1) / valid.sum(axis=1, keepdims=True)
