"""What a language model makes of prompts: printed as it is produced, or one prompt after the other."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.cli.kind import Run
from jaxformer.cli.streams import STANDARD_INPUT, is_piped, note, print_as_it_comes, read_lines
from jaxformer.cli.terminal import argument_text, search_name
from jaxformer.data import Tokenizer
from jaxformer.errors import InputError, listed
from jaxformer.generation import GenerationConfig, generate, stream
from jaxformer.generation.automata import HALF

BATCH = 16


@dataclass(frozen=True)
class Prompts:
    """The texts to read, given or in a file; none of either is a pipe on standard input, or else nothing.

    Attributes:
        given: Texts from the command line.
        file: A text in each line; "-" is standard input.
        truncate: Of what is too long, read the end.
    """

    given: tuple[str, ...]
    file: Path | None
    truncate: bool

    def read(self) -> list[str]:
        """Return the texts, none where there is no source of any. Raises InputError for what is no text."""
        if self.given:
            return [argument_text("--prompt", text) for text in self.given]
        if self.file is not None:
            return [line for _, line in read_lines(self.file)]
        return [line for _, line in read_lines(STANDARD_INPUT, least=0)] if is_piped() else []

    def room(self, most: int, rows: Sequence[Any], context: int | None) -> int:
        """How many tokens to generate where nobody said: `most`, or as many as fit behind every prompt.

        Where prompts may be cut, no fewer than half of the context.
        """
        if context is None:
            return most
        fitting = context - max(map(len, rows))
        return max(1, min(most, max(fitting, context // 2) if self.truncate else fitting))

    def fit(self, row: Any, new_tokens: int, context: int | None) -> Any:
        """A prompt that leaves room for the new tokens: as it is, or its end. Raises InputError where it does not."""
        if context is None or len(row) + new_tokens <= context:
            return row
        if not self.truncate or new_tokens >= context:
            and_new, lower = (f" and {new_tokens} new ones", "lower --max-new-tokens, ") if new_tokens else ("", "")
            raise InputError(
                f"{len(row)} tokens of prompt{and_new} exceed the model's context of {context}: shorten the prompt, "
                f"{lower}or --truncate to read the end of the prompt"
            )
        return row[len(row) + new_tokens - context :]


def continue_prompts(
    run: Run, config: GenerationConfig, prompts: Prompts, *, new_tokens: int | None, as_json: bool
) -> None:
    """Print what the model makes of the prompts. A single text is printed as it is produced.

    new_tokens: how many are to come (None: as many as fit, up to half the model's context). Rotary positions go on
    behind the context that a model was trained on, but what it says there is no language.
    """
    texts, context = prompts.read() or [""], run.settings.model.length
    rows = [encode(run.task, text) for text in texts]
    new_tokens = new_tokens or prompts.room(config.max_new_tokens or 1, rows, context)
    config = config.replace(max_new_tokens=new_tokens)
    rows = [prompts.fit(row, new_tokens, context) for row in rows]
    if not as_json:
        note(f"{run.folder}: {run.task_name}, {search_name(config)}")
    if len(texts) == config.num_return_sequences == config.num_beams == 1 and not as_json:
        produced = (part[0] for part in stream(run.model, rows[0][None], config))
        said = pieces(lambda ids: run.task.decode(until_end(ids, config)), produced)
        print_as_it_comes(chain([texts[0]], said))
        return
    for first in range(0, len(rows), BATCH):
        batch, mask = padded(rows[first : first + BATCH], max(config.padding, 0), left=True)
        seeds = [config.seed] * len(batch)  # each prompt draws what it would draw alone
        generated = generate(run.model, batch, config, inputs_mask=mask, seed=seeds)
        new = generated.sequences[:, batch.shape[1] :]
        for index, (ids, score) in enumerate(zip(new, generated.sequences_scores, strict=True)):
            prompt = texts[first + index // config.num_return_sequences]
            said = run.task.decode(until_end(ids, config))
            line = {"prompt": prompt, "continuation": said, "score": round(float(score), 4)}
            print(json.dumps(line, ensure_ascii=False) if as_json else f"{prompt}{said}\n", flush=True)


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The tokens of a prompt, int32 [T]; those of an empty one begin a document.

    Raises InputError for characters or words that the model never saw: it has nothing to make of them.
    """
    unknown = tokenizer.unknown(text)
    if unknown:
        raise InputError(f"the model never saw {listed(map(repr, unknown))}: leave that out")
    ids = np.asarray(tokenizer.encode(text), np.int32)
    return ids if ids.size else np.array([tokenizer.end], np.int32)


def padded(rows: list[np.ndarray], padding: int, *, left: bool) -> tuple[np.ndarray, np.ndarray]:
    """Token ids as one batch [B, T], the shorter ones padded on one side, and which are real."""
    longest = max(map(len, rows))
    batch, mask = np.full((len(rows), longest), padding, np.int32), np.zeros((len(rows), longest), bool)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), None) if left else slice(len(row))
        batch[index, place], mask[index, place] = row, True
    return batch, mask


def until_end(ids: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """The tokens before the first end token."""
    ends = np.flatnonzero(np.isin(ids, config.eos_ids))
    return ids[: ends[0]] if ends.size else ids


def pieces(decode: Callable[[np.ndarray], str], parts: Iterable[np.ndarray]) -> Iterator[str]:
    """The text of token ids that come in parts, as soon as its characters are complete."""
    ids, said, text = np.zeros(0, np.int32), 0, ""
    for part in parts:
        ids = np.concatenate([ids, part])
        text = decode(ids)
        whole = len(text.rstrip(HALF))
        yield text[said:whole]
        said = max(said, whole)
    yield text[said:]
