"""Automata over tokens: where a stop string ends, and which tokens a list of phrases or a regular expression allows.

A compiled search carries one state per sequence and looks it up in a table. Tokens that do the same in every state
share a column, so that the table is small whatever the vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxformer.errors import InputError, shortened
from jaxformer.extras import require_extra
from jaxformer.generation.config import any_token_ids, as_tuple, is_sequence, plain, token_ids
from jaxformer.schema import is_integer

HALF = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer shows for a character that a token says only a part of
MOST_TOKENS = 2**24  # the largest vocabularies have a million
Transitions = Sequence[Mapping[str, int]]  # for each state, the next behind each character; "" for any other


class Automaton(NamedTuple):
    """A machine that reads tokens, C of whose kinds differ.

    Attributes:
        columns: Kind of each token, int32 [V].
        next: Transition table int32 [S, C], -1 where a token is forbidden.
        final: Accepting states, boolean [S].
        start: State after each prompt, int32 [B].
    """

    columns: jax.Array
    next: jax.Array
    final: jax.Array
    start: jax.Array


def stop_automaton(strings: Sequence[str], texts: Sequence[str], prompts: np.ndarray) -> Automaton:
    """Return an automaton that accepts the token within which one of the strings ends, behind prompts [B, P].

    The strings' text may have begun in earlier tokens and in the prompt. (Aho and Corasick 1975.)
    """
    prefixes = ["", *sorted({string[:end] for string in strings for end in range(1, len(string) + 1)}, key=len)]
    number = {prefix: state for state, prefix in enumerate(prefixes)}

    def behind(prefix: str, character: str) -> int:
        text = prefix + character
        return next(number[text[start:]] for start in range(len(text) + 1) if text[start:] in number)

    characters = sorted({*"".join(strings)})
    table = [{"": 0} | {each: behind(prefix, each) for each in characters} for prefix in prefixes]
    complete = np.array([any(prefix.endswith(string) for string in strings) for prefix in prefixes])
    states, seen = walk(table, texts, complete)
    stopped = len(prefixes)  # one more state, behind which nothing matters
    states = np.concatenate([np.where(seen, stopped, states), np.full((1, len(texts)), stopped)])
    start = []
    for prompt in prompts:
        state = 0
        for character in "".join(texts[token] for token in prompt if token >= 0):
            state = table[state].get(character, 0)
        start.append(state)
    return compressed(states, np.arange(stopped + 1) == stopped, start)


def allow_phrases(phrases: Sequence[Sequence[int]], vocabulary: int, eos: Sequence[int]) -> Automaton:
    """Return an automaton that allows one of some token sequences and then an EOS token: a tree of their beginnings.

    Args:
        phrases: Token ids of each phrase. EOS tokens at a phrase's end, as tokenizers write them, are that end.
        vocabulary: Number of tokens V.
        eos: The EOS tokens.

    Raises:
        InputError: No phrase is given, one is empty, or a token lies outside the vocabulary.
    """
    if not is_integer(vocabulary) or not 1 <= vocabulary <= MOST_TOKENS:
        wrong = shortened(repr(vocabulary), 60)
        raise InputError(f"vocabulary must be a number of tokens from 1 to {MOST_TOKENS}, not {wrong}")
    eos = check_end(eos, vocabulary)
    phrases = plain(phrases)
    if not is_sequence(phrases) or not all(is_sequence(phrase) and any_token_ids(phrase) for phrase in phrases):
        raise InputError(f"allowed phrases must be lists of token ids, not {shortened(repr(phrases), 60)}")
    phrases = [without_end(phrase, eos) for phrase in phrases]
    if not phrases or not all(len(phrase) for phrase in phrases):
        raise InputError("allowed phrases must be at least one, each of at least one token before its end")
    outside = [token for phrase in phrases for token in phrase if not 0 <= token < vocabulary]
    if outside:
        raise InputError(f"an allowed phrase has token {outside[0]}, outside the vocabulary of {vocabulary} tokens")
    ends = [token for phrase in phrases for token in phrase if token in eos]
    if ends:
        raise InputError(f"an allowed phrase goes on behind the EOS token {ends[0]}, which ends every sequence")
    prefixes = {tuple(phrase[:end]): 0 for phrase in phrases for end in range(len(phrase) + 1)}
    prefixes = {prefix: state for state, prefix in enumerate(sorted(prefixes, key=len))}
    used = sorted({token for phrase in phrases for token in phrase})
    column = {token: index for index, token in enumerate(used, start=1)}
    table = np.full((len(prefixes), len(used) + 1), -1)
    for prefix, state in prefixes.items():
        if prefix:
            table[prefixes[prefix[:-1]], column[prefix[-1]]] = state
    columns = np.zeros(vocabulary, np.int32)
    columns[used] = np.arange(1, len(used) + 1)
    final = np.zeros(len(prefixes), bool)
    final[[prefixes[tuple(phrase)] for phrase in phrases]] = True
    return with_end(columns, table, final, eos)


def check_end(eos: Any, vocabulary: int) -> tuple[int, ...]:
    """Return the EOS tokens. Raises InputError unless there are any, all of them in the vocabulary."""
    eos = plain(eos)
    if eos is None or (is_sequence(eos) and not eos):
        raise InputError("allowed sequences need an end: give an eos_token_id")
    if not token_ids(eos):
        raise InputError(f"eos must be token ids, not {shortened(repr(eos), 60)}")
    outside = [token for token in as_tuple(eos) if token >= vocabulary]
    if outside:
        raise InputError(f"eos has token {outside[0]}, outside the vocabulary of {vocabulary} tokens")
    return as_tuple(eos)


def check_texts(texts: Any) -> None:
    """Raise InputError unless `texts` are strings, one for each token."""
    if not is_sequence(texts) or not texts or not all(isinstance(text, str) for text in texts):
        raise InputError(f"token_texts must be a string for each token, not {shortened(repr(texts), 60)}")


def without_end(phrase: Sequence[int], eos: Sequence[int]) -> Sequence[int]:
    """Return the phrase without EOS tokens at its end."""
    length = len(phrase)
    while length and phrase[length - 1] in eos:
        length -= 1
    return phrase[:length]


def allow_regex(pattern: str, texts: Sequence[str], eos: Sequence[int]) -> Automaton:
    """Return an automaton that allows texts that match a regular expression as a whole, and then an EOS token.

    Args:
        pattern: A regular expression as in Python, without look-around and back-references.
        texts: Text of each token. Tokens that hold only a part of a character, which a tokenizer shows as the
            replacement character, are not allowed.
        eos: The EOS tokens.

    Raises:
        InputError: The pattern cannot be read, or no sequence of tokens matches it.
    """
    check_texts(texts)
    eos = check_end(eos, len(texts))
    if not isinstance(pattern, str):
        raise InputError(f"a regular expression must be a string, not {shortened(repr(pattern), 60)}")
    require_extra("regex", "a regular expression")
    import interegular

    try:
        machine = interegular.parse_pattern(pattern).to_fsm()
    except Exception as error:  # what it cannot read, it refuses in many types
        what = f"{shortened(repr(pattern), 100)} cannot be read: {shortened(str(error), 100)}"
        raise InputError(f"the regular expression {what}") from None
    number = {state: index for index, state in enumerate([machine.initial, *(machine.states - {machine.initial})])}
    symbols = [(symbol if isinstance(symbol, str) else "", key) for symbol, key in machine.alphabet.items()]
    table = [
        {symbol: number[reached[key]] for symbol, key in symbols if key in (reached := machine.map.get(state, {}))}
        for state in number
    ]
    for row in table:
        for symbol, _ in symbols:
            row.setdefault(symbol, -1)
    states, _ = walk(table, texts, np.zeros(len(number), bool))
    states[:, [not text or HALF in text for text in texts]] = -1  # what says nothing would lead nowhere
    states[:, list(eos)] = -1  # they end the text, whatever they are called
    final = np.array([state in machine.finals for state in number])
    columns, table = map(np.asarray, compressed(states, final, [0])[:2])
    table = without_dead_ends(table, final)
    if not final[0] and (table[0] < 0).all():
        shown = shortened(repr(pattern), 100)
        raise InputError(f"no sequence of the vocabulary's tokens matches the regular expression {shown}")
    return with_end(columns, table, final, eos)


def walk(table: Transitions, texts: Sequence[str], marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the states [S, V] behind each state and text, and whether a marked one was passed.

    -1: there is no such state.
    """
    alphabet = {character: index for index, character in enumerate(sorted({*"".join(map("".join, table))} - {""}))}
    other = len(alphabet)
    dense = np.array([[row.get(each, row.get("", -1)) for each in (*alphabet, "")] for row in table])
    dense = np.concatenate([dense, np.full((1, other + 1), -1)])  # row -1: from nowhere to nowhere
    letters = np.full((len(texts), max(map(len, texts), default=0)), -1)
    for token, text in enumerate(texts):
        letters[token, : len(text)] = [alphabet.get(character, other) for character in text]
    states = np.repeat(np.arange(len(table))[:, None], len(texts), axis=1)
    passed = np.zeros(states.shape, bool)
    for letter in letters.T:
        states = np.where(letter < 0, states, dense[states, letter])
        passed |= (letter >= 0) & (states >= 0) & marked[states]
    return states, passed


def without_dead_ends(table: np.ndarray, final: np.ndarray) -> np.ndarray:
    """Return the table without steps from which no final state can be reached."""
    alive = final.copy()
    while True:
        reaches = alive | (np.where(table >= 0, alive[table], False)).any(axis=1)
        if (reaches == alive).all():
            return np.where((table >= 0) & alive[table], table, -1)
        alive = reaches


def compressed(states: np.ndarray, final: np.ndarray, start: Sequence[int]) -> Automaton:
    """Return an automaton from its states [S, V]: equal columns become one."""
    table, columns = np.unique(states, axis=1, return_inverse=True)
    return automaton(columns.ravel(), table, final, start)


def with_end(columns: np.ndarray, table: np.ndarray, final: np.ndarray, eos: Sequence[int]) -> Automaton:
    """Return the automaton in whose final states, and nowhere else, the EOS tokens may follow, for one input."""
    columns = columns.astype(np.int32)
    S, C = table.shape
    columns[list(eos)] = C
    table = np.concatenate([table, np.where(final, S, -1)[:, None]], axis=1)
    over = np.full((1, C + 1), -1)  # one more state, behind the end, where nothing follows
    return automaton(columns, np.concatenate([table, over]), np.append(final, False), [0])


def ends_of(machine: Automaton) -> list[int]:
    """Return the EOS tokens of an automaton made `with_end`."""
    return np.flatnonzero(machine.columns == machine.next.shape[1] - 1).tolist()


def side_by_side(machines: Sequence[Automaton]) -> Automaton:
    """Return one automaton with the states of all, in which each input starts in its own."""
    columns, pairs = np.unique(np.stack([machine.columns for machine in machines]), axis=1, return_inverse=True)
    offsets = np.cumsum([0, *(len(machine.next) for machine in machines)])
    tables = [
        np.where(machine.next[:, chosen] < 0, -1, machine.next[:, chosen] + offset)
        for machine, chosen, offset in zip(machines, columns, offsets, strict=False)
    ]
    start = [machine.start + offset for machine, offset in zip(machines, offsets, strict=False)]
    final = np.concatenate([machine.final for machine in machines])
    return automaton(pairs.ravel(), np.concatenate(tables), final, np.concatenate(start))


def pad_to_bucket(machine: Automaton, batch: int) -> Any:
    """Return the automaton with room for more states and columns, so that a similar one is not another program."""
    S, C = machine.next.shape
    rows, columns = (1 << (size - 1).bit_length() for size in (S, C))
    table = np.full((rows, columns), -1)
    table[:S, :C] = machine.next
    final = np.zeros(rows, bool)
    final[:S] = machine.final
    start = np.broadcast_to(machine.start, (batch,)) if len(machine.start) == 1 else machine.start
    return automaton(machine.columns, table, final, start)


def automaton(columns: Any, table: Any, final: Any, start: Any) -> Automaton:
    """Return an automaton whose arrays are of one type, so that those of one shape are one program."""
    arrays: Any = (np.asarray(each, np.int32) for each in (columns, table, start))
    columns, table, start = arrays
    return Automaton(columns, table, final, start)
