"""A new classifier on the encoder or the decoder of a checkpoint."""

import dataclasses

import numpy as np
from flax import nnx

from jaxformer.config import AnyClassifierConfig
from jaxformer.errors import InputError
from jaxformer.model import Transformer
from jaxformer.pretrained.bundle import Pretrained
from jaxformer.pretrained.export import CLASSES
from jaxformer.pretrained.families import family_of
from jaxformer.pretrained.heads import SEQUENCES, SPANS
from jaxformer.pretrained.sentences import without_sentences
from jaxformer.pretrained.weights import build, stored_tensors, tensors_of


def with_classifier(
    lm: Pretrained, labels: list[str], *, seed: int, head: str = SEQUENCES
) -> tuple[Pretrained, list[str]]:
    """Return a checkpoint with a classifier of these labels in place of its head, and the names of its new tensors.

    What the checkpoint has of the classifier stays: the pooler of BERT. A decoder's padding is named in its settings,
    because its classifier reads the last token before it.

    Args:
        lm: The encoder or decoder, with its weights.
        labels: The labels in the order of their numbers; of a head for answers, none.
        seed: Seed of the new weights.
        head: What is classified: the end of the name of a class of transformers, such as "ForTokenClassification".

    Raises:
        InputError: The family has no classifier.
    """
    family = family_of(lm.settings)
    architecture = f"{family.classes}{head}"
    numbers = {str(number): label for number, label in enumerate(labels)}
    settings = lm.settings | {
        "architectures": [CLASSES.get(architecture, architecture)],
        "id2label": numbers,
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    for key in ("num_labels", "problem_type", *(("id2label", "label2id") if head == SPANS else ())):
        settings.pop(key, None)
    if lm.model.encoder is None and settings.get("pad_token_id") is None:
        settings["pad_token_id"] = max(lm.generation.padding, 0)
    if lm.model.decoder is not None and lm.model.encoder is not None:  # files may say it of generation alone
        settings.setdefault("decoder_start_token_id", lm.generation.decoder_start_token_id)
    config = family.config(settings)
    if not isinstance(config.head, AnyClassifierConfig):
        raise InputError(f"{family.classes} has no classifier here: give an encoder or a decoder")
    table, before = family.table(config), family.table(lm.model.config)
    fresh = tensors_of(Transformer(config, rngs=nnx.Rngs(seed)), table)
    there = tensors_of(lm.model, before) | lm.kept
    if table.prefix != before.prefix:  # another name in front of the model, as in T5
        there = {
            table.prefix + name.removeprefix(before.prefix) if name.startswith(before.prefix) else name: tensor
            for name, tensor in there.items()
        }
    fits = {name for name, tensor in fresh.items() if name in there and there[name].shape == tensor.shape}
    tensors = {name: np.asarray(there[name], np.float32) if name in fits else fresh[name] for name in fresh}
    kept = {name: tensor for name, tensor in lm.kept.items() if name not in fresh}
    model = build(config, tensors, table)
    files = without_sentences(lm.files)
    return dataclasses.replace(lm, model=model, settings=settings, kept=kept, files=files), sorted(fresh.keys() - fits)


def head_modules(lm: Pretrained) -> tuple[str, ...]:
    """Return the names of the modules in a checkpoint that its classifier consists of."""
    table = family_of(lm.settings).table(lm.model.config)
    tensors = [tensor for tensor in stored_tensors(lm.model, table) if tensor.paths[0][0] == "head"]
    # Whole modules: peft takes "classifier" by itself, and would not find a part of it once more.
    return tuple(dict.fromkeys(tensor.name.removeprefix(table.prefix).partition(".")[0] for tensor in tensors))
