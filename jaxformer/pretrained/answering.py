"""Answers to questions: the part of a text that begins and ends with the most likely tokens."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from jaxformer.errors import InputError
from jaxformer.model import Transformer
from jaxformer.pretrained import encoders, tokens
from jaxformer.schema import is_integer, shown

WINDOW, STRIDE = 384, 128  # tokens of question and text that are read together, and how many of them twice
SPARE = 10  # parts of the text that are looked at beyond twice those that are asked for


class Answer(NamedTuple):
    """A part of a text that answers a question.

    Attributes:
        text: The part.
        score: Probability of its first token to begin, times that of its last one to end the answer. Where several
            parts end in the same words, it is their sum.
        start: Place of its first character in the text.
        end: Place behind its last character.
    """

    text: str
    score: float
    start: int
    end: int


def answers_of(
    model: Transformer,
    tokenizer: tokenizers.Tokenizer | None,
    pairs: Sequence[tuple[str, str]],
    *,
    top_k: int = 1,
    max_answer_len: int = 15,
    types: bool = True,
    name: Callable[[int], str] = "question {}".format,
) -> list[list[Answer]]:
    """Return the best answers to each question, best first.

    A text of more than 384 tokens with its question is read in windows that share 128 tokens.

    Args:
        model: A model with a head for answers.
        tokenizer: Its tokenizer. None: there is none.
        pairs: Questions, and the texts that they are about.
        top_k: The most answers to each.
        max_answer_len: The most tokens of an answer.
        types: As of `encoders.logits_of`.
        name: Says of a question's place, from 0 on, what to call it in messages.

    Raises:
        InputError: There is no tokenizer, a question or a text is blank, or the question leaves no room for the text.
    """
    for asked, value in (("top_k", top_k), ("max_answer_len", max_answer_len)):
        if not is_integer(value) or value < 1:
            raise InputError(f"{asked} must be a whole number of at least 1, not {shown(value)}")
    if tokenizer is None:
        raise InputError("the folder has no tokenizer.json to read texts with")
    limit = min(filter(None, (WINDOW, encoders.longest_input(model))))
    windows: list[tuple[int, tokenizers.Encoding]] = []
    for place, (question, text) in enumerate(pairs):
        if not (question.strip() and text.strip()):
            raise InputError(f"{name(place)} or its text is blank: give both")
        windows += [(place, window) for window in windows_of(tokenizer, question, text, limit, name(place))]
    called = [name(place) for place, _ in windows]
    logits = encoders.logits_of(model, [window for _, window in windows], types=types, name=called.__getitem__)
    found: list[list[Answer]] = [[] for _ in pairs]
    first_counts = model.encoder is not None
    for (place, window), row in zip(windows, logits, strict=True):
        for start, end, score in spans_of(window, row, top_k, max_answer_len, first_counts=first_counts):
            add_answer(found[place], pairs[place][1], *characters(window, start, end), score)
    return [sorted(answers, key=lambda answer: -answer.score)[:top_k] for answers in found]


def windows_of(
    tokenizer: tokenizers.Tokenizer, question: str, text: str, limit: int, name: str
) -> list[tokenizers.Encoding]:
    """Return a question with all of a text as tokens, in windows of at most `limit` tokens."""
    (whole,) = tokens.encodings(tokenizer, [(question, text)])
    if len(whole.ids) <= limit:
        windows = [whole]
    else:
        asked = len(whole.ids) - whole.sequence_ids.count(1)  # with special tokens
        stride = min(limit // 2, STRIDE)
        if limit - asked <= stride:
            raise InputError(
                f"{name} has {asked} tokens, and the model reads {limit} with the text: shorten the question"
            )
        (first,) = tokens.encodings(tokenizer, [(question, text)], limit=limit, stride=stride)
        windows = [first, *first.overflowing]
    if 1 not in whole.sequence_ids:
        raise InputError(f"the text of {name} has no token that the tokenizer knows")
    return windows


def spans_of(
    window: tokenizers.Encoding, logits: np.ndarray, top_k: int, most: int, *, first_counts: bool
) -> list[tuple[int, int, float]]:
    """Return the first token, the last token and the score of the likeliest parts of the text, best first.

    Args:
        window: The tokens of a question and its text.
        logits: That an answer begins and that it ends at a token [tokens, 2].
        top_k: Number of answers that are asked for.
        most: The most tokens of an answer.
        first_counts: Whether the first token, if it is special, may stand for no answer and takes its share.
    """
    inside = np.array([sequence == 1 for sequence in window.sequence_ids])
    seen = inside.copy()
    seen[0] |= first_counts and window.special_tokens_mask[0] == 1
    raised = np.where(seen[:, None], np.exp(logits - logits[seen].max(axis=0)), 0.0)
    begins, ends = (raised / raised.sum(axis=0)).T
    begins, ends = np.where(inside, begins, 0), np.where(inside, ends, 0)
    scores = np.tril(np.triu(np.outer(begins, ends)), most - 1).ravel()
    order = np.argsort(-scores, kind="stable")[: 2 * top_k + SPARE]
    places = ((*divmod(int(place), len(inside)), float(scores[place])) for place in order)
    return [(start, end, score) for start, end, score in places if inside[start] and inside[end] and start <= end]


def characters(window: tokenizers.Encoding, start: int, end: int) -> tuple[int, int]:
    """Return the places in the text of whole words, from that of one token to that of another."""
    first, last = window.token_to_word(start), window.token_to_word(end)
    begins = None if first is None else window.word_to_chars(first, 1)
    ends = None if last is None else window.word_to_chars(last, 1)
    if begins is None or ends is None:
        return window.offsets[start][0], window.offsets[end][1]
    return begins[0], ends[1]


def add_answer(answers: list[Answer], text: str, start: int, end: int, score: float) -> None:
    """Add an answer to others, or its score to that of the same words."""
    words = text[start:end]
    for place, known in enumerate(answers):
        if known.text.lower() == words.lower():
            answers[place] = known._replace(score=known.score + score)
            return
    answers.append(Answer(words, score, start, end))
