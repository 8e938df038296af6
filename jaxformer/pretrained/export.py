"""Models that were trained here, as checkpoints of the family whose shape they have."""

from dataclasses import replace
from typing import Any

import tokenizers

from jaxformer.config import (
    AnyAttentionConfig,
    AttentionConfig,
    BlockConfig,
    FeedForwardConfig,
    HeadConfig,
    LatentAttentionConfig,
    LearnedPositions,
    MoEConfig,
    SigmoidRouter,
    TransformerConfig,
    head_width,
)
from jaxformer.errors import InputError
from jaxformer.generation import GenerationConfig
from jaxformer.model import Transformer
from jaxformer.pretrained.bundle import Pretrained
from jaxformer.pretrained.families import FAMILIES
from jaxformer.pretrained.settings import ACTIVATIONS


def as_pretrained(
    model: Transformer,
    tokenizer: tokenizers.Tokenizer | None = None,
    generation: GenerationConfig | None = None,
    *,
    longest: int = 2048,
) -> Pretrained:
    """A model as `from_pretrained` would have opened it, to be used like one and saved for transformers.

    longest: how many tokens the model is meant for, which the file says of rotary positions. Raises InputError for a
    model that has the shape of no family: GPT-2's, Llama's and DeepSeek-V3's can be written.
    """
    config = model.config
    for describe in (gpt2_settings, llama_settings, deepseek_v3_settings):
        settings = describe(config, longest)
        # What a family cannot say is lost in its settings, and so found here.
        if settings and explicit(FAMILIES[settings["model_type"]].config(settings)) == explicit(config):
            files = {"tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}\n'} if tokenizer else {}
            return Pretrained(model, tokenizer, generation or GenerationConfig(), settings, files=files)
    raise InputError(
        "the model has the shape of no family that can be written: those of GPT-2, Llama and DeepSeek-V3 can"
    )


def gpt2_settings(config: TransformerConfig, _: int) -> dict[str, Any] | None:
    """A `config.json` of GPT-2 for a model of its shape; what it says of any other need not be true."""
    stack, block = config.main, config.main.blocks[0]
    if not (isinstance(stack.positions, LearnedPositions) and isinstance(block.feed_forward, FeedForwardConfig)):
        return None
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": stack.embedding.vocab_size,
        "n_positions": stack.positions.length,
        "n_embd": config.dim,
        "n_layer": len(stack.blocks),
        "n_head": block.attention.heads,
        "n_inner": block.feed_forward.d_ff,
        "activation_function": activation_name(block.feed_forward),
        "resid_pdrop": block.dropout,
        "embd_pdrop": stack.dropout,
        "attn_pdrop": block.attention.dropout,
        "layer_norm_epsilon": block.norm.epsilon,
        "tie_word_embeddings": isinstance(config.head, HeadConfig) and config.head.tied,
    }


def llama_settings(config: TransformerConfig, longest: int) -> dict[str, Any] | None:
    """The same of Llama."""
    block = config.main.blocks[0]
    attention, network = block.attention, block.feed_forward
    if not (isinstance(attention, AttentionConfig) and attention.rope and isinstance(network, FeedForwardConfig)):
        return None
    return common(config, network, longest) | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_key_value_heads": attention.kv_heads or attention.heads,
        "head_dim": head_width(attention, config.dim),
        "attention_bias": attention.bias,
        "mlp_bias": network.bias,
    }


def deepseek_v3_settings(config: TransformerConfig, longest: int) -> dict[str, Any] | None:
    """The same of DeepSeek-V3."""
    blocks = config.main.blocks
    attention = blocks[0].attention
    dense = [block.feed_forward for block in blocks if isinstance(block.feed_forward, FeedForwardConfig)]
    mixtures = [block.feed_forward for block in blocks if isinstance(block.feed_forward, MoEConfig)]
    if not (isinstance(attention, LatentAttentionConfig) and attention.rope and mixtures):
        return None
    mixture = mixtures[0]
    router, hidden, shared = mixture.router, mixture.expert.d_ff, mixture.shared.d_ff if mixture.shared else None
    if not (isinstance(router, SigmoidRouter) and hidden and shared):
        return None
    # Without a layer that is not a mixture, what such a layer would be like is of no account.
    return common(config, dense[0] if dense else mixture.expert, longest) | {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "num_key_value_heads": attention.heads,
        "kv_lora_rank": attention.kv_lora_rank,
        "q_lora_rank": attention.q_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim or attention.qk_nope_head_dim,
        "rope_interleave": attention.rope.layout == "interleaved",
        "attention_bias": attention.bias,
        "moe_intermediate_size": hidden,
        "n_routed_experts": mixture.experts,
        "num_experts_per_tok": mixture.top_k,
        "n_shared_experts": shared // hidden,
        "n_group": router.groups,
        "topk_group": router.top_k_groups,
        "norm_topk_prob": router.renormalize,
        "routed_scaling_factor": router.scale,
        "first_k_dense_replace": len(dense),
    }


def common(config: TransformerConfig, network: FeedForwardConfig, longest: int) -> dict[str, Any]:
    """What Llama and its kin say alike. network: the feed-forward network of a layer."""
    block = config.main.blocks[0]
    assert block.attention.rope is not None, "asked before"
    return {
        "vocab_size": config.main.embedding.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": network.d_ff or 4 * config.dim,
        "num_hidden_layers": len(config.main.blocks),
        "num_attention_heads": block.attention.heads,
        "hidden_act": activation_name(network),
        "rms_norm_eps": block.norm.epsilon,
        "attention_dropout": block.attention.dropout,
        "max_position_embeddings": longest,
        "rope_parameters": {"rope_type": "default", "rope_theta": block.attention.rope.base},
        "tie_word_embeddings": isinstance(config.head, HeadConfig) and config.head.tied,
    }


def activation_name(network: FeedForwardConfig) -> str:
    """What transformers calls the activation."""
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == network.activation)


def explicit(config: TransformerConfig) -> TransformerConfig:
    """The same model with nothing left to defaults, so that models of equal logits are equal configurations.

    What is for training alone is left out: dropout, rematerialisation. So is whether positions count slots or real
    tokens, which differs only where there is padding on the left.
    """

    def attention(layer: AnyAttentionConfig) -> AnyAttentionConfig:
        if isinstance(layer, LatentAttentionConfig):
            width = layer.qk_nope_head_dim + layer.qk_rope_head_dim
            v_head_dim, scale = layer.v_head_dim or layer.qk_nope_head_dim, layer.scale or width**-0.5
            return replace(layer, v_head_dim=v_head_dim, scale=scale, dropout=0.0)
        width = head_width(layer, config.dim)
        output_bias = layer.bias if layer.output_bias is None else layer.output_bias
        filled = {"kv_heads": layer.kv_heads or layer.heads, "head_dim": width, "scale": layer.scale or width**-0.5}
        return replace(layer, **filled, output_bias=output_bias, dropout=0.0)

    def network(layer: FeedForwardConfig | MoEConfig) -> FeedForwardConfig | MoEConfig:
        if isinstance(layer, MoEConfig):
            return replace(layer, shared=layer.shared and replace(layer.shared, dropout=0.0))
        return replace(layer, d_ff=layer.d_ff or 4 * config.dim, dropout=0.0)

    def block(layer: BlockConfig) -> BlockConfig:
        parts = {"attention": attention(layer.attention), "feed_forward": network(layer.feed_forward)}
        return replace(layer, **parts, dropout=0.0)

    if config.decoder is None:
        return config
    blocks = tuple(map(block, config.decoder.blocks))
    training = {"dropout": 0.0, "final_dropout": 0.0, "rematerialize": False}
    stack = replace(config.decoder, blocks=blocks, position_ids_from="slot", **training)
    return replace(config, decoder=stack)
