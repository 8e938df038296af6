"""`generate`: what it makes of inputs, masks, start tokens and limits, with a hand-made model."""

import numpy as np
import pytest
from generation.chain import CODES, ChainModel, empty_cache, logits_after, make_step, make_tables

from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig, api, decode, generate, stream

V = 11


def test_decoder_only_equals_decode(rng: np.random.Generator) -> None:
    """Greedy, sampled and beams: the bucketed call generates what the plain one does."""
    tables, prompts = make_tables(rng, V), rng.integers(V, size=(3, 5))
    for settings in ({}, {"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3, "num_return_sequences": 2}):
        settings = settings | {"eos_token_id": 3, "max_new_tokens": 13, "repetition_penalty": 1.3}
        found = generate(ChainModel(tables, encoder=False), prompts, **settings)
        expected = decode(make_step(tables), empty_cache(3), prompts, **settings)
        assert found.sequences.tolist() == expected.sequences.tolist()
        np.testing.assert_allclose(found.sequences_scores, expected.sequences_scores, rtol=1e-6)
        assert found.sequences.dtype == np.int32


def test_left_padding_is_seen_or_inferred(rng: np.random.Generator) -> None:
    """A padded row generates what it does alone; the mask is inferred from a pad token that is no EOS token."""
    model = ChainModel(make_tables(rng, V), encoder=False)
    call = {"max_new_tokens": 8, "repetition_penalty": 1.5}
    alone = generate(model, [[4, 5]], **call).sequences
    prompts, mask = [[1, 2, 6, 7], [9, 9, 4, 5]], [[1, 1, 1, 1], [0, 0, 1, 1]]
    given = generate(model, prompts, inputs_mask=mask, **call).sequences
    assert given[1, 4:].tolist() == alone[0, 2:].tolist()
    assert generate(model, prompts, pad_token_id=9, **call).sequences.tolist() == given.tolist()
    attended = generate(model, prompts, **call).sequences
    assert attended[1, 4:].tolist() != alone[0, 2:].tolist()
    as_eos = generate(model, prompts, pad_token_id=9, eos_token_id=(9, 10), min_new_tokens=8, **call).sequences
    no_pad = generate(model, prompts, eos_token_id=(9, 10), min_new_tokens=8, **call).sequences
    assert as_eos.tolist() == no_pad.tolist()


@pytest.mark.parametrize("limit", [1, 2, 11])
def test_a_stream_is_what_generate_appends(rng: np.random.Generator, limit: int) -> None:
    """In parts, up to the end of the longest row; rows that ended before are padded."""
    model, prompts = ChainModel(make_tables(rng, V), encoder=False), rng.integers(V, size=(3, 5))
    for settings in ({}, {"do_sample": True, "num_return_sequences": 2, "seed": 4}):
        settings = settings | {"eos_token_id": (3, 7), "max_new_tokens": limit, "repetition_penalty": 1.3}
        whole = generate(model, prompts, **settings).sequences[:, 5:]
        parts = list(stream(model, prompts, **settings))
        assert np.concatenate(parts, axis=1).tolist() == whole.tolist()
        assert len(parts) > 1 or limit < 3 or whole.shape[1] < 3


@pytest.mark.parametrize("beams", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_steps_are_recorded_as_they_were(rng: np.random.Generator, beams: int) -> None:
    """Scores and logits of every step, which change nothing; the beams that they belong to add up to the result."""
    tables = make_tables(rng, V)
    model, prompts = ChainModel(tables, encoder=False), rng.integers(V, size=(2, 5))
    call = {
        "num_beams": beams,
        "max_new_tokens": 9,
        "eos_token_id": 3,
        "repetition_penalty": 1.4,
        "length_penalty": 0.5,
    }
    plain = generate(model, prompts, **call)
    found = generate(model, prompts, output_scores=True, output_logits=True, **call)
    assert (plain.scores, plain.logits) == (None, None)
    assert found.sequences.tolist() == plain.sequences.tolist()
    assert found.sequences_scores.tolist() == plain.sequences_scores.tolist()
    assert found.logits.shape == found.scores.shape == (len(found.scores), 2 * beams, V)
    for row, sequence in enumerate(found.sequences.tolist()):
        length = 5 + next((at + 1 for at, token in enumerate(sequence[5:]) if token == 3), len(sequence) - 5)
        rows = [row] * 9 if beams == 1 else found.beam_indices[row].tolist()
        np.testing.assert_allclose(found.logits[0, rows[0]], logits_after(tables, sequence[:5]), rtol=1e-6)
        total = sum(found.scores[t - 5, rows[t - 5], sequence[t]] for t in range(5, length))
        if beams > 1:
            np.testing.assert_allclose(total / (length - 5) ** 0.5, found.sequences_scores[row], rtol=1e-5)
            assert rows[length - 5 :] == [-1] * (len(rows) - length + 5)
        else:
            assert found.beam_indices is None
            assert np.argmax(found.scores[: length - 5, row], axis=1).tolist() == sequence[5:length]


def test_beams_are_not_streamed(rng: np.random.Generator) -> None:
    with pytest.raises(InputError, match="a beam search cannot be streamed"):
        stream(ChainModel(make_tables(rng, V), encoder=False), [[1]], num_beams=2, max_new_tokens=3)


def test_no_prompt_starts_from_bos(rng: np.random.Generator) -> None:
    """A decoder-only model needs no prompt where there is a BOS token."""
    model = ChainModel(make_tables(rng, V), encoder=False)
    expected = generate(model, [[2]], max_new_tokens=5).sequences
    assert generate(model, bos_token_id=2, max_new_tokens=5).sequences.tolist() == expected.tolist()


def test_encoder_decoder_reads_its_source(rng: np.random.Generator) -> None:
    """The source decides, in beams too; what the mask hides does not count, nor does the padding to a bucket."""
    tables = make_tables(rng, V)
    model = ChainModel(tables, encoder=True)
    call = {"decoder_start_token_id": 1, "max_new_tokens": 6, "num_beams": 2}
    both = generate(model, [[1, 2, 3], [4, 5, 6]], **call).sequences
    single = [generate(model, source, **call).sequences[0].tolist() for source in ([[1, 2, 3]], [[4, 5, 6]])]
    assert both.tolist() == single
    assert both[0].tolist() != both[1].tolist()
    assert generate(model, [[8, 6]], inputs_mask=[[1, 0]], **call).sequences.tolist() == [single[0]]
    greedy = generate(model, [[1, 2, 3]], decoder_start_token_id=1, max_new_tokens=1).sequences
    code = (logits_after(np.arange(CODES)[:, None], [1])[0] + 9) % CODES
    assert greedy.tolist() == [[1, int(tables[code].argmax())]]


def test_the_start_token_stands_in_front(rng: np.random.Generator) -> None:
    """It is put before decoder ids if no row has it; BOS stands in for it."""
    model, source = ChainModel(make_tables(rng, V), encoder=True), [[1, 2], [3, 4]]
    call = {"max_new_tokens": 3}

    def start(decoder_input_ids: list | None, **settings: int) -> list:
        found = generate(model, source, decoder_input_ids=decoder_input_ids, **settings, **call).sequences
        return found[:, :-3].tolist()

    assert start(None, decoder_start_token_id=6, bos_token_id=5) == [[6], [6]]
    assert start(None, bos_token_id=5) == [[5], [5]]
    assert start([[7], [8]], decoder_start_token_id=6) == [[6, 7], [6, 8]]
    assert start([[6], [8]], decoder_start_token_id=6) == [[6], [8]]


def test_positions_limit_the_length(rng: np.random.Generator) -> None:
    """The default length ends with the positions, buckets never exceed them, and a setting beyond is refused."""
    model = ChainModel(make_tables(rng, V), encoder=False, longest=29)
    prompts = rng.integers(V, size=(1, 15))
    assert generate(model, prompts).sequences.shape == (1, 29)
    assert generate(model, prompts, max_new_tokens=14).sequences.shape == (1, 29)
    with pytest.raises(InputError, match="exceed the 29 positions"):
        generate(model, prompts, max_new_tokens=15)
    with pytest.raises(InputError, match="at most 29"):
        generate(model, rng.integers(V, size=(1, 29)))


@pytest.mark.parametrize(
    ("encoder", "inputs", "settings", "message"),
    [
        (False, [[1, 11]], {}, "token 11, outside the vocabulary of 11"),
        (False, [[1, -1]], {}, "token -1, outside"),
        (False, [[1.5, 2.0]], {}, "whole numbers"),
        (False, [[1, 2], [3]], {}, "one length"),
        (False, [1, 2], {}, r"\[batch, length\]"),
        (False, [[]], {}, "not empty"),
        (False, None, {}, "bos_token_id"),
        (False, [[1, 2]], {"inputs_mask": [[1, 1, 1]]}, "inputs_mask has shape"),
        (False, [[1, 2]], {"inputs_mask": [[1, 0]]}, "pad on the left"),
        (False, [[1, 2]], {"inputs_mask": [[1, 1], [1]]}, "inputs_mask must be rows of one length"),
        (False, [[1, 2]], {"inputs_mask": [[np.nan, 1]]}, "inputs_mask has nan: give 1 for real tokens"),
        (False, [[1, 2]], {"inputs_mask": [[-1, 1]]}, "inputs_mask has -1"),
        (False, [[1, 2]], {"inputs_mask": [[0.5, 1]]}, "inputs_mask has 0.5"),
        (False, [[1, 2]], {"inputs_mask": [["1", "1"]]}, "inputs_mask has '1'"),
        (False, [[1, 2], [3, 4]], {"inputs_mask": [[1, 1], [0, 0]]}, "the prompt of row 1 ends in padding"),
        (True, [[1, 2], [3, 4]], {"inputs_mask": [[1, 1], [0, 0]], "bos_token_id": 1}, "row 1 .* is all padding"),
        (False, [[1, 2]], {"forced_eos_token_id": 2**63}, "forced_eos_token_id must be a token id, .* not 92233"),
        (False, [[1, 2]], {"begin_suppress_tokens": [2**63]}, r"begin_suppress_tokens must be .* not \[92233"),
        (False, [[1, 2]], {"config": 3}, "config must be a GenerationConfig or None, not 3"),
        (False, [[1, 2]], {"allowed": 3}, "allowed must be made by allow_phrases"),
        (False, [[1, 2]], {"token_texts": 3}, "token_texts must be a string for each token, not 3"),
        (False, [[1, 2]], {"decoder_input_ids": [[1]]}, "no decoder_input_ids"),
        (False, [[1, 2]], {"eos_token_id": (3, 12)}, "eos_token_id has token 12"),
        (False, [[1, 2]], {"bad_words": 1}, "unknown generation setting"),
        (True, None, {"bos_token_id": 1}, "needs inputs"),
        (True, [[1, 2]], {}, "decoder_start_token_id"),
        (True, [[1, 13]], {"bos_token_id": 1}, "outside the vocabulary of 13"),
        (True, [[1, 2]], {"bos_token_id": 1, "decoder_input_ids": [[1], [1]]}, "1 inputs, but 2 rows"),
        (True, [[1] * 41], {"bos_token_id": 1}, "more than the 40 positions"),
    ],
)
def test_bad_input(encoder: bool, inputs: list, settings: dict, message: str, rng: np.random.Generator) -> None:
    """One sentence that says what is wrong."""
    with pytest.raises(InputError, match=message):
        generate(ChainModel(make_tables(rng, V), encoder, longest=40), inputs, **settings)


@pytest.mark.parametrize(
    "mask", [[[0, 1, 1]], [[False, True, True]], [[0.0, 1.0, 1.0]], np.array([[0, 1, 1]], np.uint8)]
)
def test_masks_are_truth_values_or_0_and_1(rng: np.random.Generator, mask: object) -> None:
    model = ChainModel(make_tables(rng, V), encoder=False)
    expected = generate(model, [[2, 3]], max_new_tokens=4).sequences
    found = generate(model, [[1, 2, 3]], inputs_mask=mask, max_new_tokens=4).sequences
    np.testing.assert_array_equal(found[:, 1:], expected)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 2**30}, {"num_beams": 2**30}, {"output_scores": True}])
def test_what_memory_cannot_hold_is_refused(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, settings: dict
) -> None:
    """Before anything of that size is made."""
    monkeypatch.setattr(api, "memory", lambda: 1e9)
    model = ChainModel(make_tables(rng, V), encoder=False)
    with pytest.raises(InputError, match=r"tokens take .* GB, and there are 1.0: lower max_new_tokens"):
        generate(model, [[1, 2]], **{"max_new_tokens": 30_000_000} | settings)


def test_a_configuration_and_changes_to_it(rng: np.random.Generator) -> None:
    """Settings of a call go before those of the configuration, an explicit None too."""
    model = ChainModel(make_tables(rng, V), encoder=False)
    config = GenerationConfig(max_new_tokens=4, eos_token_id=0)
    assert generate(model, [[1]], config, eos_token_id=None).sequences.shape == (1, 5)
    assert generate(model, [[1]], config, max_new_tokens=None, eos_token_id=None).sequences.shape == (1, 21)


@pytest.mark.parametrize("settings", [{"suppress_tokens": list(range(V))}, {"bad_words_ids": [[i] for i in range(V)]}])
def test_where_no_token_is_left_none_is_drawn(rng: np.random.Generator, settings: dict) -> None:
    """Neither whole nor as a stream, and never one outside the vocabulary."""
    model, call = ChainModel(make_tables(rng, V), encoder=False), {"do_sample": True, "max_new_tokens": 5} | settings
    with pytest.raises(InputError, match="no token could be drawn: the settings exclude all of them"):
        generate(model, [[1, 2]], **call)
    with pytest.raises(InputError, match="no token could be drawn"):
        list(stream(model, [[1, 2]], **call))


def test_a_single_suppressed_token_needs_no_list(rng: np.random.Generator) -> None:
    """Not even the first of the vocabulary; and an empty list suppresses nothing."""
    tables = make_tables(rng, V)
    tables[:, 0] += 99
    model = ChainModel(tables, encoder=False)
    assert (generate(model, [[1]], suppress_tokens=[]).sequences[:, 1:] == 0).all()
    assert not (generate(model, [[1]], suppress_tokens=0).sequences[:, 1:] == 0).any()
    assert generate(model, [[1]], begin_suppress_tokens=0).sequences[0, 1] != 0


def test_without_a_prompt_the_start_counts_even_where_it_is_the_padding(rng: np.random.Generator) -> None:
    """One id may be both, as long as nobody gives it."""
    model = ChainModel(make_tables(rng, V), encoder=False)
    call = {"bos_token_id": 4, "eos_token_id": 3}
    assert generate(model, pad_token_id=4, **call).sequences[0, :9].tolist() == [
        *generate(model, [[4]], **call).sequences[0, :9]
    ]


def test_ids_too_large_for_their_type_are_refused(rng: np.random.Generator) -> None:
    """They do not wrap around to others."""
    model = ChainModel(make_tables(rng, V), encoder=False)
    with pytest.raises(InputError, match="inputs has token id 4294967301, which is beyond 32 bits"):
        generate(model, np.array([[2**32 + 5]]))
    with pytest.raises(InputError, match=r"max_new_tokens must be a whole number from 1 to 2\^31 - 1"):
        generate(model, [[1]], max_new_tokens=3_000_000_000)
    with pytest.raises(InputError, match="2147483648 tokens are too many: lower max_new_tokens"):
        generate(model, [[1]], max_new_tokens=2**31 - 1)


def test_numbers_of_numpy_are_numbers(rng: np.random.Generator) -> None:
    """Of any type, alone and in lists, and without their overflow."""
    config = GenerationConfig(
        max_new_tokens=np.int8(120), sequence_bias={(np.int64(3),): np.float32(2)}, seed=np.int64(3),
        eos_token_id=list(np.arange(2)), temperature=np.float32(0.5), do_sample=np.bool_(True),
    )  # fmt: skip
    assert config == GenerationConfig(
        max_new_tokens=120, sequence_bias={(3,): 2.0}, seed=3, eos_token_id=[0, 1], temperature=0.5, do_sample=True
    )
    assert config.length_limits(100)[1] == 220
    assert generate(ChainModel(make_tables(rng, V), encoder=False), [[1]], config).sequences.shape[0] == 1
    with pytest.raises(InputError, match="sequence_bias must be pairs"):
        GenerationConfig(sequence_bias=[(np.int64(3), 2.0)])


def test_what_a_stopped_row_draws_does_not_count(rng: np.random.Generator) -> None:
    """Without EOS tokens it goes on until all rows are stopped, and may find nothing left to draw."""
    tables = make_tables(rng, V)
    call = {"do_sample": True, "no_repeat_ngram_size": 1, "stop_strings": "a", "max_new_tokens": V - 1}
    texts = ["a" if token == 1 else "" for token in range(V)]
    prompts = [[2, 3, 4], [2, 2, 2]]
    tables[:, 1] -= 99  # the last to be drawn: the eighth of the first row, the tenth of the second
    found = generate(ChainModel(tables, encoder=False), prompts, token_texts=texts, **call).sequences
    assert (found[0, 10], found[1, 12]) == (1, 1)
    with pytest.raises(InputError, match="no token could be drawn"):
        generate(ChainModel(tables, encoder=False), prompts, token_texts=["b"] * V, **call)
