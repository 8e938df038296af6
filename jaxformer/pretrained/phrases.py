"""The phrases that a checkpoint may generate, as texts or token ids."""

from typing import Any

import tokenizers

from jaxformer.errors import InputError, shortened
from jaxformer.generation import Automaton, allow_phrases
from jaxformer.generation.config import is_sequence
from jaxformer.pretrained import tokens


def allowed_automaton(
    phrases: Any, tokenizer: tokenizers.Tokenizer | None, vocabulary: int | None, eos: tuple[int, ...]
) -> Automaton | list[Automaton]:
    """Return the phrases that may be generated, or for each input some of its own.

    Args:
        phrases: Strings or lists of token ids; or a list of these for each input.
        tokenizer: Reads strings. None: there is none.
        vocabulary: Tokens of the decoder. None: there is no decoder.
        eos: The tokens that end a sequence.

    Raises:
        InputError: These are no phrases, or nothing can read or generate them.
    """
    phrases = [phrases] if isinstance(phrases, str) else phrases
    if not is_sequence(phrases) or not phrases or not all(map(is_phrase, phrases)):
        wrong = shortened(repr(phrases), 60)
        raise InputError(f"allowed_phrases must be at least one phrase: strings or lists of token ids, not {wrong}")
    if all(not isinstance(each, str) and each and all(map(is_phrase, each)) for each in phrases):
        machines = [allowed_automaton(each, tokenizer, vocabulary, eos) for each in phrases]
        return [machine for machine in machines if isinstance(machine, Automaton)]
    if vocabulary is None:
        raise InputError("an encoder-only model cannot generate: it has no decoder")
    if any(isinstance(phrase, str) for phrase in phrases) and tokenizer is None:
        raise InputError("the folder has no tokenizer.json to read phrases with: give them as token ids")
    return allow_phrases([phrase_ids(phrase, tokenizer) for phrase in phrases], vocabulary, eos)


def phrase_ids(phrase: Any, tokenizer: tokenizers.Tokenizer | None) -> list[int]:
    """Return the token ids of a phrase."""
    if not isinstance(phrase, str):
        return list(phrase)
    assert tokenizer is not None, "asked before"
    return tokens.encode(tokenizer, [phrase], special_tokens=False)[0]


def is_phrase(value: Any) -> bool:
    """Return whether a value can be a phrase, or several: text or a sequence."""
    return isinstance(value, str) or is_sequence(value)
