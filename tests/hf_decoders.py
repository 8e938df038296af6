"""Settings of further tiny decoders, of families that differ from others in small numbers alone."""

from typing import Any

from transformers import (
    CodeGenConfig,
    GPTJConfig,
    GPTNeoConfig,
    PhiConfig,
    StableLmConfig,
    Starcoder2Config,
)

GPT2_SHAPE = {"n_positions": 37, "n_embd": 14, "n_layer": 3, "n_head": 7}
LLAMA_SHAPE = {
    "hidden_size": 24,
    "intermediate_size": 19,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
THETA = {"rope_theta": 77.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
GPTJ_SHAPE = {"n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3, "rotary_dim": 6}
GPT_NEO_SHAPE = {
    "max_position_embeddings": 37,
    "hidden_size": 14,
    "num_layers": 3,
    "num_heads": 7,
    "attention_types": [[["global", "local", "local"], 1]],
    "window_size": 3,
}
# Two of each, so that between them no setting keeps its default.
FURTHER: dict[str, tuple[type, dict[str, Any]]] = {
    "codegen": (CodeGenConfig, GPTJ_SHAPE | {"n_head": 4, "rotary_dim": 4}),
    "codegen-unusual": (
        CodeGenConfig,
        GPTJ_SHAPE
        | {"n_embd": 32, "n_head": 8, "rotary_dim": 2, "n_inner": 19, "activation_function": "relu"}
        | {"layer_norm_epsilon": 1e-3, "tie_word_embeddings": True},
    ),
    "gpt-neo": (GPTNeoConfig, GPT_NEO_SHAPE),
    "gpt-neo-unusual": (
        GPTNeoConfig,
        GPT_NEO_SHAPE
        | {"attention_types": [[["local"], 1], [["global"], 2]], "window_size": 2, "intermediate_size": 23}
        | {"activation_function": "relu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False},
    ),
    "gptj": (GPTJConfig, GPTJ_SHAPE),
    "gptj-unusual": (
        GPTJConfig,
        GPTJ_SHAPE
        | {"rotary_dim": 8, "n_inner": 19, "activation_function": "relu", "layer_norm_epsilon": 1e-3}
        | {"tie_word_embeddings": True},
    ),
    "phi": (PhiConfig, LLAMA_SHAPE | {"num_attention_heads": 3, "num_key_value_heads": None}),
    "phi-unusual": (
        PhiConfig,
        LLAMA_SHAPE
        | {"num_attention_heads": 3, "num_key_value_heads": 1, "qk_layernorm": True, "hidden_act": "relu"}
        | {"layer_norm_eps": 1e-3, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.75} | THETA},
    ),
    "stablelm": (StableLmConfig, LLAMA_SHAPE | {"num_attention_heads": 3, "num_key_value_heads": 3}),
    "stablelm-unusual": (
        StableLmConfig,
        LLAMA_SHAPE
        | {"num_attention_heads": 3, "num_key_value_heads": 1}
        | {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True, "hidden_act": "relu"}
        | {"layer_norm_eps": 1e-3, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0} | THETA},
    ),
    "starcoder2": (Starcoder2Config, LLAMA_SHAPE),
    "starcoder2-unusual": (
        Starcoder2Config,
        LLAMA_SHAPE
        | {"use_bias": False, "sliding_window": 3, "norm_epsilon": 1e-3, "hidden_act": "relu"}
        | {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default"} | THETA},
    ),
}
