"""Decoding: greedy, sampling and beam search over any `step(tokens, cache) -> (logits, cache)`."""

from jaxformer.decode.automata import phrase_automaton as allow_phrases
from jaxformer.decode.automata import regex_automaton as allow_regex
from jaxformer.decode.config import GenerationConfig
from jaxformer.decode.engine import Generated, decode, select_rows
from jaxformer.decode.generation import generate
from jaxformer.decode.plan import Automaton
from jaxformer.decode.session import Session, stream

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
