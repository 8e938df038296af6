"""Decoding: greedy, sampling and beam search over any `step(tokens, cache) -> (logits, cache)`."""

from jaxformer.decode.config import GenerationConfig
from jaxformer.decode.engine import Generated, decode, select_rows
from jaxformer.decode.generation import generate, stream

__all__ = ["Generated", "GenerationConfig", "decode", "generate", "select_rows", "stream"]
