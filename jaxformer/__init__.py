"""jaxformer: the whole Transformer in JAX."""

import jaxformer.interrupts  # noqa: F401  first: Ctrl-C ends the command `jaxformer` during the imports below

# isort: split
from jaxformer.config import TransformerConfig, from_dict, to_dict
from jaxformer.errors import InputError
from jaxformer.generation import (
    GenerationConfig,
    Generator,
    Session,
    allow_phrases,
    allow_regex,
    decode,
    generate,
    logits_processor,
    stream,
)
from jaxformer.generation.arrays import pad
from jaxformer.model import Cache, ModelOutput, Transformer
from jaxformer.ops import (
    AttentionMask,
    apply_rope,
    attention_scores,
    attention_weights,
    causal_mask,
    chunked_cross_entropy,
    cross_entropy,
    dot_product_attention,
    layer_norm,
    padding_mask,
    rms_norm,
    rope_cos_sin,
    rotary_frequencies,
    sinusoidal_positions,
    token_cross_entropy,
)
from jaxformer.presets import (
    PRESETS,
    decoder_only,
    encoder_decoder,
    encoder_only,
    gpt2,
    modern_decoder_only,
    paper_base,
    paper_big,
)
from jaxformer.pretrained import as_pretrained, from_pretrained, lora, save_pretrained

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "AttentionMask",
    "Cache",
    "GenerationConfig",
    "Generator",
    "InputError",
    "ModelOutput",
    "Session",
    "Transformer",
    "TransformerConfig",
    "allow_phrases",
    "allow_regex",
    "apply_rope",
    "as_pretrained",
    "attention_scores",
    "attention_weights",
    "causal_mask",
    "chunked_cross_entropy",
    "cross_entropy",
    "decode",
    "decoder_only",
    "dot_product_attention",
    "encoder_decoder",
    "encoder_only",
    "from_dict",
    "from_pretrained",
    "generate",
    "gpt2",
    "layer_norm",
    "logits_processor",
    "lora",
    "modern_decoder_only",
    "pad",
    "padding_mask",
    "paper_base",
    "paper_big",
    "rms_norm",
    "rope_cos_sin",
    "rotary_frequencies",
    "save_pretrained",
    "sinusoidal_positions",
    "stream",
    "to_dict",
    "token_cross_entropy",
]
