"""Tiny models with random weights, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    LlamaConfig,
    MarianConfig,
    MarianMTModel,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

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


DECODER = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 0}
DECODER |= {"attn_implementation": "eager"}
GPT2_SHAPE = {"n_positions": 37, "n_embd": 14, "n_layer": 3, "n_head": 7}
LLAMA_SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 19,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# Two of each at least, so that between them no setting keeps its default.
DECODERS: dict[str, tuple[type, dict[str, Any]]] = {
    "gpt2": (GPT2Config, GPT2_SHAPE),
    "gpt2-unusual": (
        GPT2Config,
        GPT2_SHAPE
        | {"n_inner": 23, "activation_function": "relu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False}
        | {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True},
    ),
    "llama": (LlamaConfig, LLAMA_SHAPE),
    "llama-unusual": (
        LlamaConfig,
        LLAMA_SHAPE
        | {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "tie_word_embeddings": True, "rms_norm_eps": 1e-3}
        | {"hidden_act": "gelu", "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    ),
    "mistral": (MistralConfig, LLAMA_SHAPE | {"sliding_window": 3, "rms_norm_eps": 1e-5}),
    "mistral-unusual": (MistralConfig, LLAMA_SHAPE | {"sliding_window": None, "head_dim": 10, "hidden_act": "relu"}),
    "qwen2": (Qwen2Config, LLAMA_SHAPE),
    "qwen2-unusual": (
        Qwen2Config,
        LLAMA_SHAPE
        | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": (Qwen3Config, LLAMA_SHAPE | {"head_dim": 8}),
    "qwen3-unusual": (
        Qwen3Config,
        LLAMA_SHAPE
        | {"head_dim": 6, "attention_bias": True, "use_sliding_window": True, "sliding_window": 3}
        | {"max_window_layers": 2, "rms_norm_eps": 1e-4},
    ),
}


def save_decoder(name: str, folder: Path) -> torch.nn.Module:
    """The language model `name` with weights that make its choices definite, written to `folder`."""
    config_class, settings = DECODERS[name]
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config_class(**DECODER, **settings)).eval()
    for key, parameter in model.named_parameters():
        mean = 1.0 if ("norm" in key or "ln_" in key) and key.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean=mean, std=0.3)
    model.save_pretrained(folder)
    return model
