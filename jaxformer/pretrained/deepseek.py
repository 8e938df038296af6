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
from jaxformer.ops.rotary import RotaryLayout
from jaxformer.pretrained.llama import DECODER, FEED_FORWARD, NORMS, PROJECTIONS, decoder_config, decoder_table
from jaxformer.pretrained.mixture import EXPERTS, ROUTER, check_experts
from jaxformer.pretrained.rope import first_given, grown, rope, rope_parameters
from jaxformer.pretrained.settings import activation, head_width, read_settings
from jaxformer.pretrained.weights import Row, WeightTable, nested
from jaxformer.schema import Schema, choice, count, experts, flag, integer, layers, nullable, number, only

# What both may say.
COMMON: Schema = {
    **DECODER,
    "num_key_value_heads": nullable(count(32)),  # as many as there are heads; no weight depends on it
    "attention_bias": flag(False),
    "first_k_dense_replace": integer(0),
    "kv_lora_rank": count(512),
    "q_lora_rank": nullable(count(1536)),
    "qk_nope_head_dim": count(128),
    "qk_rope_head_dim": count(64),
    "v_head_dim": count(128),
    "n_group": count(None),
    "topk_group": count(None),
    "n_routed_experts": experts(64),
    "n_shared_experts": count(2),
    "num_experts_per_tok": count(None),
    "moe_intermediate_size": count(1407),
    "routed_scaling_factor": number(1.0),
    "moe_layer_freq": only(1),
}
V2: Schema = {
    **COMMON,
    "vocab_size": count(102400),
    "mlp_bias": flag(False),
    "scoring_func": only("softmax"),
    "topk_method": choice("greedy", ("greedy", "group_limited_greedy")),
}
V3: Schema = {
    **COMMON,
    "vocab_size": count(129280),
    "hidden_size": count(7168),
    "intermediate_size": count(18432),
    "moe_intermediate_size": count(2048),
    "num_hidden_layers": layers(61),
    "num_attention_heads": count(128),
    "n_shared_experts": count(1),
    "n_routed_experts": experts(256),
    "routed_scaling_factor": number(2.5),
    "n_group": count(8),
    "topk_group": count(4),
    "num_experts_per_tok": count(8),
    "first_k_dense_replace": integer(3),
    "norm_topk_prob": flag(True),
    "max_position_embeddings": count(4096),
    "rope_interleave": flag(True),
    "scoring_func": only("sigmoid"),
    "topk_method": only("noaux_tc"),
}
LATENTS = nested(
    "attention",
    "self_attn",
    Row("down", "kv_a_proj_with_mqa"),
    Row("latent_norm", "kv_a_layernorm"),
    Row(("key", "value"), "kv_b_proj", "(N + H) R"),
    Row("query_down", "q_a_proj"),
    Row("query_norm", "q_a_layernorm"),
    Row("output", "o_proj"),
)
SHARED = nested("feed_forward.shared", "mlp.shared_experts", *PROJECTIONS)
ROUTER_BIAS = Row("feed_forward.router_bias", "mlp.gate.e_score_correction_bias")


def deepseek_v2_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a DeepSeek-V2 `config.json`.

    Weights of experts are never renormalised, whatever it says.
    """
    hf = read_settings(hf, V2, {"num_experts": "n_routed_experts"})
    head_width(hf, "hidden_size", "num_attention_heads")  # asked by transformers too, though nothing follows from it
    groups = {}
    if hf["topk_method"] == "group_limited_greedy":
        check_groups(hf)
        groups = {"groups": hf["n_group"], "top_k_groups": hf["topk_group"]}
    router = SoftmaxRouter(renormalize=False, scale=hf["routed_scaling_factor"], **groups)
    return config(hf, router, bias=hf["mlp_bias"], layout="interleaved")


def deepseek_v3_config(hf: dict[str, Any]) -> TransformerConfig:
    """Return our configuration of a DeepSeek-V3 `config.json`."""
    hf = read_settings(hf, V3, {"num_local_experts": "n_routed_experts"})
    check_groups(hf)
    router = SigmoidRouter(hf["norm_topk_prob"], hf["n_group"], hf["topk_group"], hf["routed_scaling_factor"])
    return config(hf, router, bias=False, layout="interleaved" if hf["rope_interleave"] else "halves")


def config(hf: dict[str, Any], router: Router, *, bias: bool, layout: RotaryLayout) -> TransformerConfig:
    """Return our configuration of either version.

    Args:
        hf: Settings.
        router: How experts are chosen.
        bias: Whether feed-forward networks have biases, except for the experts that a router chooses.
        layout: Which dimensions of a head make a rotary pair.
    """
    check_given(hf, "num_experts_per_tok")
    check_experts(hf, "n_routed_experts")
    if hf["first_k_dense_replace"] > hf["num_hidden_layers"]:
        hf["first_k_dense_replace"] = hf["num_hidden_layers"]
    widths = {"d_ff": hf["moe_intermediate_size"], "activation": activation(hf, "hidden_act")}
    given = rope_parameters(hf)
    # With YaRN the scores grow by the square of what the length of the text asks for.
    everywhere = first_given(given["rope_type"], given["type"], "default") != "default" and given["mscale_all_dim"]
    if everywhere and given["factor"] is None:
        raise InputError("mscale_all_dim needs factor beside it")
    sharper = grown(given["factor"], everywhere) ** 2 if everywhere else 1.0
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
        rope=rope(hf, shared, layout=layout),
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
        raise InputError(f"{', '.join(missing)} must be given: there is no default")


def check_groups(hf: dict[str, Any]) -> None:
    """Raise InputError where experts cannot be split into the groups, or a token goes to more than these hold."""
    check_given(hf, "n_group", "topk_group", "num_experts_per_tok")
    experts, groups, chosen = hf["n_routed_experts"], hf["n_group"], hf["topk_group"]
    if experts % groups or chosen > groups:
        raise InputError(f"n_group={groups} must divide n_routed_experts={experts} and be at least topk_group={chosen}")
    if hf["num_experts_per_tok"] > chosen * (experts // groups):
        raise InputError(
            f"num_experts_per_tok={hf['num_experts_per_tok']} exceeds the experts of topk_group={chosen} groups"
        )


def deepseek_table(config: TransformerConfig) -> WeightTable:
    """Describe the checkpoints of DeepSeek: the map from a latent has for each head its key and its value."""
    attention = config.main.blocks[0].attention
    compressed = isinstance(attention, LatentAttentionConfig) and attention.q_lora_rank
    query = Row("attention.query", "self_attn.q_b_proj" if compressed else "self_attn.q_proj")
    further = rf"model\.layers\.{len(config.main.blocks)}\..*"  # a layer that predicts a token more, not used by itself
    mixture = (*FEED_FORWARD, ROUTER, ROUTER_BIAS, *EXPERTS, *SHARED)
    return decoder_table(*NORMS, *LATENTS, query, *mixture, kept=further)
