"""A generation in parts: as a stream of tokens, or stopped, saved and continued elsewhere."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxformer import backends
from jaxformer.errors import InputError
from jaxformer.generation.api import (
    BESIDE,
    Model,
    begin_request,
    generate,
    make_request,
    reorder_cache,
)
from jaxformer.generation.arrays import is_traced
from jaxformer.generation.compiling import Compiled, compiled
from jaxformer.generation.config import GenerationConfig
from jaxformer.generation.engine import Generated, check_drawn, in_float32, returned, strategy_of
from jaxformer.generation.loop import Found, Search, proceed
from jaxformer.generation.prepared import PreparedWeights, model_and_weights
from jaxformer.generation.spec import SearchSpec, check_one_source


class Session:
    """A generation that can be interrupted.

    `state` is a pytree of arrays: the tokens so far, the state of the search, and the cache. Save it with orbax. A
    session with the same model, inputs and settings, in any process, continues from it to the same tokens.

        session = Session(model, prompt, num_beams=4, max_new_tokens=200)
        while not session.finished:
            session.advance()
        session.result().sequences

    Args:
        model: A `Transformer`, or its `Generator`.
        inputs: Token ids [B, S], as `generate` takes them.
        config: Settings. None: the defaults of `GenerationConfig`.
        **arguments: Changes to `config`, and the keyword arguments of `generate`.

    Raises:
        InputError: As `generate`, and inside `jax.jit`.
    """

    def __init__(
        self,
        model: Any,
        inputs: Any = None,
        config: GenerationConfig | None = None,
        **arguments: Any,
    ):
        given = dict.fromkeys(BESIDE)
        given |= {name: value for name, value in arguments.items() if name in BESIDE}
        settings = {name: value for name, value in arguments.items() if name not in BESIDE}
        check_one_source(given["key"], settings)
        self.config = GenerationConfig.of(config, settings)
        if self.config.output_attentions:
            raise InputError("attention maps belong to whole generations: leave output_attentions out, or use generate")
        model, weights = model_and_weights(model)
        if is_traced(model):
            raise InputError("a session runs programs of its own: inside jax.jit call generate")
        request = make_request(model, inputs, self.config, **given)
        self.spec, self.layout = request.spec, backends.layout()
        reading, self.stepping = weights.layouts(model, request.rows)
        self.state = begin_compiled(reading, self.stepping, request)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to generate."""
        return bool(strategy_of(self.spec).finished(self.spec, self.state.state))

    @property
    def found(self) -> Found:
        """What the search has found so far, all of its rows."""
        return strategy_of(self.spec).result(self.state.state, self.state.record)

    def advance(self) -> None:
        """Generate a few more tokens. The state from before is used up: save it first, if it is to be kept."""
        with backends.using(self.layout):
            self.state = proceed_compiled(self.stepping, self.state, self.spec)

    def result(self) -> Generated:
        """Return the sequences so far, as `generate` returns them at the end; beams that run on are not among them."""
        return returned(self.found, self.config, self.spec)


def stream(
    model: Any, inputs: Any = None, config: GenerationConfig | None = None, **settings: Any
) -> Iterator[np.ndarray]:
    """Return the new tokens of `generate` as they are produced, in parts int32 [R, n].

    Joined along the last axis, they are the tokens that `generate` appends. Greedy decoding and sampling only: the
    beams of a beam search may change until its end.

    Args:
        model: A `Transformer`, or its `Generator`.
        inputs: Token ids [B, S], as `generate` takes them.
        config: Settings. None: the defaults of `GenerationConfig`.
        **settings: Changes to `config`, and the keyword arguments of `generate`.

    Raises:
        InputError: As `generate`, and for a beam search.
    """
    chosen = {name: value for name, value in settings.items() if name not in BESIDE}
    if GenerationConfig.of(config, chosen).num_beams > 1:
        raise InputError("a beam search cannot be streamed, as its beams may change until the end: use generate")
    return produced(Session(model, inputs, config, **settings))


def produced(session: Session) -> Iterator[np.ndarray]:
    """Yield the new tokens of each chunk, up to the end of the longest row."""
    sent = int(session.spec.prompt_length)
    while True:
        tokens, lengths = np.asarray(session.found.tokens), np.asarray(session.found.lengths)
        finished = session.finished
        end = int(lengths.max()) if finished else int(session.found.length)
        if end > sent:
            check_drawn(tokens, sent, lengths)
            yield tokens[:, sent:end].copy()  # the next chunk takes over the memory
        if finished:
            return
        sent = end
        session.advance()


class Generator:
    """Generates with one model, and owns its weights as prepared for decoding: they live as long as it does.

    Its methods are the functions `generate`, `stream` and `Session` without their first argument. Those keep prepared
    weights as long as the model lives; a generator lets you decide.

        generator = jaxformer.Generator(model)
        generator.generate(prompts, num_beams=4).sequences

    Args:
        model: A `Transformer`, or another model that `generate` takes.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.prepared_weights = model, PreparedWeights()

    def generate(self, *arguments: Any, **settings: Any) -> Generated:
        """Return what `jaxformer.generate` returns."""
        return generate(self, *arguments, **settings)

    def stream(self, *arguments: Any, **settings: Any) -> Iterator[np.ndarray]:
        """Return what `jaxformer.stream` returns, with its arguments."""
        return stream(self, *arguments, **settings)

    def session(self, *arguments: Any, **settings: Any) -> Session:
        """Return a `jaxformer.Session`, with its arguments."""
        return Session(self, *arguments, **settings)


begin_compiled = Compiled(begin_request)  # what is compiled for the prompts


@compiled(donated=(1,))
def proceed_compiled(stepping: Model, search: Search, spec: SearchSpec) -> Search:
    """Continue a search by a chunk of tokens: the function that is compiled."""
    return proceed(spec, strategy_of(spec), in_float32(stepping.step), reorder_cache, search)
