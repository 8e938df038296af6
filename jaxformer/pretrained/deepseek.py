"""DeepSeek-V2 and V3: multi-head latent attention, and a mixture of experts in all but the first layers."""

from typing import Any

from jaxformer.config import (
    FeedForwardConfig,
    LatentAttentionConfig,
    MoEConfig,
    RMSNormConfig,
    Router,
    SigmoidRouter,
    SoftmaxRouter,
    TransformerConfig,
)
from jaxformer.errors import InputError
from jaxformer.pretrained.llama import DEFAULTS, IGNORABLE, NORMS, RENAMES, decoder_config
from jaxformer.pretrained.mixture import EXPERTS, PROJECTIONS, ROUTER
from jaxformer.pretrained.rope import grown, rope, said_of_rope
from jaxformer.pretrained.settings import activation, require
from jaxformer.pretrained.weights import WeightTable

V2: dict[str, Any] = {
    "vocab_size": 102400,
    "first_k_dense_replace": 0,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "n_group": None,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "routed_scaling_factor": 1.0,
    "topk_group": None,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "num_experts_per_tok": None,
    "moe_intermediate_size": 1407,
}
V3: dict[str, Any] = {
    **V2,
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "routed_scaling_factor": 2.5,
    "n_group": 8,
    "topk_group": 4,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rope_interleave": True,
}
LATENTS = (
    (r"\.attention\.down\.", ".self_attn.kv_a_proj_with_mqa."),
    (r"\.attention\.latent_norm\.", ".self_attn.kv_a_layernorm."),
    (r"\.attention\.(key|value)\.", ".self_attn.kv_b_proj."),
    (r"\.attention\.query_down\.", ".self_attn.q_a_proj."),
    (r"\.attention\.query_norm\.", ".self_attn.q_a_layernorm."),
)
SHARED = (r"\.feed_forward\.shared\.(gate|up|down)\.", r".mlp.shared_experts.\1_proj.")
CORRECTION = (r"\.feed_forward\.correction$", ".mlp.gate.e_score_correction_bias")


def deepseek_v2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a DeepSeek-V2 `config.json`. Weights of experts are never renormalised, whatever it says."""
    hf = DEFAULTS | V2 | hf
    require(hf, scoring_func="softmax")
    match hf["topk_method"]:
        case "greedy":
            groups = {}
        case "group_limited_greedy":
            check_given(hf, "n_group", "topk_group")
            groups = {"groups": hf["n_group"], "kept_groups": hf["topk_group"]}
        case method:
            raise InputError(f"topk_method={method!r} is not supported: known are greedy, group_limited_greedy")
    return config(
        hf, SoftmaxRouter(renormalise=False, scale=hf["routed_scaling_factor"], **groups), bias=hf["mlp_bias"]
    )


def deepseek_v3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Our configuration of a DeepSeek-V3 `config.json`."""
    hf = DEFAULTS | V3 | hf
    require(hf, scoring_func="sigmoid")
    router = SigmoidRouter(hf["norm_topk_prob"], hf["n_group"], hf["topk_group"], hf["routed_scaling_factor"])
    return config(hf | {"mlp_bias": False}, router, bias=False)


def config(hf: dict[str, Any], router: Router, *, bias: bool) -> TransformerConfig:
    """What both have in common. bias: of feed-forward networks, but for those that a router chooses."""
    require(hf, moe_layer_freq=1)
    check_given(hf, "num_experts_per_tok")
    widths, said = {"hidden": hf["moe_intermediate_size"], "activation": activation(hf, "hidden_act")}, said_of_rope(hf)
    # With YaRN the scores grow by the square of what the length of the text asks for.
    everywhere = said.get("rope_type", said.get("type", "default")) != "default" and said.get("mscale_all_dim")
    sharper = grown(said["factor"], everywhere) ** 2 if everywhere else 1.0
    own, shared = hf["qk_nope_head_dim"], hf["qk_rope_head_dim"]
    attention = LatentAttentionConfig(
        hf["num_attention_heads"],
        hf["kv_lora_rank"],
        hf["q_lora_rank"],
        own,
        shared,
        hf["v_head_dim"],
        scale=sharper * (own + shared) ** -0.5,
        norm=RMSNormConfig(1e-6),  # whatever rms_norm_eps says
        bias=hf["attention_bias"],
        rope=rope(hf, shared, layout="interleaved" if hf.get("rope_interleave", True) else "halves"),
        dropout=hf["attention_dropout"],
    )
    plain = FeedForwardConfig(hf["intermediate_size"], widths["activation"], gated=True, bias=bias)
    mixture = MoEConfig(
        hf["n_routed_experts"],
        hf["num_experts_per_tok"],
        FeedForwardConfig(**widths, gated=True, bias=False),
        router,
        shared=FeedForwardConfig(
            hf["moe_intermediate_size"] * hf["n_shared_experts"], widths["activation"], gated=True, bias=bias
        ),
    )
    first = hf["first_k_dense_replace"]
    return decoder_config(hf, lambda _: attention, feed_forward=lambda layer: plain if layer < first else mixture)


def check_given(hf: dict[str, Any], *names: str) -> None:
    """Raise InputError where a file lacks a number that has no default."""
    if missing := [name for name in names if hf[name] is None]:
        raise InputError(f"config.json says nothing of {', '.join(missing)}, which has no default")


def deepseek_table(config: TransformerConfig) -> WeightTable:
    """Where DeepSeek keeps its weights: the map from a latent has for each head its key and its value."""
    attention = config.main.blocks[0].attention
    assert isinstance(attention, LatentAttentionConfig)
    query = (r"\.attention\.query\.", ".self_attn.q_b_proj." if attention.query_latent else ".self_attn.q_proj.")
    further = rf"model\.layers\.{len(config.main.blocks)}\..*"  # a layer that predicts a token more, not used by itself
    return WeightTable(
        (*NORMS, CORRECTION, ROUTER, SHARED, EXPERTS, PROJECTIONS, *LATENTS, query, *RENAMES),
        IGNORABLE,
        prefix="model.",
        by_head=r".*\.kv_b_proj\..*",
        kept=further,
    )
