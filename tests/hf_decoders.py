"""Settings of further tiny decoders, of families that differ from others in small numbers alone."""

from typing import Any

from transformers import (
    ArceeConfig,
    BloomConfig,
    CodeGenConfig,
    Cohere2Config,
    CohereConfig,
    Ernie4_5Config,
    FalconConfig,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    GPTJConfig,
    GPTNeoConfig,
    GraniteConfig,
    GraniteMoeConfig,
    HunYuanDenseV1Config,
    MinistralConfig,
    MptConfig,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    PhiConfig,
    Qwen2MoeConfig,
    SeedOssConfig,
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
# What hardly any of Llama's kin has by default.
OTHER = {
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default"} | THETA,
}
GLM4_MOE = {
    "moe_intermediate_size": 11,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
}
QWEN2_MOE = {
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 11,
    "shared_expert_intermediate_size": 9,
}
BLOOM_SHAPE = {"hidden_size": 24, "n_layer": 3, "n_head": 6}
FALCON_SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
MPT_SHAPE = {"d_model": 24, "n_layers": 2, "n_heads": 6, "max_seq_len": 64}
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
    "arcee": (ArceeConfig, LLAMA_SHAPE),
    "arcee-unusual": (ArceeConfig, LLAMA_SHAPE | OTHER | {"attention_bias": True, "mlp_bias": True, "head_dim": 6}),
    "cohere": (CohereConfig, LLAMA_SHAPE),
    "cohere-unusual": (
        CohereConfig,
        LLAMA_SHAPE
        | {"use_qk_norm": True, "attention_bias": True, "logit_scale": 0.7, "layer_norm_eps": 1e-3}
        | {"hidden_act": "relu", "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default"} | THETA},
    ),
    "cohere2": (Cohere2Config, LLAMA_SHAPE | {"sliding_window": 3, "num_hidden_layers": 4}),
    "cohere2-unusual": (
        Cohere2Config,
        LLAMA_SHAPE
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"], "sliding_window": 4}
        | {"attention_bias": True, "logit_scale": 0.7, "layer_norm_eps": 1e-3, "hidden_act": "relu"}
        | {"tie_word_embeddings": False, "rope_parameters": {"rope_type": "default"} | THETA},
    ),
    "ernie4-5": (Ernie4_5Config, LLAMA_SHAPE | {"head_dim": 4}),
    "ernie4-5-unusual": (
        Ernie4_5Config,
        LLAMA_SHAPE | OTHER | {"use_bias": True, "head_dim": 6, "tie_word_embeddings": False},
    ),
    "falcon": (FalconConfig, FALCON_SHAPE),
    "falcon-unusual": (
        FalconConfig,
        FALCON_SHAPE
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True, "ffn_hidden_size": 19}
        | {"activation": "relu", "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False}
        | {"rope_parameters": {"rope_type": "default"} | THETA},
    ),
    "falcon-one-norm": (
        FalconConfig,
        FALCON_SHAPE | {"new_decoder_architecture": True, "num_kv_heads": 3, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-in-turn": (FalconConfig, FALCON_SHAPE | {"multi_query": False, "parallel_attn": False}),
    "glm": (GlmConfig, LLAMA_SHAPE | {"head_dim": 4}),
    "glm-unusual": (
        GlmConfig,
        LLAMA_SHAPE
        | OTHER
        | {"head_dim": 8, "attention_bias": False}
        | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.75} | THETA},
    ),
    "glm4": (Glm4Config, LLAMA_SHAPE | {"head_dim": 8}),
    "glm4-unusual": (
        Glm4Config,
        LLAMA_SHAPE
        | OTHER
        | {"head_dim": 4, "attention_bias": False}
        | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0} | THETA},
    ),
    "glm4-moe": (Glm4MoeConfig, LLAMA_SHAPE | GLM4_MOE | {"head_dim": 8, "n_group": 2, "topk_group": 1}),
    "glm4-moe-unusual": (
        Glm4MoeConfig,
        LLAMA_SHAPE
        | GLM4_MOE
        | OTHER
        | {"head_dim": 4, "n_group": 3, "topk_group": 2, "num_experts_per_tok": 3, "n_shared_experts": 2}
        | {"norm_topk_prob": False, "routed_scaling_factor": 0.6, "attention_bias": True, "use_qk_norm": True}
        | {"first_k_dense_replace": 2}
        | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0} | THETA},
    ),
    "granitemoe": (GraniteMoeConfig, LLAMA_SHAPE | {"num_local_experts": 5}),
    "granitemoe-unusual": (
        GraniteMoeConfig,
        LLAMA_SHAPE
        | OTHER
        | {"attention_bias": True, "embedding_multiplier": 1.7, "residual_multiplier": 0.6}
        | {"attention_multiplier": 0.3, "logits_scaling": 1.3, "num_local_experts": 4, "num_experts_per_tok": 3},
    ),
    "olmoe": (OlmoeConfig, LLAMA_SHAPE | {"num_experts": 7, "num_experts_per_tok": 3}),
    "olmoe-unusual": (
        OlmoeConfig,
        LLAMA_SHAPE
        | OTHER
        | {"num_experts": 4, "num_experts_per_tok": 2, "attention_bias": True, "clip_qkv": 0.8}
        | {"norm_topk_prob": True},
    ),
    "qwen2-moe": (Qwen2MoeConfig, LLAMA_SHAPE | QWEN2_MOE),
    "qwen2-moe-unusual": (
        Qwen2MoeConfig,
        LLAMA_SHAPE
        | QWEN2_MOE
        | OTHER
        | {"num_hidden_layers": 5, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 13}
        | {"norm_topk_prob": True, "decoder_sparse_step": 2, "mlp_only_layers": [3], "qkv_bias": False}
        | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 3},
    ),
    "granite": (GraniteConfig, LLAMA_SHAPE),
    "granite-unusual": (
        GraniteConfig,
        LLAMA_SHAPE
        | OTHER
        | {"attention_bias": True, "mlp_bias": True, "embedding_multiplier": 1.7, "residual_multiplier": 0.6}
        | {"attention_multiplier": 0.3, "logits_scaling": 1.3},
    ),
    "hunyuan-v1-dense": (HunYuanDenseV1Config, LLAMA_SHAPE | {"head_dim": 4}),
    "hunyuan-v1-dense-unusual": (
        HunYuanDenseV1Config,
        LLAMA_SHAPE
        | OTHER
        | {"head_dim": 6, "attention_bias": True}
        | {"rope_parameters": {"rope_type": "dynamic", "alpha": 3.0, "factor": 1.0} | THETA},
    ),
    "ministral": (MinistralConfig, LLAMA_SHAPE | {"head_dim": 4, "sliding_window": 3}),
    "ministral-unusual": (
        MinistralConfig,
        LLAMA_SHAPE
        | OTHER
        | {"head_dim": 6, "sliding_window": 4}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    "mpt": (MptConfig, MPT_SHAPE),
    "mpt-unusual": (
        MptConfig,
        MPT_SHAPE
        | {"n_heads": 4, "attn_config": {"clip_qkv": 0.8, "softmax_scale": 0.3}, "layer_norm_epsilon": 1e-3}
        | {"tie_word_embeddings": False},
    ),
    "olmo": (OlmoConfig, LLAMA_SHAPE),
    "olmo-unusual": (
        OlmoConfig,
        LLAMA_SHAPE
        | {"attention_bias": True, "clip_qkv": 1.1, "hidden_act": "relu", "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default"} | THETA},
    ),
    "olmo3": (Olmo3Config, LLAMA_SHAPE | {"num_hidden_layers": 4, "sliding_window": 3, "intermediate_size": 23}),
    "olmo3-unusual": (
        Olmo3Config,
        LLAMA_SHAPE
        | {"attention_bias": True, "tie_word_embeddings": True, "rms_norm_eps": 1e-3, "hidden_act": "relu"}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"], "sliding_window": 4}
        | {
            "rope_parameters": {
                "full_attention": YARN | {"rope_theta": 99.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 33.0},
            }
        },
    ),
    "seed-oss": (SeedOssConfig, LLAMA_SHAPE | {"head_dim": 4}),
    "seed-oss-unusual": (
        SeedOssConfig,
        LLAMA_SHAPE | OTHER | {"head_dim": 6, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    ),
    "bloom": (BloomConfig, BLOOM_SHAPE),
    "bloom-unusual": (
        BloomConfig,
        BLOOM_SHAPE | {"n_head": 8, "layer_norm_epsilon": 1e-3, "tie_word_embeddings": False},
    ),
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
