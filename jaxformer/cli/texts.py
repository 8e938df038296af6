"""What a checkpoint folder of Hugging Face makes of texts: continued, answered or translated, in batches."""

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxformer.cli.inputs import Prompts
from jaxformer.cli.streams import note, print_as_it_comes
from jaxformer.cli.terminal import search_name
from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig, generate, stream
from jaxformer.generation.arrays import pad, until_end
from jaxformer.pretrained import Pretrained
from jaxformer.pretrained.texts import text_of, token_rows
from jaxformer.tasks import prompts as contexts
from jaxformer.tasks.prompts import BATCH, pieces

ENOUGH = 256


def answer_texts(
    name: str, lm: Pretrained, settings: dict[str, Any], prompts: Prompts, *, raw: bool, as_json: bool
) -> None:
    """Print the answers of a model to prompts. A single one is printed as it is produced.

    Args:
        name: What the user called the model, for messages.
        lm: The model.
        settings: Changes to its settings of generation.
        prompts: Where the prompts are.
        raw: Whether to leave out the chat template.
        as_json: Whether to print JSON, a line per prompt.
    """
    if lm.tokenizer is None:
        raise InputError(f"{name} has no tokenizer.json: its tokens cannot be read as text")
    config, given = lm.generation.replace(**settings), prompts.read()
    rows = encode(lm, config, given, raw=raw)
    limit = lm.model.max_length
    if config.max_new_tokens is None and config.max_length is None:
        limit = lm.context
        behind = rows if lm.model.encoder is None else [[0]]  # a decoder behind an encoder begins with one token
        config = config.replace(max_new_tokens=contexts.room(ENOUGH, behind, lm.context, truncate=prompts.truncate))
    rows = [fit_row(lm, config, row, prompts, lm.context if prompts.truncate else limit) for row in rows]
    if not as_json:
        note(f"{name}: {search_name(config)}")
    if len(rows) == config.num_return_sequences == config.num_beams == 1 and not as_json:
        continued = lm.model.encoder is None and (raw or lm.chat_template is None)
        real = {"inputs_mask": np.ones((1, len(rows[0])), bool), "token_texts": token_texts(lm, config)}
        parts = (part[0] for part in stream(lm.model, [rows[0]], config, **real))
        answer = pieces(lambda ids: decoded(lm, config, ids), parts)
        print_as_it_comes(chain(given if continued else (), answer))
        return
    for text, answers in zip(given, answered(lm, config, rows), strict=True):
        for answer, score in answers:
            line = {"input": text, "output": answer, "score": round(score, 4)}
            print(json.dumps(line, ensure_ascii=False) if as_json else f"{text}\n-> {answer}\n", flush=True)


def encode(lm: Pretrained, config: GenerationConfig, texts: list[str], *, raw: bool) -> list[list[int]]:
    """Return the token ids of each text, inside the chat template where the model has one."""
    chats = lm.chat_template is not None and not raw
    written = [lm.chat([{"role": "user", "content": text}]) for text in texts] if chats else texts
    return token_rows(lm.tokenizer, written, config, begins=lm.model.encoder is None, special_tokens=not chats)


def fit_row(
    lm: Pretrained, config: GenerationConfig, row: list[int], prompts: Prompts, context: int | None
) -> list[int]:
    """Return the token ids, or their end, so that new tokens have room in the context of a decoder.

    Args:
        lm: The model.
        config: Settings of generation, which say how many tokens are new.
        row: Token ids of a prompt.
        prompts: Whether prompts may be cut.
        context: Length of the context. None: it has no end.

    Raises:
        InputError: The prompt does not fit.
    """
    if lm.model.encoder is not None:
        return contexts.fit_prompt(row, 0, lm.model.max_source_length, truncate=prompts.truncate)
    new_tokens = config.max_new_tokens or max((config.max_length or 0) - len(row), 1)
    if context is not None and lm.model.max_length is None:  # new tokens may go beyond it, prompts are cut for half
        new_tokens = min(new_tokens, context // 2)
    return contexts.fit_prompt(row, new_tokens, context, truncate=prompts.truncate)


def answered(lm: Pretrained, config: GenerationConfig, rows: list[list[int]]) -> Iterator[list[tuple[str, float]]]:
    """Return the answers to each row, best first, with scores.

    In the order of the rows; those of like length go together.
    """
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    done: dict[int, list[tuple[str, float]]] = {}
    texts = token_texts(lm, config)
    shown, count, start = 0, 0, time.perf_counter()
    bar = tqdm(total=len(rows), unit="text", file=sys.stderr, disable=len(rows) < 2 or not sys.stderr.isatty())
    with bar:
        for first in range(0, len(rows), BATCH):
            chosen = order[first : first + BATCH]
            batch, mask = pad([rows[row] for row in chosen], side="left" if lm.model.encoder is None else "right")
            seeds = [config.seed] * len(batch)  # each draws what it would draw alone
            found = generate(lm.model, batch, config, inputs_mask=mask, token_texts=texts, seed=seeds)
            new = found.sequences[:, batch.shape[1] if lm.model.encoder is None else 1 :]  # behind prompt or start
            outputs = [decoded(lm, config, row) for row in new]
            pairs, copies = list(zip(outputs, map(float, found.sequences_scores), strict=True)), len(new) // len(chosen)
            done |= {row: pairs[at * copies : (at + 1) * copies] for at, row in enumerate(chosen)}
            count += new.size
            bar.set_postfix_str(f"{count / (time.perf_counter() - start):.0f} tokens/s")
            bar.update(len(chosen))
            while shown in done:
                yield done.pop(shown)
                shown += 1


def token_texts(lm: Pretrained, config: GenerationConfig) -> list[str] | None:
    """Return the text of each token, where the folder's settings have stop strings."""
    return None if config.stop_strings is None else lm.token_texts


def decoded(lm: Pretrained, config: GenerationConfig, ids: np.ndarray) -> str:
    """Return the text of new tokens up to the end, without special tokens."""
    return text_of(lm.tokenizer, until_end(ids, config))
