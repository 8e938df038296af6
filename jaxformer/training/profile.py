"""Where the time of a training step goes: a trace of some steps, and its most expensive operations by module."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxformer.training.record import say
from jaxformer.training.step import Batch, CompiledStep, Metrics, TrainState

FIRST, LAST = 3, 5  # steps that are traced: the first ones compile, and fill the memory
SHOWN = 10
INSTRUCTION = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = .*op_name="([^"]*)"')
WRAPPER = re.compile(r"^(jit|jvp|transpose|vmap|checkpoint|remat|custom_vjp|pjit)\((.*)\)$")
INNER = re.compile(r"jit|while|body|cond|branch.*|closed_call|checkpoint|rematted_computation|custom_.*|.*->.*")


class Operation(NamedTuple):
    """An operation of the source, such as all products of the feed-forward networks in the backward pass.

    Attributes:
        module: The module, with "*" in the place of a block's number.
        name: The primitive of JAX.
        backward: Whether it belongs to the gradient.
    """

    module: str
    name: str
    backward: bool


class StepProfiler:
    """A training step that is traced from its third to its fifth call, and then says where the time went.

    Args:
        step: The compiled step.
        folder: Where the trace is written; TensorBoard and Perfetto open it.
    """

    def __init__(self, step: CompiledStep, folder: Path):
        self.step, self.folder, self.calls = step, folder, 0

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take a step."""
        self.calls += 1
        if self.calls == FIRST:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self.folder)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        state, metrics = self.step(state, batch)
        if self.calls == LAST:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            sources = operations(self.step.lower(shapes, batch).compile().as_text() or "")
            say("\n".join(table(times(self.folder, sources), LAST - FIRST + 1)))
            say(f"trace: {self.folder}")
        return state, metrics


def operations(program: str) -> dict[str, Operation]:
    """Return the operation of the source that each instruction of a compiled program, as text, comes from."""
    return {match[1]: operation(match[2]) for match in map(INSTRUCTION.match, program.splitlines()) if match}


def operation(path: str) -> Operation:
    """Return what a path of JAX means, such as "jit(train_step)/transpose(jvp(head))/dot_general"."""
    *scopes, name = path.partition(";")[0].split("/") if path else ["", "other"]  # of merged ones the first
    backward = "transpose(" in path
    modules: list[str] = []
    for scope in scopes:
        kind = ""
        while match := WRAPPER.match(scope):
            kind, scope = match[1], match[2]
        named = scope and kind not in ("jit", "pjit") and not INNER.fullmatch(scope)
        if named and modules[-1:] != [scope]:
            modules.append(re.sub(r"\d+", "*", scope))
    return Operation(".".join(modules) or "(step)", name, backward)


def times(folder: Path, sources: Mapping[str, Operation]) -> dict[Operation, float]:
    """Return the seconds of each operation in the newest trace in a folder."""
    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    found: dict[Operation, float] = defaultdict(float)
    for name, seconds in instructions(jax.profiler.ProfileData.from_file(str(traces[-1]))):
        found[sources.get(name, Operation("(step)", name.split(".")[0], backward=False))] += seconds
    return dict(found)


def instructions(trace: Any) -> Iterable[tuple[str, float]]:
    """Yield the names and seconds of the events of a trace that are instructions of the training step."""
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats and "train_step" in str(stats.get("hlo_module", "")):
                    yield str(stats["hlo_op"]), event.duration_ns / 1e9


def table(found: Mapping[Operation, float], steps: int) -> list[str]:
    """Return the most expensive operations as lines; those that run beside each other add up to more than the time."""
    if not (total := sum(found.values())):
        return ["the trace names no operation of the step"]
    lines = [f"the most expensive operations of {steps} steps:", "  share  ms a step  operation"]
    for each, seconds in sorted(found.items(), key=lambda item: -item[1])[:SHOWN]:
        direction = ", backward" if each.backward else ""
        milliseconds = seconds / steps * 1e3
        lines.append(f"  {seconds / total:5.1%}  {milliseconds:9.2f}  {each.module}: {each.name}{direction}")
    return lines
