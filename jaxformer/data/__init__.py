"""Data: sequences of symbols, text for language models, and the pipelines that batch them."""

from jaxformer.data.pipeline import Batch, Process, batches_ahead, example, held_out, stack, training_batches
from jaxformer.data.symbols import BOS, EOS, PAD, SPECIAL, Symbols, is_held_out
from jaxformer.data.text import Corpus, documents, open_corpus, split_corpus, text_batches, windows
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "SPECIAL",
    "Batch",
    "Corpus",
    "Process",
    "Symbols",
    "Tokenizer",
    "batches_ahead",
    "documents",
    "example",
    "held_out",
    "is_held_out",
    "load_tokenizer",
    "open_corpus",
    "split_corpus",
    "stack",
    "text_batches",
    "train_tokenizer",
    "training_batches",
    "windows",
]
