"""Models that were made or trained here, as checkpoints of the families whose shape they have."""

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import tokenizers

from jaxformer.config import (
    AnyAttentionConfig,
    AnyClassifierConfig,
    BlockConfig,
    ClassifierConfig,
    DiscriminatorConfig,
    FeedForwardConfig,
    LatentAttentionConfig,
    LearnedPositions,
    MoEConfig,
    NonPadPositions,
    Rope,
    SinusoidalPositions,
    SpanConfig,
    StackConfig,
    TokenClassifierConfig,
    TransformerConfig,
    head_width,
)
from jaxformer.errors import InputError, listed, shortened
from jaxformer.generation import GenerationConfig
from jaxformer.model import Transformer
from jaxformer.ops import sinusoidal_positions
from jaxformer.pretrained.bundle import Pretrained
from jaxformer.pretrained.families import FAMILIES
from jaxformer.pretrained.files import Arrays
from jaxformer.pretrained.heads import SEQUENCES, SPANS, TOKENS
from jaxformer.pretrained.inverse import Settings, score_scale, settings_of
from jaxformer.pretrained.stored import as_stored
from jaxformer.pretrained.weights import tensors_of
from jaxformer.schema import check_range, is_integer

SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")
# Classes of transformers that are not named for their family and task.
CLASSES = {
    "GPT2ForCausalLM": "GPT2LMHeadModel",
    "MarianForConditionalGeneration": "MarianMTModel",
    "T5Model": "T5EncoderModel",
    "MT5Model": "MT5EncoderModel",
    "Gemma3ForSequenceClassification": "Gemma3TextForSequenceClassification",  # the other one sees images
}


def as_pretrained(
    model: Transformer,
    tokenizer: tokenizers.Tokenizer | None = None,
    generation: GenerationConfig | None = None,
    *,
    family: str | None = None,
    longest: int = 2048,
) -> Pretrained:
    """Return a model as `from_pretrained` would have opened it, to be used like one and saved for transformers.

    Args:
        model: Any model.
        tokenizer: Its tokenizer, if it has one.
        generation: Its defaults for `generate`.
        family: Name of the family to be saved as, such as "llama". None: the first of `FAMILIES` that has its shape.
        longest: Number of tokens that the model is meant for, where its positions have no table.

    Raises:
        InputError: The model has not the shape of the family, or of none.
    """
    if family is not None and not (isinstance(family, str) and family in FAMILIES):
        raise InputError(f"family={shown(family)} is not known: give one of {listed(FAMILIES)}")
    if not is_integer(longest):
        raise InputError(f"longest={shown(longest)} must be a whole number")
    check_range("longest", longest, 1)
    generation = generation or GenerationConfig()
    vocabulary, pad = model.config.main.embedding.vocab_size, generation.pad_token_id
    if pad is not None and pad >= vocabulary:
        raise InputError(f"pad_token_id={pad} is outside the vocabulary of {vocabulary} tokens")
    for name in FAMILIES if family is None else [family]:
        settings = family_settings(model.config, name, generation, longest)
        problem = misfit(model, name, settings)
        if problem is None:
            files = {"tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast"}\n'} if tokenizer else {}
            return Pretrained(model, tokenizer, generation, settings, sinusoids(model.config, name, settings), files)
        if family is not None:
            raise InputError(f"the model has not the shape of {family}: {problem}")
    raise InputError("the model has the shape of no family: name one by `family` to see in what it differs")


def family_settings(config: TransformerConfig, name: str, generation: GenerationConfig, longest: int) -> Settings:
    """Return the config.json of a family for a model, whether or not the model has its shape."""
    family = FAMILIES[name]
    tokens = {key: getattr(generation, key) for key in SPECIAL}
    tokens["eos_token_id"] = list(eos) if isinstance(eos := tokens["eos_token_id"], tuple) else eos
    if generation.decoder_start_token_id is None:
        del tokens["decoder_start_token_id"]  # Marian's class refuses null
    architecture = f"{family.classes}{task_of(config)}"
    about = {"model_type": name, "architectures": [CLASSES.get(architecture, architecture)]}
    return about | tokens | settings_of(config, family.schema, longest, family.ropes_by_layer_type)


def sinusoids(config: TransformerConfig, name: str, settings: Settings) -> Arrays:
    """Return the tables of sinusoids, which are computed here, as transformers expects them in files."""
    table, length, found = FAMILIES[name].table(config), settings.get("max_position_embeddings", 0), {}
    for part, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        tensor = table.name((part, "positions", "embedding"))
        if tensor and stack and isinstance(stack.positions, SinusoidalPositions):
            computed = sinusoidal_positions(length, config.dim, stack.positions.layout, stack.positions.base)
            found[tensor] = np.asarray(computed)
    return found


def task_of(config: TransformerConfig) -> str:
    """Return how transformers calls what a model with this head does."""
    if config.head is None:
        return "Model"
    if isinstance(config.head, DiscriminatorConfig):
        return "ForPreTraining"
    for kind, name in ((ClassifierConfig, SEQUENCES), (TokenClassifierConfig, TOKENS), (SpanConfig, SPANS)):
        if isinstance(config.head, kind):
            return name
    if config.encoder is None:
        return "ForCausalLM"
    return "ForMaskedLM" if config.decoder is None else "ForConditionalGeneration"


def misfit(model: Transformer, name: str, settings: Settings) -> str | None:
    """Return in what a model differs from what a family makes of its settings, None if in nothing."""
    family, config = FAMILIES[name], explicit(model.config)
    try:
        found = family.config(settings)
        problem = difference(config, explicit(found))
        # These follow from the weights that a file holds, not from its config.json.
        if problem and problem.split(" is ")[0].endswith(("tied", "share_embeddings", "positions")):
            found = as_stored(found, tensors_of(model, family.table(model.config)), family.table)
            problem = difference(config, explicit(found))
    except InputError as error:
        return str(error)
    return problem or unlike_lengths(config, settings)


def unlike_lengths(config: TransformerConfig, settings: Settings) -> str | None:
    """Return the stack of an encoder-decoder whose table of positions has not the one length of the settings."""
    for name, stack in (("encoder", config.encoder), ("decoder", config.decoder)):
        if config.encoder is None or config.decoder is None or stack is None:
            continue
        if isinstance(stack.positions, LearnedPositions) and "max_position_embeddings" in settings:
            length, only = stack.positions.length, settings["max_position_embeddings"]
            if length != only:
                return f"{name}.positions.length is {length}, not {only}"
    return None


def difference(ours: Any, theirs: Any, where: str = "") -> str | None:
    """Return the first place where two configurations differ, None if they are equal but for rounding."""
    if is_dataclass(ours) and type(ours) is type(theirs):
        pairs = [(f"{where}.{part.name}", part.name) for part in fields(ours)]
        found = (difference(getattr(ours, name), getattr(theirs, name), path) for path, name in pairs)
        return next(filter(None, found), None)
    if isinstance(ours, tuple) and isinstance(theirs, tuple) and len(ours) == len(theirs):
        found = (difference(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(ours, theirs, strict=True)))
        return next(filter(None, found), None)
    if isinstance(ours, float) and isinstance(theirs, float) and math.isclose(ours, theirs, rel_tol=1e-9):
        return None
    return None if ours == theirs else f"{where.lstrip('.')} is {shown(ours)}, not {shown(theirs)}"


def shown(value: Any) -> str:
    """Return a value in a few characters: configurations by the names of their classes, many by their number."""
    if isinstance(value, tuple):
        return f"{len(value)} of them"
    return type(value).__name__ if is_dataclass(value) else shortened(repr(value), 60)


def explicit(config: TransformerConfig) -> TransformerConfig:
    """Return the same model with nothing left to defaults, so that models of equal logits are equal configurations.

    What is for training alone is left out: dropout, rematerialisation. So is whether positions count slots or real
    tokens, which differs only where there is padding on the left.
    """
    encoder = config.encoder and explicit_stack(config.encoder, config.dim)
    decoder = config.decoder and explicit_stack(config.decoder, config.dim)
    head = replace(config.head, dropout=0.0) if isinstance(config.head, AnyClassifierConfig) else config.head
    return replace(config, encoder=encoder, decoder=decoder, head=head)


def explicit_stack(stack: StackConfig, dim: int) -> StackConfig:
    """Return a stack with nothing left to defaults."""

    def network(layer: FeedForwardConfig | MoEConfig) -> FeedForwardConfig | MoEConfig:
        if isinstance(layer, MoEConfig):
            return replace(layer, expert=plain(layer.expert), shared=layer.shared and plain(layer.shared))
        return plain(layer)

    def plain(layer: FeedForwardConfig) -> FeedForwardConfig:
        return replace(layer, d_ff=layer.d_ff or 4 * dim, dropout=0.0)

    def block(layer: BlockConfig) -> BlockConfig:
        cross = layer.cross and explicit_attention(layer.cross, dim)
        attention, feed_forward = explicit_attention(layer.attention, dim), network(layer.feed_forward)
        return replace(layer, attention=attention, cross=cross, feed_forward=feed_forward, dropout=0.0)

    counted = isinstance(stack.position_ids_from, NonPadPositions)
    return replace(
        stack,
        embedding=replace(stack.embedding, dim=stack.embedding.dim or dim),
        blocks=tuple(map(block, stack.blocks)),
        position_ids_from=stack.position_ids_from if counted else "slot",
        dropout=0.0,
        final_dropout=0.0,
        rematerialize=False,
    )


def explicit_attention(layer: AnyAttentionConfig, dim: int) -> AnyAttentionConfig:
    """Return attention with nothing left to defaults."""

    def rope(width: int) -> Rope | None:
        return layer.rope and replace(layer.rope, width=layer.rope.width or width)

    if isinstance(layer, LatentAttentionConfig):
        width = layer.qk_nope_head_dim + layer.qk_rope_head_dim
        v_head_dim, scale = layer.v_head_dim or layer.qk_nope_head_dim, score_scale(layer, width)
        return replace(layer, v_head_dim=v_head_dim, scale=scale, rope=rope(layer.qk_rope_head_dim), dropout=0.0)
    width = head_width(layer, dim)
    return replace(
        layer,
        kv_heads=layer.kv_heads or layer.heads,
        head_dim=width,
        scale=score_scale(layer, width),
        output_bias=layer.bias if layer.output_bias is None else layer.output_bias,
        normed=layer.normed if layer.query_key_norm else "each head",
        rope=rope(width),
        dropout=0.0,
    )
