"""Models of transformers in CTranslate2, where it is installed."""

import tempfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
from common import cores

HERE = find_spec("ctranslate2") is not None

Generate = Callable[[np.ndarray, int, int], np.ndarray]


@cache
def in_ctranslate2(model: Any, quantization: str | None = None) -> Generate | None:
    """(prompts [B, P], beams, new tokens) -> sequences, as transformers gives them; None where there is no CTranslate2.

    quantization: "int8" for weights of 8 bits. The model is a Marian or a GPT-2 without a tokenizer: tokens are called
    by their numbers.
    """
    if not HERE:
        return None
    ctranslate2, loaders = map(import_module, ("ctranslate2", "ctranslate2.converters.transformers"))
    loader = loaders._MODEL_LOADERS[type(model.config).__name__]
    spec = loader.get_model_spec(model)
    both = model.config.is_encoder_decoder
    # Marian's last token, with which its decoder begins, is none there: its vector is zero.
    names = [str(number) for number in range(model.config.vocab_size - both)]
    end = model.config.eos_token_id
    if both:
        spec.register_source_vocabulary(names)
        spec.register_target_vocabulary(names)
        spec.config.decoder_start_token = names[end]
    else:
        spec.register_vocabulary(names)
    spec.config.bos_token = spec.config.eos_token = names[end]
    spec.config.unk_token = names[end]
    folder = tempfile.mkdtemp()
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(folder)
    settings = {
        "device": "cpu",
        "compute_type": quantization or "float32",
        "inter_threads": 1,
        "intra_threads": cores(),
    }
    runner = (ctranslate2.Translator if both else ctranslate2.Generator)(folder, **settings)

    def translate(prompts: np.ndarray, beams: int, new_tokens: int) -> np.ndarray:
        tokens = [[names[number] for number in row] for row in prompts]
        limits = {"beam_size": beams, "max_batch_size": 0}
        if both:
            found = runner.translate_batch(
                tokens, max_decoding_length=new_tokens, min_decoding_length=new_tokens, **limits
            )
            rows = [[model.config.decoder_start_token_id, *each.hypotheses[0]] for each in found]
        else:
            length = {"max_length": new_tokens, "min_length": new_tokens}
            # With the prompt in the result it would be read token by token.
            found = runner.generate_batch(tokens, include_prompt_in_result=False, **length, **limits)
            rows = [[*row, *each.sequences[0]] for row, each in zip(tokens, found, strict=True)]
        return np.array([[int(name) for name in row] for row in rows])

    return translate
