"""Decoding: greedy, sampling and beam search over any `step(tokens, cache) -> (logits, cache)`."""

from jaxformer.generation.api import generate
from jaxformer.generation.automata import Automaton, allow_phrases, allow_regex
from jaxformer.generation.config import GenerationConfig
from jaxformer.generation.engine import Generated, decode, reorder_rows
from jaxformer.generation.processors import Context, LogitsProcessor, logits_processor
from jaxformer.generation.session import Generator, Session, stream

__all__ = [
    "Automaton",
    "Context",
    "Generated",
    "GenerationConfig",
    "Generator",
    "LogitsProcessor",
    "Session",
    "allow_phrases",
    "allow_regex",
    "decode",
    "generate",
    "logits_processor",
    "reorder_rows",
    "stream",
]
