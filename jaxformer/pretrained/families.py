"""The families of models that can be opened."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError
from jaxformer.pretrained import bart, bert, deepseek, gemma, gpt2, llama, mixture, neox, opt, t5
from jaxformer.pretrained.weights import WeightTable


class Family(NamedTuple):
    """How a `config.json` becomes our configuration, and where the weights of such a model are."""

    config: Callable[[dict[str, Any]], TransformerConfig]
    table: Callable[[TransformerConfig], WeightTable]


FAMILIES = {
    "bart": Family(bart.bart_config, bart.bart_table),
    "bert": Family(bert.bert_config, bert.bert_table),
    "deepseek_v2": Family(deepseek.deepseek_v2_config, deepseek.deepseek_table),
    "deepseek_v3": Family(deepseek.deepseek_v3_config, deepseek.deepseek_table),
    "distilbert": Family(bert.distilbert_config, bert.distilbert_table),
    "gemma": Family(gemma.gemma_config, llama.llama_table),
    "gemma2": Family(gemma.gemma2_config, gemma.gemma2_table),
    "gemma3_text": Family(gemma.gemma3_config, gemma.gemma2_table),
    "gpt2": Family(gpt2.gpt2_config, gpt2.gpt2_table),
    "gpt_oss": Family(mixture.gpt_oss_config, mixture.gpt_oss_table),
    "gpt_neox": Family(neox.neox_config, neox.neox_table),
    "llama": Family(llama.llama_config, llama.llama_table),
    "marian": Family(bart.marian_config, bart.bart_table),
    "mbart": Family(bart.mbart_config, bart.bart_table),
    "mistral": Family(llama.mistral_config, llama.llama_table),
    "mixtral": Family(mixture.mixtral_config, mixture.mixtral_table),
    "mt5": Family(t5.mt5_config, t5.t5_table),
    "olmo2": Family(llama.olmo2_config, llama.olmo2_table),
    "opt": Family(opt.opt_config, opt.opt_table),
    "pegasus": Family(bart.pegasus_config, bart.bart_table),
    "phi3": Family(llama.phi3_config, llama.phi3_table),
    "qwen2": Family(llama.qwen2_config, llama.llama_table),
    "qwen3": Family(llama.qwen3_config, llama.llama_table),
    "qwen3_moe": Family(mixture.qwen3_moe_config, mixture.qwen3_moe_table),
    "roberta": Family(bert.roberta_config, bert.roberta_table),
    "smollm3": Family(llama.smollm3_config, llama.llama_table),
    "t5": Family(t5.t5_config, t5.t5_table),
    "xlm-roberta": Family(bert.roberta_config, bert.roberta_table),
}


def family_of(hf: dict[str, Any]) -> Family:
    """The family that a config.json names. Raises InputError for one that is not supported."""
    if hf.get("model_type") not in FAMILIES:
        raise InputError(f"model_type {hf.get('model_type')!r} is not supported: known are {', '.join(FAMILIES)}")
    if quantized := hf.get("quantization_config"):
        method = quantized.get("quant_method", "unknown") if isinstance(quantized, dict) else quantized
        raise InputError(
            f"the weights are quantized ({method}), which is not supported: dequantise them in transformers, for mxfp4 "
            "by from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True)), and save_pretrained them"
        )
    return FAMILIES[hf["model_type"]]
