"""Tiny Marian and BART models with random weights, saved as transformers saves them."""

from pathlib import Path

import torch
from transformers import BartConfig, BartForConditionalGeneration, MarianConfig, MarianMTModel

VOCAB, PAD, EOS, START = 53, 1, 2, 5
SHAPE = {
    "vocab_size": VOCAB,
    "d_model": 14,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 7,
    "encoder_ffn_dim": 19,
    "decoder_ffn_dim": 23,
    "max_position_embeddings": 37,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": 0,
    "decoder_start_token_id": START,
    "forced_eos_token_id": None,
    "attn_implementation": "eager",
}
MODELS = {
    "marian": (MarianMTModel, MarianConfig, {"activation_function": "swish", "scale_embedding": True}),
    "marian-two-vocabularies": (
        MarianMTModel,
        MarianConfig,
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 47, "activation_function": "relu"},
    ),
    "bart": (BartForConditionalGeneration, BartConfig, {"activation_function": "gelu", "scale_embedding": True}),
    "bart-tanh": (BartForConditionalGeneration, BartConfig, {"activation_function": "gelu_new"}),
}


def save_model(name: str, folder: Path) -> torch.nn.Module:
    """The model `name` with weights that make its choices definite, written to `folder`."""
    model_class, config_class, settings = MODELS[name]
    torch.manual_seed(7)
    model = model_class(config_class(**SHAPE, **settings)).eval()
    for key, parameter in model.named_parameters():
        if "embed_positions" not in key or "bart" in name:
            mean = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=mean, std=0.4)
    model.final_logits_bias.normal_(std=0.5)
    model.final_logits_bias[0, EOS] += 2.0
    model.save_pretrained(folder)
    return model
