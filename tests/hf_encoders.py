"""Tiny encoders with random weights and one of three heads, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
from hf_models import PAD, VOCAB
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    ElectraConfig,
    EuroBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
    XLMRobertaXLConfig,
)

ENCODER = {"vocab_size": VOCAB, "pad_token_id": PAD, "attn_implementation": "eager"}
BERT_SHAPE = {
    "hidden_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,
    "intermediate_size": 19,
    "max_position_embeddings": 37,
}
DISTIL = {"dim": 14, "n_layers": 3, "n_heads": 7, "hidden_dim": 19, "max_position_embeddings": 37}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
MODERN = {key: value for key, value in BERT_SHAPE.items() if key != "max_position_embeddings"} | {"hidden_size": 24}
MODERN |= {"num_attention_heads": 3, "local_attention": 4, "max_position_embeddings": 64}
FURTHER_ENCODERS: dict[str, tuple[type, dict[str, Any]]] = {
    "albert": (AlbertConfig, BERT_SHAPE | {"embedding_size": 6}),
    "albert-unusual": (
        AlbertConfig,
        BERT_SHAPE
        | {"embedding_size": 14, "num_hidden_layers": 4, "num_hidden_groups": 2, "hidden_act": "relu"}
        | {"layer_norm_eps": 1e-3, "type_vocab_size": 3},
    ),
    "camembert": (CamembertConfig, BERT_SHAPE),
    "camembert-unusual": (
        CamembertConfig,
        BERT_SHAPE | {"hidden_act": "silu", "layer_norm_eps": 1e-3, "type_vocab_size": 1},
    ),
    "electra": (ElectraConfig, BERT_SHAPE | {"embedding_size": 6}),
    "electra-unusual": (
        ElectraConfig,
        BERT_SHAPE | {"embedding_size": 14, "hidden_act": "relu", "layer_norm_eps": 1e-3, "type_vocab_size": 3},
    ),
    "eurobert": (EuroBertConfig, MODERN),
    "eurobert-unusual": (
        EuroBertConfig,
        MODERN
        | ROPE
        | {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 6, "attention_bias": True}
        | {"mlp_bias": True, "hidden_act": "gelu", "rms_norm_eps": 1e-3, "tie_word_embeddings": True},
    ),
    "modernbert": (ModernBertConfig, MODERN),
    "modernbert-unusual": (
        ModernBertConfig,
        MODERN
        | {"local_attention": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
        | {"norm_bias": True, "attention_bias": True, "mlp_bias": True, "decoder_bias": False, "norm_eps": 1e-3}
        | {"classifier_bias": True, "classifier_activation": "silu", "hidden_activation": "relu"}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 99.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 33.0},
            }
        },
    ),
    "mpnet": (MPNetConfig, BERT_SHAPE),
    "mpnet-unusual": (MPNetConfig, BERT_SHAPE | {"hidden_act": "relu", "layer_norm_eps": 1e-3}),
    "xlm-roberta-xl": (XLMRobertaXLConfig, BERT_SHAPE),
    "xlm-roberta-xl-unusual": (
        XLMRobertaXLConfig,
        BERT_SHAPE | {"hidden_act": "relu", "layer_norm_eps": 1e-3, "type_vocab_size": 3},
    ),
}
ENCODERS: dict[str, tuple[type, dict[str, Any]]] = {
    "bert": (BertConfig, BERT_SHAPE),
    "bert-unusual": (
        BertConfig,
        BERT_SHAPE | {"hidden_act": "relu", "layer_norm_eps": 1e-3, "type_vocab_size": 3, "classifier_dropout": 0.3},
    ),
    "roberta": (RobertaConfig, BERT_SHAPE),
    "roberta-unusual": (
        RobertaConfig,
        BERT_SHAPE | {"hidden_act": "silu", "layer_norm_eps": 1e-3, "type_vocab_size": 1},
    ),
    "xlm-roberta": (XLMRobertaConfig, BERT_SHAPE | {"type_vocab_size": 1}),
    **FURTHER_ENCODERS,
    "distilbert": (DistilBertConfig, DISTIL),
    "distilbert-unusual": (DistilBertConfig, DISTIL | {"activation": "relu", "sinusoidal_pos_embds": True}),
}
# Those whose classifiers are compared in parity/test_heads.py, with those of tokens and of answers.
NOT_FOR_CLASSES = ("modernbert", "eurobert")
HEADS = {"bare": AutoModel, "masked": AutoModelForMaskedLM, "classes": AutoModelForSequenceClassification}


def heads(name: str) -> list[str]:
    """The heads that the encoder `name` may have."""
    return [head for head in HEADS if head != "classes" or not name.startswith(NOT_FOR_CLASSES)]


def save_encoder(name: str, head: str, folder: Path, std: float = 0.3) -> Any:
    """The encoder `name` with this head and definite weights, written to `folder`."""
    config_class, settings = ENCODERS[name]
    torch.manual_seed(5)
    labels = {"num_labels": 5} if "unusual" in name else {}
    model = HEADS[head].from_config(config_class(**ENCODER, **settings, **labels)).eval()
    for key, parameter in model.named_parameters():
        mean = 1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0
        torch.nn.init.normal_(parameter, mean=mean, std=std)
    model.save_pretrained(folder)
    return model
