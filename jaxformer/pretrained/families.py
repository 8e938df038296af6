"""The families of models that can be opened."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError, listed
from jaxformer.pretrained import (
    bart,
    bert,
    bloom,
    cohere,
    deepseek,
    electra,
    gemma,
    glm_moe,
    gpt2,
    gptj,
    granite,
    llama,
    mixture,
    modernbert,
    mpnet,
    neox,
    olmo,
    opt,
    phi,
    t5,
)
from jaxformer.pretrained.heads import CLASSIFIED, SHIFTED, TWICE, with_head_rows, with_heads
from jaxformer.pretrained.weights import WeightTable
from jaxformer.schema import Schema, count, shown


class Family(NamedTuple):
    """A family of models.

    Attributes:
        classes: Start of the names of its classes in transformers.
        schema: The keys of its config.json that are read.
        config: Returns our configuration of a config.json.
        table: Returns where the weights of such a model are.
        ropes_by_layer_type: Whether rope_parameters of a config.json has an object for each type of layer.
    """

    classes: str
    schema: Schema
    config: Callable[[dict[str, Any]], TransformerConfig]
    table: Callable[[TransformerConfig], WeightTable]
    ropes_by_layer_type: bool = False


def with_classes(name: str, family: Family) -> Family:
    """Return a family whose models may have a head of classes: of sequences, of tokens, or of answers in a text."""
    config = with_heads(name, family.config, family.schema, family.classes)
    schema = {**CLASSIFIED, **(TWICE if name in SHIFTED else {}), **family.schema}
    return family._replace(schema=schema, config=config, table=with_head_rows(name, family.table))


# Of several that have the shape of a model, `as_pretrained` takes the first.
OF_NAME = {
    "bart": Family("Bart", {**bart.BART, "num_labels": count(3)}, bart.bart_config, bart.bart_table),
    "bert": Family("Bert", bert.BERT, bert.bert_config, bert.bert_table),
    "deepseek_v2": Family("DeepseekV2", deepseek.V2, deepseek.deepseek_v2_config, deepseek.deepseek_table),
    "deepseek_v3": Family("DeepseekV3", deepseek.V3, deepseek.deepseek_v3_config, deepseek.deepseek_table),
    "distilbert": Family("DistilBert", bert.DISTILBERT, bert.distilbert_config, bert.distilbert_table),
    "gemma": Family("Gemma", gemma.GEMMA, gemma.gemma_config, llama.llama_table),
    "gemma2": Family("Gemma2", gemma.GEMMA2, gemma.gemma2_config, gemma.gemma2_table),
    "gemma3_text": Family("Gemma3", gemma.GEMMA3, gemma.gemma3_config, gemma.gemma2_table, ropes_by_layer_type=True),
    "gpt2": Family("GPT2", gpt2.GPT2, gpt2.gpt2_config, gpt2.gpt2_table),
    "gpt_oss": Family("GptOss", mixture.GPT_OSS, mixture.gpt_oss_config, mixture.gpt_oss_table),
    "gpt_neox": Family("GPTNeoX", neox.NEOX, neox.neox_config, neox.neox_table),
    "llama": Family("Llama", llama.LLAMA, llama.llama_config, llama.llama_table),
    "marian": Family("Marian", bart.MARIAN, bart.marian_config, bart.bart_table),
    "mbart": Family("MBart", bart.BART, bart.mbart_config, bart.bart_table),
    "mistral": Family("Mistral", llama.MISTRAL, llama.mistral_config, llama.llama_table),
    "mixtral": Family("Mixtral", mixture.MIXTRAL, mixture.mixtral_config, mixture.mixtral_table),
    "t5": Family("T5", t5.T5, t5.t5_config, t5.t5_table),
    "mt5": Family("MT5", t5.MT5, t5.mt5_config, t5.t5_table),
    "olmo2": Family("Olmo2", llama.OLMO2, llama.olmo2_config, llama.olmo2_table),
    "opt": Family("OPT", opt.OPT, opt.opt_config, opt.opt_table),
    "pegasus": Family("Pegasus", bart.BART, bart.pegasus_config, bart.bart_table),
    "phi3": Family("Phi3", llama.PHI3, llama.phi3_config, llama.phi3_table),
    "qwen2": Family("Qwen2", llama.QWEN2, llama.qwen2_config, llama.llama_table),
    "qwen3": Family("Qwen3", llama.QWEN3, llama.qwen3_config, llama.llama_table),
    "qwen3_moe": Family("Qwen3Moe", mixture.QWEN3_MOE, mixture.qwen3_moe_config, mixture.qwen3_moe_table),
    "roberta": Family("Roberta", bert.ROBERTA, bert.roberta_config, bert.roberta_table),
    "smollm3": Family("SmolLM3", llama.SMOLLM3, llama.smollm3_config, llama.llama_table),
    "xlm-roberta": Family("XLMRoberta", bert.ROBERTA, bert.roberta_config, bert.roberta_table),
    "albert": Family("Albert", electra.ALBERT, electra.albert_config, electra.albert_table),
    "arcee": Family("Arcee", granite.ARCEE, granite.arcee_config, llama.llama_table),
    "bloom": Family("Bloom", bloom.BLOOM, bloom.bloom_config, bloom.bloom_table),
    "camembert": Family("Camembert", bert.CAMEMBERT, bert.camembert_config, bert.roberta_table),
    "cohere": Family("Cohere", cohere.COHERE, cohere.cohere_config, cohere.cohere_table),
    "cohere2": Family("Cohere2", cohere.COHERE2, cohere.cohere2_config, cohere.cohere_table),
    "codegen": Family("CodeGen", gptj.GPTJ, gptj.codegen_config, gptj.codegen_table),
    "glm4_moe": Family("Glm4Moe", glm_moe.GLM4_MOE, glm_moe.glm4_moe_config, glm_moe.glm4_moe_table),
    "gpt_neo": Family("GPTNeo", gptj.GPT_NEO, gptj.gpt_neo_config, gptj.gpt_neo_table),
    "gptj": Family("GPTJ", gptj.GPTJ, gptj.gptj_config, gptj.gptj_table),
    "electra": Family("Electra", electra.ELECTRA, electra.electra_config, electra.electra_table),
    "ernie4_5": Family("Ernie4_5", granite.ERNIE4_5, granite.ernie4_5_config, llama.llama_table),
    "falcon": Family("Falcon", bloom.FALCON, bloom.falcon_config, bloom.falcon_table),
    "glm": Family("Glm", granite.GLM, granite.glm_config, granite.glm_table),
    "glm4": Family("Glm4", granite.GLM, granite.glm4_config, granite.glm_table),
    "granite": Family("Granite", granite.GRANITE, granite.granite_config, llama.llama_table),
    "granitemoe": Family("GraniteMoe", mixture.GRANITE_MOE, mixture.granite_moe_config, mixture.granite_moe_table),
    "hunyuan_v1_dense": Family("HunYuanDenseV1", granite.HUNYUAN, granite.hunyuan_config, granite.hunyuan_table),
    "ministral": Family("Ministral", granite.MINISTRAL, granite.ministral_config, llama.llama_table),
    "eurobert": Family("EuroBert", modernbert.EUROBERT, modernbert.eurobert_config, modernbert.eurobert_table),
    "modernbert": Family(
        "ModernBert",
        modernbert.MODERNBERT,
        modernbert.modernbert_config,
        modernbert.modernbert_table,
        ropes_by_layer_type=True,
    ),
    "mpnet": Family("MPNet", mpnet.MPNET, mpnet.mpnet_config, mpnet.mpnet_table),
    "mpt": Family("Mpt", bloom.MPT, bloom.mpt_config, bloom.mpt_table),
    "olmo": Family("Olmo", olmo.OLMO, olmo.olmo_config, llama.llama_table),
    "olmo3": Family("Olmo3", olmo.OLMO3, olmo.olmo3_config, llama.olmo2_table, ropes_by_layer_type=True),
    "olmoe": Family("Olmoe", mixture.OLMOE, mixture.olmoe_config, mixture.qwen3_moe_table),
    "phi": Family("Phi", phi.PHI, phi.phi_config, phi.phi_table),
    "qwen2_moe": Family("Qwen2Moe", mixture.QWEN2_MOE, mixture.qwen2_moe_config, mixture.qwen2_moe_table),
    "seed_oss": Family("SeedOss", granite.SEED_OSS, granite.seed_oss_config, llama.llama_table),
    "stablelm": Family("StableLm", phi.STABLELM, phi.stablelm_config, phi.stablelm_table),
    "starcoder2": Family("Starcoder2", phi.STARCODER2, phi.starcoder2_config, phi.starcoder2_table),
    "xlm-roberta-xl": Family(
        "XLMRobertaXL", mpnet.XLM_ROBERTA_XL, mpnet.xlm_roberta_xl_config, mpnet.xlm_roberta_xl_table
    ),
}

# Families that are not supported, and what they have that is missing here.
STATES = "state-space layers beside attention"
LINEAR = "layers with linear attention"
LOCAL = "attention in blocks, with tokens that all others see"
REFUSED = {
    "bamba": STATES,
    "big_bird": LOCAL,
    "deberta": "attention that scores contents and distances apart",
    "deberta-v2": "attention that scores contents and distances apart",
    "deepseek_v32": "an indexer that selects keys",
    "deepseek_v4": "an indexer that selects keys",
    "falcon_h1": STATES,
    "falcon_mamba": "state-space layers in place of attention",
    "gemma3n": "embeddings for each layer, and caches that layers share",
    "gemma3n_text": "embeddings for each layer, and caches that layers share",
    "gemma4": "embeddings for each layer, and caches that layers share",
    "gemma4_text": "embeddings for each layer, and caches that layers share",
    "granitemoehybrid": STATES,
    "jamba": STATES,
    "kimi_linear": LINEAR,
    "led": LOCAL,
    "lfm2": "convolutions in place of most attention",
    "lfm2_moe": "convolutions in place of most attention",
    "llama4": "attention in chunks, and tokens that experts weigh at their input",
    "llama4_text": "attention in chunks, and tokens that experts weigh at their input",
    "longformer": LOCAL,
    "longt5": LOCAL,
    "mamba": "state-space layers in place of attention",
    "mamba2": "state-space layers in place of attention",
    "ministral3": "queries that grow with their position",
    "nemotron_h": STATES,
    "olmo_hybrid": LINEAR,
    "qwen3_5": LINEAR,
    "qwen3_5_moe": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "recurrent_gemma": "recurrent layers beside attention",
    "reformer": "attention by hashes",
    "rwkv": "recurrent layers in place of attention",
    "xlnet": "attention in two streams",
    "zamba": STATES,
    "zamba2": STATES,
}


FAMILIES = {name: with_classes(name, family) for name, family in OF_NAME.items()}


def family_of(hf: dict[str, Any]) -> Family:
    """Return the family that a config.json names. Raises InputError for one that is not supported."""
    if hf.get("model_type") not in FAMILIES:
        name = shown(hf.get("model_type"))
        if reason := REFUSED.get(hf.get("model_type") or ""):
            raise InputError(f"model_type={name} is not supported: it has {reason}")
        raise InputError(f"model_type={name} is not supported: known are {listed(FAMILIES)}")
    if quantized := hf.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        raise InputError(
            f"the weights are quantized ({method}), which is not supported: dequantise them in transformers, for mxfp4 "
            "by from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True)), and save_pretrained them"
        )
    return FAMILIES[hf["model_type"]]
