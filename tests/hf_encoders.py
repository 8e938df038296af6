"""Tiny encoders with random weights and one of three heads, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
from hf_models import PAD, VOCAB
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    RobertaConfig,
    XLMRobertaConfig,
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
    "distilbert": (DistilBertConfig, DISTIL),
    "distilbert-unusual": (DistilBertConfig, DISTIL | {"activation": "relu", "sinusoidal_pos_embds": True}),
}
HEADS = {"bare": AutoModel, "masked": AutoModelForMaskedLM, "classes": AutoModelForSequenceClassification}


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
