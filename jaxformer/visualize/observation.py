"""What attention did on one sequence, as every picture of it takes it, and numbers that describe it."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxformer.errors import InputError

LETTERS = {" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "": "\u2205"}  # open box, return, tab, empty set
SPACES = (" ", "\u2581", LETTERS[" "])
UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"}  # Unicode categories of characters without a shape


@dataclass(frozen=True)
class Observation:
    """The attention maps of a stack on one sequence, with the names of its tokens.

    Attributes:
        name: One word, for files and tabs.
        title: Title of its pictures.
        maps: L arrays [N, T, S].
        queries: T tokens.
        keys: S tokens; None in self-attention, where queries attend to each other.
        query_label: Label of the axis of queries.
        key_label: Label of the axis of keys.

    Raises:
        InputError: Where the tokens do not fit the maps.
    """

    name: str
    title: str
    maps: Sequence[np.ndarray]
    queries: Sequence[str]
    keys: Sequence[str] | None = None
    query_label: str = "query"
    key_label: str = "attends to"

    def __post_init__(self) -> None:
        """Refuse tokens that do not fit the maps."""
        check_tokens(self.maps, self.queries, self.sources)

    @property
    def sources(self) -> Sequence[str]:
        """The tokens that are attended to."""
        return self.queries if self.keys is None else self.keys


def check_tokens(maps: Sequence[np.ndarray], queries: Sequence[str], keys: Sequence[str]) -> None:
    """Raise InputError unless T queries and S keys name the rows and columns of all maps [N, T, S]."""
    shapes = {np.shape(layer)[1:] for layer in maps}
    if shapes != {(len(queries), len(keys))}:
        raise InputError(f"{len(queries)} query and {len(keys)} key tokens do not label maps of shape {shapes}")


def alignment(observation: Observation) -> tuple[np.ndarray, list[str], list[str]]:
    """Return how much words attend to words [t, s], the mean over all heads of all layers, and the words of both axes.

    Of the tokens of a word, those that attend are averaged, those that are attended to are summed (Clark et al. 2019,
    section 4.1).
    """
    mean = np.mean([np.mean(layer, axis=0) for layer in observation.maps], axis=0)  # [T, S]
    rows, columns = words_in(observation.queries), words_in(observation.sources)
    mean = np.stack([mean[place].mean(axis=0) for place in rows.values()])  # [t, S]
    mean = np.stack([mean[:, place].sum(axis=1) for place in columns.values()], axis=1)  # [t, s]
    return mean, [text for _, text in rows], [text for _, text in columns]


def words_in(tokens: Sequence[str]) -> dict[tuple[int, str], slice]:
    """Return the words that tokens spell, numbered, and where the tokens of each are.

    A word begins at a space, or where SentencePiece writes its mark for one; texts without any have a word per token.
    """
    begins = [token.startswith(SPACES) or special(token) for token in tokens]
    apart = not any(token.startswith(SPACES) for token in tokens)
    starts = [place for place, begin in enumerate(begins) if place == 0 or begin or apart or special(tokens[place - 1])]
    stops = [*starts[1:], len(tokens)]
    return {
        (number, "".join(tokens[start:stop]).lstrip("".join(SPACES))): slice(start, stop)
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True))
    }


def special(token: str) -> bool:
    """Return whether a token is written like one that stands for no text: <|endoftext|>, </s>, [SEP]."""
    return len(token) > 2 and (token[0], token[-1]) in (("<", ">"), ("[", "]"))


def entropies(heads: np.ndarray) -> np.ndarray:
    """Return how widely each head looks, in bits: maps [N, T, S] -> [N], the mean over queries of -sum p log2 p.

    0: every query attends to one key. log2(S): all attend to all keys alike. Queries that see nothing do not count.
    """
    bits = -np.sum(heads * np.log2(np.where(heads > 0, heads, 1)), axis=-1, dtype=np.float64)
    seeing = heads.sum(axis=-1) > 0
    return np.sum(bits * seeing, axis=-1) / np.maximum(seeing.sum(axis=-1), 1)


def visible(token: str) -> str:
    r"""Return the token as it can be seen on a screen and do no harm there: a mark for each character without a shape.

    >>> visible(" the\n\x1b")
    '␣the↵␛'
    """
    return LETTERS.get(token) or "".join(map(visible_character, token))


def visible_character(character: str) -> str:
    """Return a mark for a space or a control, the code point of what has no shape, else the character."""
    if character in LETTERS:
        return LETTERS[character]
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"\u27e8U+{code:04X}\u27e9" if unicodedata.category(character) in UNSEEN else character
