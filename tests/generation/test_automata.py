"""What may be said, and where it stops: automata over tokens, alone and inside a search."""

import re

import numpy as np
import pytest
from generation.chain import ChainModel, empty_cache, make_step, make_tables
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxformer import InputError, allow_phrases, allow_regex, decode, generate
from jaxformer.generation.automata import Automaton, side_by_side, stop_automaton

EOS, V = 10, 11
TEXTS = ["a", "b", "ab", "ba", "c", "", "aa", "1", "12", " ", "</s>"]
MODES = {
    "greedy": {},
    "sampled": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"num_beams": 4, "num_return_sequences": 4},
    "drawn beams": {"num_beams": 3, "num_return_sequences": 3, "do_sample": True},
}


def run(machine: Automaton, tokens: list[int], row: int = 0) -> int:
    """The state behind some tokens; -1 where they are not allowed."""
    state = int(machine.start[row])
    for token in tokens:
        state = int(machine.next[state, machine.columns[token]]) if state >= 0 else -1
    return state


def text_of(tokens: list[int]) -> str:
    return "".join(TEXTS[token] for token in tokens)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=9), st.sampled_from([["ab"], ["aab", "ba"], ["a1", "12 "], ["aaa", "aa"]]))
def test_a_stop_string_is_seen_in_the_token_within_which_it_ends(tokens: list[int], strings: list[str]) -> None:
    """Wherever it began, up to the first that ends; what is in the prompt alone stops nothing."""
    for prompt in range(min(3, len(tokens) + 1)):
        machine = stop_automaton(strings, TEXTS, np.array([tokens[:prompt]], int))
        for end in range(prompt + 1, len(tokens) + 1):
            before, text = len(text_of(tokens[: end - 1])), text_of(tokens[:end])
            ends = {match.end() for string in strings for match in re.finditer(f"(?<={re.escape(string)})", text)}
            here = any(before < place <= len(text) for place in ends)
            assert bool(machine.final[run(machine, tokens[prompt:end])]) == here
            if here:
                break


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=7))
def test_a_regular_expression_allows_the_beginnings_of_what_it_matches(tokens: list[int]) -> None:
    """And an EOS token behind a whole match alone; a token without text never."""
    patterns = {"(ab)*c": "(ab)*(a|c)?", "a+b?1*": "a*b?1*", "[^c]{2,4}": "[^c]{0,4}", "12( 12)*": "(12 )*(1|12)?"}
    for pattern, beginnings in patterns.items():
        machine = allow_regex(pattern, TEXTS, [EOS])
        text = text_of(tokens)
        said = run(machine, tokens) >= 0
        if said:
            assert re.fullmatch(beginnings, text)
            assert 5 not in tokens
        assert (run(machine, [*tokens, EOS]) >= 0) == (said and bool(re.fullmatch(pattern, text)))


def test_a_step_that_leads_nowhere_is_not_taken() -> None:
    """Behind "x" only "y" could follow, which no token says."""
    machine = allow_regex("xy|ab", ["x", "a", "b", "."], [3])
    assert run(machine, [0]) < 0 <= run(machine, [1])


def test_half_a_character_is_never_said() -> None:
    """Tokens of single bytes show as replacement characters, which "." would take for one."""
    machine = allow_regex(".{1,2}", ["\ufffd", "\ufffdb", "a", "</s>"], [3])
    assert max(run(machine, [0]), run(machine, [1])) < 0 <= run(machine, [2, 2, 3])


def test_a_phrase_may_be_written_with_its_end() -> None:
    """As tokenizers do."""
    plain, ended = allow_phrases(PHRASES, V, [EOS]), allow_phrases([[*phrase, EOS] for phrase in PHRASES], V, [EOS])
    for one, other in zip(plain, ended, strict=True):
        np.testing.assert_array_equal(one, other)


PHRASES = [[1, 2, 3], [1, 4], [7], [1, 2]]


@pytest.mark.parametrize(
    ("mode", "seed"),
    [
        pytest.param(mode, seed, marks=[pytest.mark.slow] if seed or mode in ("sampled", "greedy") else [])
        for mode in MODES
        for seed in range(3)
    ],
)
def test_no_search_leaves_the_phrases(mode: str, seed: int) -> None:
    """Each row ends in one of its own phrases and EOS; where there are fewer than beams, the others are empty."""
    tables, prompts = make_tables(np.random.default_rng(seed), V), [[3], [6]]
    allowed = [allow_phrases(PHRASES, V, [EOS]), allow_phrases([[8, 8], [0]], V, [EOS])]
    call = {"max_new_tokens": 9, "eos_token_id": EOS, "pad_token_id": 5, "seed": seed, **MODES[mode]}
    found = decode(make_step(tables), empty_cache(2), prompts, allowed=allowed, **call)
    copies = call.get("num_return_sequences", 1)
    for row, (sequence, score) in enumerate(zip(found.sequences.tolist(), found.sequences_scores, strict=True)):
        said = [token for token in sequence[1:] if token != 5]
        if np.isneginf(score):
            assert said == []
        else:
            assert said in [[*phrase, EOS] for phrase in (PHRASES if row < copies else [[8, 8], [0]])]
    if mode == "beams":
        assert np.isfinite(found.sequences_scores).tolist() == [True] * 4 + [True, True, False, False]
        assert len({tuple(sequence) for sequence in found.sequences[:4].tolist()}) == 4


@pytest.mark.parametrize("mode", ["greedy", pytest.param("drawn beams", marks=pytest.mark.slow)])
def test_no_search_leaves_a_regular_expression(mode: str, rng: np.random.Generator) -> None:
    """Whatever other settings ask for; at the limit it may be cut off."""
    model, prompts = ChainModel(make_tables(rng, V), encoder=False), rng.integers(9, size=(3, 2))
    pattern, beginnings = r"(ab|c){2,3}1", r"(ab|c){0,3}a?|(ab|c){2,3}1"
    for limit, others in ((12, {}), (3, {"forced_eos_token_id": EOS}), (9, {"min_new_tokens": 9, "top_k": 1})):
        allowed = allow_regex(pattern, TEXTS, [EOS])
        call = {"max_new_tokens": limit, "eos_token_id": EOS, **MODES[mode], **others}
        found = generate(model, prompts, allowed=allowed, **call)
        for sequence, score in zip(found.sequences[:, 2:].tolist(), found.sequences_scores, strict=True):
            text = text_of([token for token in sequence if token != EOS])
            assert np.isneginf(score) or re.fullmatch(pattern if EOS in sequence else beginnings, text)


def test_beams_find_the_likeliest_phrase(rng: np.random.Generator) -> None:
    """As listing all of them does."""
    tables = make_tables(rng, V)
    found = decode(
        make_step(tables), empty_cache(1), [[3]], allowed=allow_phrases(PHRASES, V, [EOS]),
        num_beams=4, num_return_sequences=4, max_new_tokens=9, eos_token_id=EOS, length_penalty=0.0,
    )  # fmt: skip
    listed = []
    for phrase in PHRASES:
        code, total = (3 + 7) % 1009, 0.0
        for token in [*phrase, EOS]:
            logits = tables[code].astype(np.float64)
            total += logits[token] - np.log(np.exp(logits).sum())
            code = (code * 31 + token + 7) % 1009
        listed.append((total, [*phrase, EOS]))
    listed.sort(reverse=True)
    np.testing.assert_allclose(found.sequences_scores, [total for total, _ in listed], rtol=1e-5)
    said = [row[1 : 1 + len(phrase)] for row, (_, phrase) in zip(found.sequences.tolist(), listed, strict=True)]
    assert said == [phrase for _, phrase in listed]


def test_automata_stand_side_by_side() -> None:
    """Each input starts in its own, and none has the other's tokens."""
    machines = [allow_phrases([[1, 2]], V, [EOS]), allow_regex("aa|b", TEXTS, [EOS]), allow_phrases([[2]], V, [EOS])]
    both = side_by_side(machines)
    for row, machine in enumerate(machines):
        for tokens in ([1], [1, 2], [1, 2, EOS], [2], [2, EOS], [6], [6, EOS], [0, 0, EOS], [0, 1], [EOS]):
            assert (run(both, tokens, row) < 0) == (run(machine, tokens) < 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: allow_phrases([], V, [EOS]), "at least one"),
        (lambda: allow_phrases([[1], []], V, [EOS]), "at least one token"),
        (lambda: allow_phrases([[11]], V, [EOS]), "token 11, outside the vocabulary of 11"),
        (lambda: allow_phrases([[1]], V, []), "give an eos_token_id"),
        (lambda: allow_phrases([[EOS]], V, [EOS]), "at least one token before its end"),
        (lambda: allow_phrases([[1, EOS, 2]], V, [EOS]), "goes on behind the EOS token 10"),
        (lambda: allow_phrases([[1]], V, [V]), "eos has token 11, outside the vocabulary of 11"),
        (lambda: allow_regex("</s>", TEXTS, [EOS]), "no sequence of the vocabulary's tokens matches"),
        (lambda: allow_regex("(", TEXTS, [EOS]), "cannot be read"),
        (lambda: allow_regex("z", TEXTS, [EOS]), "no sequence of the vocabulary's tokens matches"),
    ],
)
def test_what_cannot_be_allowed_is_refused(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_automata_fit_the_call(rng: np.random.Generator) -> None:
    model = ChainModel(make_tables(rng, V), encoder=False)
    with pytest.raises(InputError, match="2 inputs, but 1 automata"):
        generate(model, [[1], [2]], allowed=[allow_phrases([[1]], V, [EOS])], eos_token_id=EOS)
    with pytest.raises(InputError, match="allowed is for 12 tokens, but the model has 11"):
        generate(model, [[1]], allowed=allow_phrases([[1]], 12, [EOS]), eos_token_id=EOS)
    for eos in (None, 9, (9, EOS)):
        with pytest.raises(InputError, match=r"allowed ends with the EOS tokens \[10\], but eos_token_id is"):
            generate(model, [[1]], allowed=allow_phrases([[1]], V, [EOS]), eos_token_id=eos)
    with pytest.raises(InputError, match="token_texts are 3, but the model has 11 tokens"):
        generate(model, [[1]], stop_strings="a", token_texts=TEXTS[:3])
    with pytest.raises(InputError, match="stop_strings need the text of each token"):
        generate(model, [[1]], stop_strings="a")
    step = make_step(make_tables(rng, V))
    with pytest.raises(InputError, match="token_texts or allowed are for 12 tokens, not 11"):
        decode(step, empty_cache(1), [[1]], allowed=allow_phrases([[1]], 12, [EOS]), eos_token_id=EOS)
    with pytest.raises(InputError, match="token_texts or allowed are for 3 tokens, not 11"):
        decode(step, empty_cache(1), [[1]], stop_strings="a", token_texts=TEXTS[:3])
    with pytest.raises(InputError, match="the prompt has token 7, but token_texts are 3"):
        decode(step, empty_cache(1), [[7]], stop_strings="a", token_texts=TEXTS[:3])


@pytest.mark.parametrize("beams", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_stop_strings_end_sequences(beams: int, rng: np.random.Generator) -> None:
    """The sequence ends with the token within which the first of them ends."""
    model, prompts = ChainModel(make_tables(rng, V), encoder=False), rng.integers(9, size=(5, 2))
    call = {"max_new_tokens": 12, "eos_token_id": EOS, "pad_token_id": 5, "num_beams": beams}
    found = generate(model, prompts, stop_strings=["ab", "1"], token_texts=TEXTS, **call).sequences.tolist()
    stopped = 0
    for sequence in found:
        *inside, last = [token for token in sequence[2:] if token != 5]
        start = text_of(sequence[:2])
        seen = [place for place in (text_of([*sequence[:2], *inside]).find(s, 0) for s in ("ab", "1")) if place >= 0]
        assert all(place < len(start) for place in seen)
        stopped += last != EOS and len(inside) < 11
    assert stopped > 0
