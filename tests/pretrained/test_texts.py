"""Texts in, texts out: batches that are padded as a model reads them, and completions."""

from typing import Any

import numpy as np
import pytest
import tokenizers
from flax import nnx

from jaxformer import GenerationConfig, InputError, Transformer, decoder_only, encoder_decoder
from jaxformer.data import train_tokenizer
from jaxformer.pretrained import Pretrained

TEXT = ["the quick brown fox jumps over the lazy dog and says hello"]
TEXTS = ["the fox", "hello", "the quick brown dog"]
TOKENIZER = train_tokenizer("char", TEXT, 64).backend
VOCAB = TOKENIZER.get_vocab_size()
END = TOKENIZER.token_to_id("<|endoftext|>")
SETTINGS = GenerationConfig(eos_token_id=END, pad_token_id=END, decoder_start_token_id=5, max_new_tokens=7)


def make(config: Any, tokenizer: tokenizers.Tokenizer | None = TOKENIZER) -> Pretrained:
    return Pretrained(Transformer(config, rngs=nnx.Rngs(0)), tokenizer, SETTINGS, {})


GPT = make(decoder_only(VOCAB, length=48, dim=24, layers=2, heads=3))
SEQ2SEQ = make(encoder_decoder(VOCAB, dim=24, layers=1, heads=3, d_ff=32))


def test_decoders_are_padded_on_the_left_and_encoders_on_the_right() -> None:
    left, right = GPT.encode(TEXTS), SEQ2SEQ.encode(TEXTS)
    lengths = np.array([[len(text)] for text in TEXTS])
    places = np.arange(lengths.max())[None]
    np.testing.assert_array_equal(left["attention_mask"], places >= lengths.max() - lengths)
    np.testing.assert_array_equal(right["attention_mask"], places < lengths)
    assert GPT.decode(left["input_ids"]) == SEQ2SEQ.decode(right["input_ids"]) == TEXTS
    assert GPT.decode(left["input_ids"][2]) == TEXTS[2]
    assert GPT(**left).logits.shape == (3, lengths.max(), VOCAB)


@pytest.mark.parametrize("lm", [GPT, SEQ2SEQ], ids=["decoder", "encoder-decoder"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"eos_token_id": [END, 9]}])
def test_a_text_is_completed_alone_as_in_a_batch(lm: Pretrained, settings: dict[str, Any]) -> None:
    together = lm.complete(TEXTS, **settings)
    assert together == [lm.complete(text, **settings) for text in TEXTS]
    batch = lm.encode(TEXTS[0])
    tokens = lm.generate(**batch, **settings).sequences[0, batch["input_ids"].shape[1] if lm is GPT else 1 :]
    ends = np.flatnonzero(np.isin(tokens, settings.get("eos_token_id", END)))
    assert together[0] == lm.decode(tokens[: ends[0]] if ends.size else tokens)
    assert any(together)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GPT.complete([]), r"give a text, or a list of texts, not \[\]"),
        (lambda: GPT.encode(["fox", 3]), "give a text, or a list of texts"),
        (lambda: GPT.encode(None), "give a text, or a list of texts, not None"),
        (
            lambda: GPT.complete("fox", num_return_sequences=2),
            "one text is returned for each: for num_return_sequences call generate",
        ),
        (lambda: GPT.complete(""), "makes no tokens of '', and the model has no token to begin with"),
        (lambda: GPT.complete("x" * 60), "exceed the 48 positions"),
        (lambda: make(GPT.model.config, None).encode("fox"), "no tokenizer.json to read texts with: give token ids"),
        (lambda: make(GPT.model.config, None).decode([3]), "no tokenizer.json to write texts with"),
    ],
)
def test_what_cannot_be_read_is_refused(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
