"""Decoding: greedy, sampling and beam search over any `step(tokens, cache) -> (logits, cache)`."""

from jaxformer.generation.api import generate
from jaxformer.generation.automata import phrase_automaton as allow_phrases
from jaxformer.generation.automata import regex_automaton as allow_regex
from jaxformer.generation.config import GenerationConfig
from jaxformer.generation.engine import Generated, decode, select_rows
from jaxformer.generation.plan import Automaton
from jaxformer.generation.session import Session, stream

__all__ = [
    "Automaton",
    "Generated",
    "GenerationConfig",
    "Session",
    "allow_phrases",
    "allow_regex",
    "decode",
    "generate",
    "select_rows",
    "stream",
]
