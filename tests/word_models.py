"""Tiny checkpoints with tokenizers of a few words, as transformers saves them."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from jaxformer.data import train_tokenizer

WORDS = ["cat", "mat", "dog", "log", "sat", "on", "the", "a", "Katze", "Hund"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
# Words of sentences that say who was where.
PEOPLE, PLACES, OTHERS = (
    ("Ada", "Alan", "Grace"),
    ("Paris", "Rome", "Oslo"),
    ("went", "to", "and", "saw", "lives", "in"),
)
PAIR = "[CLS] $A [SEP] $B:1 [SEP]:1"


def save_tokenizer(folder: Path, single: str, special: list[str], pair: str | None = None, **names: object) -> None:
    vocabulary = {token: index for index, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    around = [(name, vocabulary[name]) for name in single.split() if name != "$A"]
    tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=around)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **names)
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.save_pretrained(folder)


def bert_config(
    vocab_size: int, std: float, kind: type = transformers.BertConfig, **settings: object
) -> transformers.PretrainedConfig:
    """A tiny encoder: 2 layers of width 32, 24 positions, padding 0, weights drawn with deviation `std`."""
    sizes = {"vocab_size": vocab_size, "pad_token_id": 0, "max_position_embeddings": 24, "initializer_range": std}
    return kind(**sizes, **SHAPE, **settings)


def save_bert(folder: Path, mask: str = "[MASK]") -> Path:
    special = ["[PAD]", "[CLS]", "[SEP]", "<unk>", mask]
    save_tokenizer(folder, "[CLS] $A [SEP]", special, pad_token="[PAD]", mask_token=mask)
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(bert_config(len(special) + len(WORDS), 0.3)).save_pretrained(folder)
    return folder


def save_headed(
    folder: Path, opener: type, std: float = 0.5, *, types: bool = True, **settings: object
) -> torch.nn.Module:
    """A tiny BERT with a head that `opener` makes, whose tokenizer reads pairs of texts, and tells them apart."""
    names = {"model_input_names": ["input_ids", "attention_mask", "token_type_ids"]} if types else {}
    special = ["[PAD]", "[CLS]", "[SEP]", "<unk>"]
    save_tokenizer(folder, "[CLS] $A [SEP]", special, pad_token="[PAD]", cls_token="[CLS]", pair=PAIR, **names)
    torch.manual_seed(0)
    model = opener.from_config(bert_config(len(special) + len(WORDS), std, **settings)).eval()
    model.save_pretrained(folder)
    return model


def save_mbart(folder: Path) -> Path:
    """A tiny mBART whose tokenizer writes the language of a source behind it."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "en_XX", "de_DE", "fr_XX"]
    save_tokenizer(folder, "$A </s> en_XX", special, pad_token="<pad>", eos_token="</s>")
    torch.manual_seed(0)
    sizes = {"d_model": 32, "max_position_embeddings": 32, "vocab_size": len(special) + len(WORDS), "init_std": 0.3}
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
    config = transformers.MBartConfig(**sizes, forced_eos_token_id=None, decoder_start_token_id=2)
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
    return folder


def save_chat_llama(folder: Path, texts: list[str]) -> Path:
    """A tiny Llama that knows ChatML."""
    tokenizer = train_tokenizer("bpe", texts, 290, exactly=False)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, eos_token="<|im_end|>")
    fast.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    fast.chat_template = CHATML
    save_llama(folder, 300, bos_token_id=None, eos_token_id=fast.convert_tokens_to_ids("<|im_end|>"), std=0.2)
    fast.save_pretrained(folder)
    return folder


def save_llama(
    folder: Path, vocab_size: int, *, bos_token_id: int | None, eos_token_id: int, std: float = 0.02
) -> None:
    """A tiny Llama without a tokenizer."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=std,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
