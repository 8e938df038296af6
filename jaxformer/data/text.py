"""Text to train and evaluate language models on: read, tokenised once into a file, cut into windows."""

import contextlib
import hashlib
import json
import os
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import numpy as np

from jaxformer.data.pipeline import ALONE, IGNORED, Batch, Process, batches_ahead, fill
from jaxformer.data.tokenizer import Tokenizer, check_text
from jaxformer.errors import InputError
from jaxformer.locks import is_held, locked

if TYPE_CHECKING:
    import grain

FORMAT = 1  # of the cached arrays; another number, and all are made again
ARRAYS = ("tokens", "ends", "sizes", "cuts")
CHECKSUM = "sha256"
UNFINISHED, FRESH = "unfinished-", 60  # a folder so many seconds old may not be locked yet
SUFFIXES = (".txt", ".jsonl")
BLOCK = 2**20  # characters read at once
FEW = 10  # documents; fewer are not divided between training and validation as they are, but cut


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised documents.

    Attributes:
        tokens: [T] memory-mapped, uint16 where the vocabulary fits, else uint32; each document ends with the end token.
        ends: Int64 [N], the place behind the end token of each document.
        sizes: Int64 [N], their text in bytes of UTF-8.
        cuts: Int64 [C, 2], places at which the text may be cut, and the bytes of all text before them.
        learned: Boolean [T], True at tokens that a model learns to predict, of documents that have nothing to do with
            each other; `sizes` are then the bytes of what is learned. None: it is running text, and all is learned.
    """

    tokens: np.ndarray
    ends: np.ndarray
    sizes: np.ndarray
    cuts: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    learned: np.ndarray | None = None

    @property
    def count_learned(self) -> int:
        """The number of tokens to learn."""
        return len(self.tokens) if self.learned is None else int(self.learned.sum())


def documents(source: Path | None, field: str = "text") -> Iterator[str]:
    """Yield the documents of a source one by one, without empty ones.

    Args:
        source: A text file; a .jsonl file, of which each line has a document; a folder of .txt and .jsonl files, also
            in folders inside it, in order of their names. None: the language reference that comes with Python.
        field: Key of the document in a line of a .jsonl file.

    Raises:
        InputError: The source cannot be read, is not UTF-8 or not JSON, or has no text at all.
    """
    empty = True
    for text in reference() if source is None else files_documents(source, field):
        if text:
            empty = False
            yield text
    if empty:
        raise InputError(f"{source} is empty: there is no text to read")


def reference() -> Iterator[str]:
    """Return the topics of Python's own help, in order of their names."""
    from pydoc_data.topics import topics  # half a megabyte of text that little else needs

    return (topics[name] for name in sorted(topics))


def files_documents(source: Path, field: str) -> Iterator[str]:
    """Yield the documents of a file or a folder."""
    for path in files(source):
        # Line ends stay as they are, and the mark that some editors put before a text is no part of it.
        with reading(path), path.open(encoding="utf-8-sig", newline="\n") as file:
            if path.suffix == ".jsonl":
                yield from lines_documents(path, file, field)
            else:
                yield "".join(iter(lambda: file.read(BLOCK), ""))  # what is no text is found before all is in memory


def files(source: Path) -> list[Path]:
    """Return the file itself, or the text files of a folder, sorted."""
    with reading(source):
        if source.is_file():
            return [source]
        if not source.is_dir():
            raise InputError(f"{source} is neither a file nor a folder")
        names = (Path(folder, name) for folder, _, names in os.walk(source, onerror=refuse) for name in names)
        found = sorted(path for path in names if path.suffix in SUFFIXES)
    for path in found:
        if path.exists() and not path.is_file():  # a device has no end, a pipe cannot be read twice
            raise InputError(f"{path} is a device or a pipe: leave it out of the folder")
    if not found:
        raise InputError(f"{source} has no files that end in {' or '.join(SUFFIXES)}")
    return found


def others(source: Path) -> list[Path]:
    """Return the files of a folder that `documents` does not read, because their names end otherwise."""
    return sorted(path for path in source.rglob("*") if path.is_file() and path.suffix not in SUFFIXES)


def refuse(error: OSError) -> NoReturn:
    """Raise what else would be passed over in silence."""
    raise error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise InputError where something cannot be read, or is no text."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text") from error


def lines_documents(path: Path, lines: Iterable[str], field: str) -> Iterator[str]:
    """Yield the document of each line of a .jsonl file, of which some may be blank."""
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield line_document(line, field)
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error


def line_document(line: str, field: str) -> str:
    """Return the text that a line of JSON has under a name."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError("this is no JSON") from error
    text = row.get(field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise InputError(f"no text is named {field!r} here")
    return check_text(text)


def open_corpus(source: Path | None, tokenizer: Tokenizer, cache: Path, field: str = "text") -> Corpus:
    """Return the tokens of a source, from the folder `cache` if they are there.

    Text and tokenizer name them by their checksum, so that another text or tokenizer is another corpus; what was
    damaged since is made again. Raises InputError as `documents` does, and OSError where nothing can be written.
    """
    name = checksum(source, tokenizer, field)
    if corpus := load_corpus(cache / name):
        return corpus
    shutil.rmtree(cache / name, ignore_errors=True)  # damaged
    cache.mkdir(parents=True, exist_ok=True)
    remove_remains(cache)
    with TemporaryDirectory(prefix=UNFINISHED, dir=cache) as unfinished, locked(Path(unfinished), warn=False):
        folder = Path(unfinished, name)
        folder.mkdir()
        save_corpus(folder, documents(source, field), tokenizer)
        if checksum(source, tokenizer, field) != name:
            raise InputError(f"{source} changed while it was read: start again")
        corpus = load_corpus(rename(folder, cache / name))
    if corpus is None:
        raise OSError(f"{cache / name} does not hold what was written to it")
    return corpus


def remove_remains(cache: Path) -> None:
    """Remove what programs that were killed have left in a cache; each holds the lock of its folder while it lives."""
    for folder in cache.glob(f"{UNFINISHED}*"):
        with contextlib.suppress(OSError):  # another program removes it too
            if time.time() - folder.stat().st_mtime > FRESH and is_held(folder) is False:
                shutil.rmtree(folder)


def checksum(source: Path | None, tokenizer: Tokenizer, field: str) -> str:
    """Return a name for the tokens of a source: the same only if the documents and the tokenizer are."""
    total = hashlib.sha256(f"{FORMAT} {tokenizer.digest}".encode())
    for text in documents(source, field):
        total.update(hashlib.sha256(text.encode()).digest())
    return total.hexdigest()


def rename(folder: Path, target: Path) -> Path:
    """Rename a folder. Another program that was quicker has written the same."""
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():
            raise
    return target


def save_corpus(folder: Path, texts: Iterable[str], tokenizer: Tokenizer) -> None:
    """Write the arrays of a corpus, the tokens as they come, and last the checksum that makes them valid."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    ends, sizes, cuts = array("q"), array("q"), array("q")
    length = size = 0
    with (folder / "tokens.npy").open("wb") as file:
        write_header(file, dtype, 0)
        for text in texts:
            before = size
            file.write(np.array(tokenizer.begin, dtype).tobytes())
            length += len(tokenizer.begin)
            for ids, part in tokenizer.pieces(text):
                file.write(ids.astype(dtype).tobytes())
                length, size = length + len(ids), size + len(part.encode())
                cuts.extend((length, size))
            file.write(np.array(tokenizer.end, dtype).tobytes())
            length += 1
            cuts[-2] = length  # the end token belongs to its document
            ends.append(length)
            sizes.append(size - before)
        file.seek(0)
        write_header(file, dtype, length)
    for name, values in {"ends": ends, "sizes": sizes, "cuts": np.reshape(cuts, (-1, 2))}.items():
        np.save(folder / f"{name}.npy", np.asarray(values, np.int64))
    (folder / CHECKSUM).write_text(arrays_checksum(folder))


def write_header(file: BinaryIO, dtype: np.dtype, length: int) -> None:
    """Write the head of a .npy file of one dimension; it takes the same room whatever the length."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def load_corpus(folder: Path) -> Corpus | None:
    """Return the corpus in a folder, or None where there is none, or one that is not as it was written."""
    try:
        if (folder / CHECKSUM).read_text() != arrays_checksum(folder):
            return None
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return Corpus(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS))


def arrays_checksum(folder: Path) -> str:
    """Return a checksum over the arrays of a corpus."""
    total = hashlib.sha256()
    for name in ARRAYS:
        with (folder / f"{name}.npy").open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def split_corpus(corpus: Corpus, share: float = 0.1) -> tuple[Corpus, Corpus]:
    """Return a corpus without its last part, and that part, which has about `share` of the text, for validation.

    Documents stay whole where there are at least 10; else the text is cut where its bytes say, so that tokenizers of
    every kind are validated on the same text but for a few words. Raises InputError for a text too short to be cut.
    """
    sizes = np.cumsum(corpus.sizes)
    places = corpus.cuts if len(corpus.ends) < FEW else np.stack([corpus.ends, sizes], axis=1)
    places = places[(places[:, 0] > 0) & (places[:, 0] < len(corpus.tokens))]
    if not len(places):
        raise InputError(f"{len(corpus.tokens)} tokens are too few to keep some for validation: use more text")
    place, size = places[np.abs(places[:, 1] - (1 - share) * sizes[-1]).argmin()]
    before, behind = corpus.ends < place, corpus.ends > place
    inside, beyond = corpus.cuts[:, 0] <= place, corpus.cuts[:, 0] > place
    training = Corpus(
        corpus.tokens[:place],
        np.append(corpus.ends[before], place),
        np.diff(np.append(sizes[before], size), prepend=0),
        corpus.cuts[inside],
    )
    validation = Corpus(
        corpus.tokens[place:],
        corpus.ends[behind] - place,
        np.diff(sizes[behind], prepend=size),
        corpus.cuts[beyond] - [place, size],
    )
    return training, validation


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a corpus that follow each other, as a random-access source; a rest at the end is left out.

    Attributes:
        tokens: Tokens of the corpus, [T].
        length: Number of tokens of a window.
    """

    tokens: np.ndarray
    length: int

    def __len__(self) -> int:
        """Return the number of windows that have a token behind them."""
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> Batch:
        """Return window `index`, [length], and the tokens that follow its own."""
        start = int(index) * self.length
        span = self.tokens[start : start + self.length + 1].astype(np.int32)
        return {"inputs": span[:-1], "labels": span[1:]}


def text_batches(
    corpus: Corpus, length: int, batch_size: int, seed: int, process: Process = ALONE
) -> "grain.DatasetIterator":
    """Return an endless iterator over windows in random order.

    Inputs and labels, the token behind each, int32 [B, length].

    Every epoch has every window once, in an order of its own. `get_state` and `set_state` move to the sample.
    Raises InputError for a corpus shorter than a window.
    """
    check_length(corpus, length)
    return batches_ahead(Windows(corpus.tokens, length), batch_size, seed, process)


def windows(corpus: Corpus, length: int, batch_size: int) -> Iterator[Batch]:
    """Return all windows once, in order.

    Inputs and labels int32 [B, length]; every token but the first is a label once.

    What is missing in the last batch has labels -100. Raises InputError for a corpus shorter than a window.
    """
    check_length(corpus, length)
    step, shape = batch_size * length, (batch_size, length)
    spans = (corpus.tokens[start : start + step + 1] for start in range(0, len(corpus.tokens) - 1, step))
    return (
        {"inputs": fill(span[:-1], step, 0).reshape(shape), "labels": fill(span[1:], step, IGNORED).reshape(shape)}
        for span in spans
    )


def check_length(corpus: Corpus, length: int) -> None:
    """Raise InputError if a corpus does not fill one window, and the token behind it."""
    if len(corpus.tokens) <= length:
        raise InputError(
            f"the text has {len(corpus.tokens)} tokens, too few for a context of {length} and one to predict: "
            "use more text, or a shorter context"
        )
