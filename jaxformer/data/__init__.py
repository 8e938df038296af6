"""Data: tasks that make their own sequences, text for language models, and the pipelines that batch them."""

from jaxformer.data.pipeline import Batch, example, held_out, stack, training_batches
from jaxformer.data.tasks import BOS, EOS, PAD, TASKS, Symbols, Task, is_held_out
from jaxformer.data.text import Corpus, documents, open_corpus, split_corpus, text_batches, windows
from jaxformer.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "TASKS",
    "Batch",
    "Corpus",
    "Symbols",
    "Task",
    "Tokenizer",
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
