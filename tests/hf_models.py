"""Tiny language models with random weights, saved as transformers saves them."""

import json
from pathlib import Path
from typing import Any

import torch
from hf_decoders import FURTHER, GPT2_SHAPE, LLAMA_SHAPE, THETA, YARN
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MarianConfig,
    MBartConfig,
    MistralConfig,
    MixtralConfig,
    MT5Config,
    Olmo2Config,
    OPTConfig,
    PegasusConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    T5Config,
)

VOCAB, PAD, EOS, START = 53, 1, 2, 5
TOKENS = {
    "vocab_size": VOCAB,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": 0,
    "decoder_start_token_id": START,
    "forced_eos_token_id": None,
    "attn_implementation": "eager",
}
SHAPE = {
    "d_model": 14,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 7,
    "encoder_ffn_dim": 19,
    "decoder_ffn_dim": 23,
    "max_position_embeddings": 37,
}
T5_SHAPE = {
    "d_model": 14,
    "d_kv": 6,
    "d_ff": 19,
    "num_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 5,
}
MODELS: dict[str, tuple[type, dict[str, Any]]] = {
    "marian": (MarianConfig, SHAPE | {"activation_function": "swish", "scale_embedding": True}),
    "marian-two-vocabularies": (
        MarianConfig,
        SHAPE | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 47, "activation_function": "relu"},
    ),
    "bart": (BartConfig, SHAPE | {"activation_function": "gelu", "scale_embedding": True}),
    "bart-tanh": (BartConfig, SHAPE | {"activation_function": "gelu_new"}),
    "mbart": (MBartConfig, SHAPE),
    "mbart-unusual": (MBartConfig, SHAPE | {"activation_function": "relu", "scale_embedding": True}),
    "pegasus": (PegasusConfig, SHAPE | {"activation_function": "relu", "scale_embedding": True}),
    "pegasus-unusual": (PegasusConfig, SHAPE | {"activation_function": "gelu"}),
    "t5": (T5Config, T5_SHAPE),
    "t5-v1_1": (
        T5Config,
        T5_SHAPE
        | {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-3, "relative_attention_max_distance": 7},
    ),
    "mt5": (MT5Config, T5_SHAPE),
    "mt5-unusual": (MT5Config, T5_SHAPE | {"feed_forward_proj": "gated-silu", "relative_attention_num_buckets": 6}),
}


def save_model(name: str, folder: Path, std: float = 0.4) -> torch.nn.Module:
    """The model `name` with weights that make its choices definite, written to `folder`."""
    std = min(std, 0.25) if "t5" in name else std  # whose scores are not scaled
    config_class, settings = MODELS[name]
    torch.manual_seed(7)
    model: Any = AutoModelForSeq2SeqLM.from_config(config_class(**TOKENS, **settings)).eval()
    for key, parameter in model.named_parameters():
        if "embed_positions" not in key or "bart" in name:
            mean = 1.0 if "norm" in key and key.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=mean, std=std)
    if "t5" not in name:
        model.final_logits_bias.normal_(std=0.5)
        model.final_logits_bias[0, EOS] += 2.0
    model.save_pretrained(folder)
    return with_own_head(folder) if name == "t5-v1_1" else model


def with_own_head(folder: Path) -> torch.nn.Module:
    """The model of a T5 folder made as version 1.1 has it: an output matrix that is not the embedding."""
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = 0.25 * torch.randn(tensors["shared.weight"].shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings = {key: value for key, value in settings.items() if key != "scale_decoder_outputs"}
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": False}))
    return AutoModelForSeq2SeqLM.from_pretrained(folder, attn_implementation="eager").eval()


DECODER = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": 0}
# As written down, without kernels: those for experts refuse sizes that are no multiples of four.
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
DECODER |= EAGER
# Keys of MLA as usual: those for all heads alike, and of experts few for each token.
DEEPSEEK_SHAPE = LLAMA_SHAPE | {
    "num_key_value_heads": 6,
    "kv_lora_rank": 10,
    "q_lora_rank": 13,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
    "moe_intermediate_size": 11,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
}
NEOX_SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 19,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 64,
}
OPT_SHAPE = {
    "hidden_size": 14,
    "ffn_dim": 19,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,
    "max_position_embeddings": 37,
    "word_embed_proj_dim": 14,
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
    "llama-linear": (LlamaConfig, LLAMA_SHAPE | {"rope_parameters": {"rope_type": "linear", "factor": 3.0} | THETA}),
    "llama-dynamic": (
        LlamaConfig,
        LLAMA_SHAPE
        | {"rope_parameters": {"rope_type": "dynamic", "factor": 3.0} | THETA, "max_position_embeddings": 30},
    ),
    "llama-llama3": (
        LlamaConfig,
        LLAMA_SHAPE
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 3.0,
                "original_max_position_embeddings": 16,
            }
            | THETA
        },
    ),
    "llama-yarn": (LlamaConfig, LLAMA_SHAPE | {"rope_parameters": YARN | THETA}),
    "llama-yarn-unusual": (
        LlamaConfig,
        LLAMA_SHAPE
        | {
            "rope_parameters": YARN
            | THETA
            | {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False, "mscale": 0.7, "mscale_all_dim": 0.2}
        },
    ),
    "smollm3": (SmolLM3Config, LLAMA_SHAPE | {"num_hidden_layers": 5}),
    "smollm3-unusual": (
        SmolLM3Config,
        LLAMA_SHAPE
        | {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 3, "attention_bias": True},
    ),
    "olmo2": (Olmo2Config, LLAMA_SHAPE),
    "olmo2-unusual": (
        Olmo2Config,
        LLAMA_SHAPE | {"attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "hidden_act": "relu"},
    ),
    "phi3": (Phi3Config, LLAMA_SHAPE),
    "phi3-unusual": (
        Phi3Config,
        LLAMA_SHAPE
        | {"num_attention_heads": 3, "num_key_value_heads": 1}
        | {"sliding_window": 4, "original_max_position_embeddings": 32, "rms_norm_eps": 1e-3}
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "partial_rotary_factor": 0.5,
                "short_factor": [1.0, 1.5],
                "long_factor": [2.0, 5.0],
            }
            | THETA
        },
    ),
    "gemma": (GemmaConfig, LLAMA_SHAPE | {"head_dim": 6}),
    "gemma-unusual": (
        GemmaConfig,
        LLAMA_SHAPE | {"head_dim": 10, "hidden_act": "relu", "attention_bias": True, "rms_norm_eps": 1e-3},
    ),
    "gemma2": (Gemma2Config, LLAMA_SHAPE | {"head_dim": 6, "sliding_window": 3}),
    "gemma2-unusual": (
        Gemma2Config,
        LLAMA_SHAPE
        | {"head_dim": 10, "query_pre_attn_scalar": 7, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
        | {"sliding_window": 4, "layer_types": ["full_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma3": (Gemma3TextConfig, LLAMA_SHAPE | {"head_dim": 6, "sliding_window": 3, "num_hidden_layers": 6}),
    "gemma3-unusual": (
        Gemma3TextConfig,
        LLAMA_SHAPE
        | {"head_dim": 10, "query_pre_attn_scalar": 7, "final_logit_softcapping": 3.0, "sliding_window": 4}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "attention_bias": True}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 99.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 33.0},
            }
        },
    ),
    "gpt-neox": (GPTNeoXConfig, NEOX_SHAPE),
    "gpt-neox-unusual": (
        GPTNeoXConfig,
        NEOX_SHAPE
        | {"use_parallel_residual": False, "attention_bias": False, "hidden_act": "relu", "layer_norm_eps": 1e-3}
        | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0} | THETA},
    ),
    "mixtral": (MixtralConfig, LLAMA_SHAPE | {"num_local_experts": 5}),
    "mixtral-unusual": (
        MixtralConfig,
        LLAMA_SHAPE
        | {"num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 3, "head_dim": 6, "hidden_act": "relu"}
        | {"rms_norm_eps": 1e-3, "tie_word_embeddings": True, "rope_parameters": {"rope_type": "default"} | THETA},
    ),
    "qwen3-moe": (
        Qwen3MoeConfig,
        LLAMA_SHAPE | {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 11},
    ),
    "qwen3-moe-unusual": (
        Qwen3MoeConfig,
        LLAMA_SHAPE
        | {"num_hidden_layers": 5, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 13}
        | {"norm_topk_prob": True, "decoder_sparse_step": 2, "mlp_only_layers": [3], "attention_bias": True}
        | {"use_sliding_window": True, "sliding_window": 3, "rms_norm_eps": 1e-4},
    ),
    "gpt-oss": (
        GptOssConfig,
        LLAMA_SHAPE | {"head_dim": 6, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 3},
    ),
    "gpt-oss-unusual": (
        GptOssConfig,
        LLAMA_SHAPE
        | {"head_dim": 10, "num_local_experts": 4, "num_experts_per_tok": 3, "sliding_window": 4, "swiglu_limit": 0.7}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "attention_bias": False}
        | {"rms_norm_eps": 1e-3, "rope_parameters": {"rope_type": "default"} | THETA},
    ),
    "deepseek-v2": (DeepseekV2Config, DEEPSEEK_SHAPE),
    "deepseek-v2-unusual": (
        DeepseekV2Config,
        DEEPSEEK_SHAPE
        | {"q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 3, "topk_group": 2}
        | {
            "routed_scaling_factor": 1.7,
            "n_shared_experts": 1,
            "moe_intermediate_size": 13,
            "attention_bias": True,
            "mlp_bias": True,
        }
        | {"rms_norm_eps": 1e-3, "first_k_dense_replace": 0, "tie_word_embeddings": True, "hidden_act": "gelu"}
        | {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4} | THETA},
    ),
    "deepseek-v3": (DeepseekV3Config, DEEPSEEK_SHAPE | {"n_group": 2, "topk_group": 1}),
    "deepseek-v3-unusual": (
        DeepseekV3Config,
        DEEPSEEK_SHAPE
        | {"q_lora_rank": None, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3, "n_shared_experts": 2}
        | {"norm_topk_prob": False, "routed_scaling_factor": 0.6, "rope_interleave": False, "attention_bias": True}
        | {"rms_norm_eps": 1e-3, "first_k_dense_replace": 2}
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0} | THETA},
    ),
    "opt": (OPTConfig, OPT_SHAPE),
    "opt-unusual": (
        OPTConfig,
        OPT_SHAPE
        | {"do_layer_norm_before": False, "word_embed_proj_dim": 10, "activation_function": "gelu"}
        | {"enable_bias": False},
    ),
    **FURTHER,
}


def save_decoder(name: str, folder: Path, std: float = 0.3) -> torch.nn.Module:
    """The language model `name` with weights that make its choices definite, written to `folder`."""
    config_class, settings = DECODERS[name]
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config_class(**DECODER, **settings)).eval()
    for key, parameter in model.named_parameters():
        mean = 1.0 if ("norm" in key or "ln_" in key) and key.endswith("weight") and "gemma" not in name else 0.0
        torch.nn.init.normal_(parameter, mean=mean, std=std)
    for key, buffer in model.named_buffers():
        if key.endswith("correction_bias"):
            torch.nn.init.normal_(buffer, std=std)
    model.save_pretrained(folder)
    return model
