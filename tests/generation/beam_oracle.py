"""Beam search as Hugging Face `generate()` does it, in plain Python and float64: the algorithm written for reading.

One input at a time would be simpler, but two rules look across the batch, so inputs run side by side, as there.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

NEG_INF = -1e9  # the score of a place that nothing has taken yet

Processor = Callable[[list[float], list[int], int], list[float]]  # (scores, tokens so far, prompt length) -> scores


@dataclass(frozen=True)
class Beam:
    """A sequence, prompt included, and its score; `real` is False for a placeholder."""

    tokens: list[int]
    score: float
    real: bool = True


@dataclass
class Search:
    """One input's running beams and finished ones, best first; `improvable` never comes back once it is lost."""

    running: list[Beam]
    finished: list[Beam]
    improvable: bool = True
    all_ended: bool = False


@dataclass(frozen=True)
class Settings:
    """The settings of a beam search; max_length counts the prompt."""

    num_beams: int
    max_length: int
    eos: Sequence[int] = ()
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    processors: Sequence[Processor] = field(default=())


def log_softmax(logits: Sequence[float]) -> list[float]:
    """Log-probabilities of logits."""
    peak = max(logits)
    total = math.log(math.fsum(math.exp(logit - peak) for logit in logits))
    return [logit - peak - total for logit in logits]


def best(beams: list[Beam], count: int) -> list[Beam]:
    """The `count` best beams; among equals the earlier one."""
    return sorted(beams, key=lambda beam: -beam.score)[:count]


def beam_search(
    logits: Callable[[list[int]], Sequence[float]], prompts: Sequence[Sequence[int]], settings: Settings
) -> list[list[Beam]]:
    """The `num_beams` best sequences of each prompt, for a model that maps a sequence to its next token's logits."""
    prompt, width = len(prompts[0]), settings.num_beams
    searches = [
        Search(
            running=[Beam(list(tokens), 0.0)] + [Beam(list(tokens), NEG_INF)] * (width - 1),
            finished=[Beam(list(tokens), NEG_INF, real=False)] * width,
        )
        for tokens in prompts
    ]
    length = prompt
    while True:
        for search in searches:
            advance(search, logits, prompt, settings)
        length += 1
        all_full = all(beam.real for search in searches for beam in search.finished)
        if (
            not any(search.improvable for search in searches)
            or (all_full and settings.early_stopping is True)
            or all(search.all_ended for search in searches)
        ):
            return [search.finished for search in searches]


def advance(search: Search, logits: Callable, prompt: int, settings: Settings) -> None:
    """One token more for the running beams of one input."""
    width, penalty = settings.num_beams, settings.length_penalty
    length = len(search.running[0].tokens) + 1
    candidates = []
    for beam in search.running:
        scores = log_softmax(logits(beam.tokens))
        for processor in settings.processors:
            scores = processor(scores, beam.tokens, prompt)
        candidates += [Beam([*beam.tokens, token], beam.score + score) for token, score in enumerate(scores)]
    # Enough candidates that `width` go on even if every beam has all its ends among them.
    candidates = best(candidates, max(2, 1 + len(settings.eos)) * width)
    ends = [beam.tokens[-1] in settings.eos or length >= settings.max_length for beam in candidates]
    search.running = best(
        [replace(beam, score=beam.score + NEG_INF * end) for beam, end in zip(candidates, ends, strict=True)], width
    )
    # Only the first `width` candidates may finish. Their length is what was generated, EOS included.
    full = all(beam.real for beam in search.finished) and settings.early_stopping is True
    if search.improvable and not full:
        entering = [
            replace(beam, score=beam.score / (length - prompt) ** penalty)
            for beam, end in zip(candidates[:width], ends[:width], strict=True)
            if end
        ]
        search.finished = best(search.finished + entering, width)
    # Could the best running beam, with its present score, still beat the worst finished one?
    reaches = settings.early_stopping == "never" and penalty > 0
    possible = search.running[0].score / ((settings.max_length if reaches else length) - prompt) ** penalty
    worst = min(beam.score for beam in search.finished)
    search.improvable &= any(possible > (worst if beam.real else NEG_INF) for beam in search.finished)
    search.all_ended = all(ends)
