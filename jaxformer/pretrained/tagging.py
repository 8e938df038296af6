"""Entities in texts: the labels of tokens, those side by side with one label put together."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

OUTSIDE = "O"  # the label of tokens that belong to nothing


class Entity(NamedTuple):
    """Characters of a text with one label.

    Attributes:
        label: The label, without the B- or I- before it.
        text: The characters, without spaces around them.
        score: Mean probability of the label over the tokens.
        start: Place of the first character in the text.
        end: Place behind the last character.
    """

    label: str
    text: str
    score: float
    start: int
    end: int


def entities_of(text: str, encoding: tokenizers.Encoding, shares: np.ndarray, labels: Sequence[str]) -> list[Entity]:
    """Return the entities of a text.

    Tokens in a row with one label are one entity. A label that starts with B- begins a new one.

    Args:
        text: The text.
        encoding: Its tokens.
        shares: Probabilities of the labels [tokens, classes].
        labels: The labels.
    """
    groups: list[list[tuple[str, float, tuple[int, int]]]] = []
    before = None
    for token, special in enumerate(encoding.special_tokens_mask):
        if special:
            continue
        best = int(shares[token].argmax())
        begins, label = split_label(labels[best])
        if begins or label != before:
            groups.append([])
        groups[-1].append((labels[best], float(shares[token, best]), encoding.offsets[token]))
        before = label
    found = []
    for group in groups:
        if group[0][0] == OUTSIDE:
            continue
        start, end = group[0][2][0], group[-1][2][1]
        score = float(np.mean([share for _, share, _ in group]))
        found.append(Entity(group[0][0].partition("-")[2] or group[0][0], text[start:end].strip(), score, start, end))
    return found


def split_label(label: str) -> tuple[bool, str]:
    """Return whether a label begins an entity whatever is before it, and the label without B- or I-."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label
