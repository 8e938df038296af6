"""From our configuration to the settings of a config.json: the inverse of all families' functions at once.

Families name the same few properties differently. What each key means is here once, and a family takes the keys
that it reads. Nothing is lost silently, because `as_pretrained` reads the settings back and compares.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from jaxformer.config import (
    AnyAttentionConfig,
    AnyClassifierConfig,
    DynamicScaling,
    LatentAttentionConfig,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    MoEConfig,
    Rope,
    SoftmaxRouter,
    TransformerConfig,
    YarnScaling,
)
from jaxformer.ops import Activation
from jaxformer.pretrained.settings import ACTIVATIONS
from jaxformer.pretrained.shape import Shape
from jaxformer.schema import Field, Schema

Settings = dict[str, Any]


def names_of(*names: str, value: Callable[[Shape], Any]) -> dict[str, Callable[[Shape], Any]]:
    """Return a property under each of its names."""
    return dict.fromkeys(names, value)


def of_attention(field: str) -> Callable[[Shape], Any]:
    """Return how to read a field of the attention of the first block, None in attention of another kind."""
    return lambda shape: getattr(shape.attention, field, None)


def of_router(field: str) -> Callable[[Shape], Any]:
    """Return how to read a field of the router of experts, None in models without."""
    return lambda shape: getattr(shape.mixture.router, field, None) if shape.mixture else None


KEYS: Mapping[str, Callable[[Shape], Any]] = {
    # The model.
    **names_of("hidden_size", "d_model", "n_embd", "dim", value=lambda shape: shape.config.dim),
    "vocab_size": lambda shape: shape.first.embedding.vocab_size,
    "decoder_vocab_size": lambda shape: shape.stack.embedding.vocab_size,
    "share_encoder_decoder_embeddings": lambda shape: shape.config.share_embeddings,
    "num_hidden_groups": lambda shape: len(shape.first.blocks),
    **names_of(
        *("word_embed_proj_dim", "embedding_size"),
        value=lambda shape: shape.stack.embedding.dim or shape.config.dim,
    ),
    "type_vocab_size": lambda shape: shape.stack.embedding.types,
    "scale_embedding": lambda shape: shape.stack.embedding.scale,
    **names_of(
        *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"),
        value=lambda shape: len(shape.first.applied),
    ),
    **names_of("num_decoder_layers", "decoder_layers", value=lambda shape: len(shape.stack.blocks)),
    **names_of("max_position_embeddings", "n_positions", value=lambda shape: shape.length),
    "relative_attention_num_buckets": lambda shape: getattr(shape.stack.positions, "buckets", None),
    "relative_attention_max_distance": lambda shape: getattr(shape.stack.positions, "max_distance", None),
    "pad_token_id": lambda shape: shape.pad_id,
    "eos_token_id": lambda shape: getattr(getattr(shape.classifier, "pooled", None), "eos_id", None),
    "decoder_start_token_id": lambda shape: shape.config.targets_from and shape.config.targets_from.start,
    # Attention.
    **names_of("num_attention_heads", "n_head", "n_heads", "num_heads", value=of_attention("heads")),
    "num_kv_heads": lambda shape: getattr(shape.attention, "kv_heads", None) or shape.attention.heads,
    "multi_query": lambda shape: getattr(shape.attention, "kv_heads", None) == 1,
    "attn_config": lambda shape: {
        "clip_qkv": of_attention("clip_qkv")(shape),
        "softmax_scale": score_scale(shape.attention, shape.head_width or 1),
    },
    "attention_types": lambda shape: [[["global" if window is None else "local" for window in shape.windows], 1]],
    "encoder_attention_heads": lambda shape: shape.first.blocks[0].attention.heads,
    "decoder_attention_heads": of_attention("heads"),
    "num_key_value_heads": lambda shape: getattr(shape.attention, "kv_heads", None) or shape.attention.heads,
    **names_of("head_dim", "d_kv", value=lambda shape: shape.head_width),
    **names_of(
        "attention_bias", "enable_bias", "use_bias", "use_qkv_bias", "qkv_bias", "bias", value=of_attention("bias")
    ),
    "attention_out_bias": of_attention("output_bias"),
    **names_of(
        *("qk_layernorm", "use_qk_norm"),
        value=lambda shape: getattr(shape.attention, "query_key_norm", None) is not None,
    ),
    "clip_qkv": of_attention("clip_qkv"),
    "attention_multiplier": lambda shape: score_scale(shape.attention, shape.head_width or 1),
    "attn_logit_softcapping": of_attention("softcap"),
    "query_pre_attn_scalar": lambda shape: inverse_square(score_scale(shape.attention, shape.head_width or 1)),
    "scale_attn_weights": lambda shape: shape.attention.scale != 1.0,
    "scale_attn_by_inverse_layer_idx": lambda shape: len({layer.scale for layer in shape.attentions}) > 1,
    **names_of("sliding_window", "window_size", value=lambda shape: shape.window),
    "local_attention": lambda shape: shape.window and max(1, 2 * (shape.window - 1)),
    "use_sliding_window": lambda shape: shape.window is not None,
    "layer_types": lambda shape: shape.layer_types,
    "no_rope_layers": lambda shape: [int(layer.rope is not None) for layer in shape.attentions],
    **{name: of_attention(name) for name in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")},
    "v_head_dim": lambda shape: of_attention("v_head_dim")(shape) or of_attention("qk_nope_head_dim")(shape),
    "rope_interleave": lambda shape: shape.rope and shape.rope.layout == "interleaved",
    "rope_parameters": lambda shape: shape.rope and rope_parameters(shape, shape.rope),
    "original_max_position_embeddings": lambda shape: shape.rope and getattr(shape.rope.scaling, "length", None),
    "rotary_emb_base": lambda shape: shape.rope and shape.rope.base,
    "rotary_pct": lambda shape: shape.rope and rotated_share(shape, shape.rope),
    "rotary_dim": lambda shape: shape.rope and (shape.rope.width or shape.head_width),
    # Feed-forward networks and mixtures of experts.
    **names_of(
        "intermediate_size",
        "n_inner",
        "d_ff",
        "ffn_dim",
        "hidden_dim",
        "ffn_hidden_size",
        value=lambda shape: shape.d_ff,
    ),
    "encoder_ffn_dim": lambda shape: getattr(shape.first.blocks[0].feed_forward, "d_ff", None) or 4 * shape.config.dim,
    "decoder_ffn_dim": lambda shape: shape.d_ff,
    **names_of(
        *("hidden_act", "activation_function", "hidden_activation", "activation", "dense_act_fn"),
        value=lambda shape: activation_name(shape.network.activation),
    ),
    "feed_forward_proj": lambda shape: f"{'gated-' * shape.network.gated}{activation_name(shape.network.activation)}",
    "is_gated_act": lambda shape: shape.network.gated,
    "mlp_bias": lambda shape: ((shape.mixture and shape.mixture.shared) or shape.network).bias,
    "swiglu_limit": lambda shape: shape.network.limit,
    "moe_intermediate_size": lambda shape: shape.mixture and (shape.mixture.expert.d_ff or 4 * shape.config.dim),
    **names_of(
        "num_local_experts",
        "n_routed_experts",
        "num_experts",
        value=lambda shape: shape.mixture and shape.mixture.experts,
    ),
    "num_experts_per_tok": lambda shape: shape.mixture.top_k if shape.mixture else 1,
    "shared_expert_intermediate_size": lambda shape: (
        shape.mixture and shape.mixture.shared and (shape.mixture.shared.d_ff or 4 * shape.config.dim)
    ),
    "n_shared_experts": lambda shape: shape.mixture and shared_experts(shape.mixture, 4 * shape.config.dim),
    "mlp_only_layers": lambda shape: shape.plain_blocks,
    "first_k_dense_replace": lambda shape: len(shape.plain_blocks),
    "scoring_func": lambda shape: shape.mixture and ("softmax" if is_softmax(shape.mixture) else "sigmoid"),
    "topk_method": lambda shape: shape.mixture and selection_method(shape.mixture),
    "n_group": of_router("groups"),
    "topk_group": of_router("top_k_groups"),
    "norm_topk_prob": of_router("renormalize"),
    "routed_scaling_factor": of_router("scale"),
    # Blocks.
    **names_of(
        *("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_epsilon", "norm_eps"),
        value=lambda shape: shape.stack.blocks[0].norm.epsilon,
    ),
    "norm_bias": lambda shape: getattr(shape.stack.blocks[0].norm, "bias", False),
    "do_layer_norm_before": lambda shape: shape.stack.blocks[0].norm_order == "pre",
    "_remove_final_layer_norm": lambda shape: shape.stack.final_norm is None,
    **names_of("use_parallel_residual", "parallel_attn", value=lambda shape: shape.stack.blocks[0].parallel),
    "num_ln_in_parallel_attn": lambda shape: 1 if shape.stack.blocks[0].shared_norm else None,
    "new_decoder_architecture": lambda shape: (
        shape.stack.blocks[0].parallel
        and not (
            shape.stack.blocks[0].shared_norm
            and getattr(shape.attention, "kv_heads", None) in (None, 1, shape.attention.heads)
        )
    ),
    "embedding_multiplier": lambda shape: shape.stack.embedding.multiplier,
    "residual_multiplier": lambda shape: shape.stack.blocks[0].residual_multiplier,
    # The head.
    "tie_word_embeddings": lambda shape: shape.head and shape.head.tied,
    "final_logit_softcapping": lambda shape: shape.head and shape.head.softcap,
    "decoder_bias": lambda shape: shape.head and shape.head.bias,
    "classifier_bias": lambda shape: inner_layer(shape)[1],
    "classifier_activation": lambda shape: inner_layer(shape)[0],
    "classifier_pooling": lambda shape: pooling_name(shape.classifier),
    "token_classification_bias": lambda shape: shape.classifier and shape.classifier.bias,
    "scale_decoder_outputs": lambda shape: shape.head and shape.head.scale != 1.0,
    "logit_scale": lambda shape: shape.head and shape.head.scale,
    "logits_scaling": lambda shape: shape.head and shape.head.scale and 1 / shape.head.scale,
    "id2label": lambda shape: (
        shape.classifier and {str(number): f"LABEL_{number}" for number in range(shape.classifier.classes)}
    ),
    # Rates of dropout.
    **names_of(
        *("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob"),
        value=of_attention("dropout"),
    ),
    **names_of(
        *("resid_pdrop", "hidden_dropout", "hidden_dropout_prob", "dropout", "dropout_rate"),
        *("residual_dropout", "resid_dropout"),
        value=lambda shape: shape.stack.blocks[0].dropout,
    ),
    **names_of("embd_pdrop", "embedding_dropout", "embed_dropout", value=lambda shape: shape.stack.dropout),
    **names_of("activation_dropout", "mlp_dropout", value=lambda shape: shape.network.dropout),
    **names_of(
        *("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "qa_dropout"),
        value=lambda shape: shape.classifier and shape.classifier.dropout,
    ),
}


def settings_of(config: TransformerConfig, schema: Schema, longest: int, by_layer_type: bool = False) -> Settings:
    """Return what the keys of a schema are for a model; a key that the model has no value for is left out.

    Args:
        config: The configuration of the model, which need not be of the family.
        schema: What a family reads.
        longest: Number of tokens that the model is meant for, where its positions have no table.
        by_layer_type: Whether the family's rope_parameters has an object for each type of layer.
    """
    shape = Shape(config, longest)
    values = {key: KEYS[key](shape) for key in schema if key in KEYS}
    settings: Settings = {}
    for key, value in values.items():
        if schema[key].accepts(value) and (value, schema[key].default) != (None, None):
            settings[key] = converted(schema[key], value) if key != "query_pre_attn_scalar" else value
    # Gemma 3 and OLMo 3 have a kind of positions for each type of layer.
    if shape.rope and by_layer_type:
        local = next((layer.rope for layer in shape.attentions if getattr(layer, "window", None)), None)
        kinds = {"full_attention": shape.rope, "sliding_attention": local or shape.rope}
        settings["rope_parameters"] = {name: rope_parameters(shape, rope) for name, rope in kinds.items()}
    share = schema.get("partial_rotary_factor")
    if share and share.default and shape.rope:  # where the family's default is another share than all
        settings["rope_parameters"] = {"partial_rotary_factor": 1.0} | settings["rope_parameters"]
    return settings


def converted(field: Field, value: Any) -> Any:
    """Return a value in the type that files have: transformers refuses 3 where it expects 3.0."""
    return value if field.convert is None or value is None else field.convert(value)


def rope_parameters(shape: Shape, rope: Rope) -> Settings:
    """Return rotary positions as today's files give them, see `jaxformer.pretrained.rope`."""
    found: Settings = {"rope_theta": rope.base}
    if rope.width is not None:
        found["partial_rotary_factor"] = rotated_share(shape, rope)
    match rope.scaling:
        case None:
            return {"rope_type": "default"} | found
        case LinearScaling(factor):
            return {"rope_type": "linear", "factor": factor} | found
        case DynamicScaling(factor):
            return {"rope_type": "dynamic", "factor": factor} | found
        case Llama3Scaling(factor, low, high, length):
            ramp = {"low_freq_factor": low, "high_freq_factor": high, "original_max_position_embeddings": length}
            return {"rope_type": "llama3", "factor": factor} | ramp | found
        case LongRopeScaling(short, long, length, attention_factor):
            factors = {"short_factor": list(short), "long_factor": list(long), "attention_factor": attention_factor}
            return {"rope_type": "longrope", "original_max_position_embeddings": length} | factors | found
        case YarnScaling(factor, length, beta_fast, beta_slow, truncate, attention_factor):
            ramp = {"beta_fast": beta_fast, "beta_slow": beta_slow, "truncate": truncate}
            reach = {"factor": factor, "original_max_position_embeddings": length, "attention_factor": attention_factor}
            return {"rope_type": "yarn"} | reach | ramp | growth(shape.attention, factor) | found


def growth(attention: AnyAttentionConfig, factor: float) -> Settings:
    """Return how much DeepSeek raises scores for a text `factor` times as long: the inverse of what it reads."""
    if not isinstance(attention, LatentAttentionConfig) or factor <= 1 or not 0 < (attention.scale or 0) < math.inf:
        return {}
    raised = math.sqrt((attention.scale or 1) * math.sqrt(attention.qk_nope_head_dim + attention.qk_rope_head_dim))
    return {"mscale_all_dim": max(0.0, round((raised - 1) / (0.1 * math.log(factor)), 9))}


def rotated_share(shape: Shape, rope: Rope) -> float:
    """Return which share of a head is rotated."""
    if rope.width is None or shape.head_width is None:
        return 1.0
    share = rope.width / shape.head_width
    # What is read is rounded down: a share that falls short by rounding would lose a dimension.
    return share if int(share * shape.head_width) == rope.width else math.nextafter(share, 1.0)


def score_scale(attention: AnyAttentionConfig, width: int) -> float:
    """Return the factor on the scores of heads of a width."""
    return width**-0.5 if attention.scale is None else attention.scale


def inverse_square(scale: float) -> int | None:
    """Return the whole number whose inverse root is the scale of scores, None if there is none."""
    if not 1e-9 < scale < 1e9:
        return None
    whole = round(scale**-2)
    return whole if whole > 0 and math.isclose(whole**-0.5, scale, rel_tol=1e-12) else None


def activation_name(activation: Activation) -> str | None:
    """Return what transformers calls an activation, None if it has none of the kind."""
    return next((theirs for theirs, ours in ACTIVATIONS.items() if ours == activation), None)


def inner_layer(shape: Shape) -> tuple[str | None, bool | None]:
    """Return the activation and the bias of the layer before the logits; None where there is no such layer."""
    if shape.head is not None and shape.head.transform is not None:
        return activation_name(shape.head.transform.activation), shape.head.transform.bias
    if shape.classifier is not None and shape.classifier.activation is not None:
        return activation_name(shape.classifier.activation), shape.classifier.hidden_bias
    return None, None


def pooling_name(classifier: AnyClassifierConfig | None) -> str | None:
    """Return the name of what a classifier reads, in ModernBERT, whose inner layer has a norm, or EuroBERT."""
    names = {"first": "cls" if classifier and classifier.norm else "bos", "mean": "mean", "mean_logits": "late"}
    pooled = getattr(classifier, "pooled", None)
    return names.get(pooled) if isinstance(pooled, str) else None


def is_softmax(mixture: MoEConfig) -> bool:
    """Return whether a softmax gives the weights of experts."""
    return isinstance(mixture.router, SoftmaxRouter)


def selection_method(mixture: MoEConfig) -> str:
    """Return DeepSeek's name of how experts are selected."""
    if not is_softmax(mixture):
        return "noaux_tc"
    return "greedy" if mixture.router.groups == 1 else "group_limited_greedy"


def shared_experts(mixture: MoEConfig, usual: int) -> int | None:
    """Return how many experts the shared network is as wide as; `usual` is the width where none is given."""
    if mixture.shared is None:
        return None
    return (mixture.shared.d_ff or usual) // (mixture.expert.d_ff or usual)
