"""The attention of models on a sequence, or on a pair of sequences."""

from collections.abc import Sequence

import numpy as np

from jaxformer.data import Tokenizer
from jaxformer.generation.arrays import until_end
from jaxformer.model import Transformer
from jaxformer.pretrained import Pretrained
from jaxformer.tasks.task import AttentionView, first_row, forward
from jaxformer.visualize import Observation


def observe_text(lm: Pretrained, text: str, *, raw: bool = False) -> AttentionView:
    """Return the attention of a checkpoint that reads a text; an encoder-decoder then answers it, greedily.

    Args:
        lm: The checkpoint.
        text: The text, which is the user's message where the checkpoint has a chat template.
        raw: Whether to leave out the chat template.

    Raises:
        InputError: It has no tokenizer, or the text is too long.
    """
    chats = lm.chat_template is not None and not raw
    written = lm.chat([{"role": "user", "content": text}]) if chats else text
    ids = lm.encode(written, special_tokens=not chats)["input_ids"][0]
    assert lm.tokenizer is not None, "it has encoded a text"
    names = Tokenizer("file", lm.tokenizer, last=0).names
    if lm.model.encoder is not None and lm.model.decoder is not None:
        found = lm.generate(ids[None], num_beams=1, do_sample=False, num_return_sequences=1)
        target = np.asarray(found.sequences)[0]
        answer = lm.decode(until_end(target[1:], lm.generation))
        return AttentionView(f"{text}  ->  {answer}", observe_pair(lm.model, ids, target, names(ids), names(target)))
    output = lm(ids[None], output_attentions=True)
    assert output.attentions is not None, "asked for"
    name, label = ("encoder", "token") if lm.model.decoder is None else ("decoder", "token that the model reads")
    observation = Observation(name, "Self-attention", first_row(output.attentions), names(ids), query_label=label)
    return AttentionView(text, (observation,))


def observe_pair(
    model: Transformer, source: np.ndarray, target: np.ndarray, source_names: list[str], target_names: Sequence[str]
) -> tuple[Observation, ...]:
    """Return the attention of a model that reads a source and is made to generate a target.

    Args:
        model: The model.
        source: Token ids [S].
        target: Token ids [T + 1], which begin with the token that starts the decoder.
        source_names: The source's tokens as people read them.
        target_names: Those of the target.
    """
    observed = forward(model, source[None], target[None, :-1], return_intermediates=True)
    encoder, decoder, cross = map(
        first_row, (observed.encoder.attentions, observed.decoder.attentions, observed.decoder.cross_attentions)
    )
    read, predicted = list(target_names[:-1]), list(target_names[1:])
    return (
        Observation("encoder", "Encoder self-attention", encoder, source_names, query_label="token of the source"),
        Observation("decoder", "Decoder self-attention", decoder, read, query_label="token that the decoder reads"),
        Observation(
            "cross",
            "Cross-attention",
            cross,
            predicted,
            source_names,
            query_label="token that the decoder predicts",
            key_label="attends to the source",
        ),
    )
