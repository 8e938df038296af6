"""`jaxformer inspect`: every module of a model, and what the model costs, as a table."""

import dataclasses
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from flax import nnx

from jaxformer.cli import terminal
from jaxformer.cli.accounting import Costs, Row, Sizes, abstract_model, costs, module_rows
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import read_description
from jaxformer.config import TransformerConfig
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.parallel import RULES, mesh_axes, partition
from jaxformer.parallel.mesh import read_sizes
from jaxformer.presets import PRESETS
from jaxformer.pretrained import from_pretrained
from jaxformer.schema import INT32_MAX, shown


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line."""

    preset: Annotated[
        tyro.conf.Positional[str | None],
        tyro.conf.arg(metavar="[PRESET]", help_behavior_hint=f"(one of {', '.join(PRESETS)})"),
    ] = None
    """name of a ready-made configuration (default: paper-base)"""
    checkpoint: Annotated[Path | None, optional("RUN")] = None
    """folder of a trained run, instead of a preset"""
    model: Annotated[str | None, optional("FOLDER")] = None
    """folder of a checkpoint of Hugging Face, or its id on the hub, instead of a preset"""
    batch: int = 1
    """sequences in a batch, B"""
    source_length: int = 64
    """tokens that an encoder reads, S"""
    length: int = 64
    """tokens that a decoder reads, T, and slots of its cache"""
    mesh: Annotated[str | None, optional("AXIS=SIZE,...")] = None
    """say how a mesh such as fsdp=8,tensor=2 divides the parameters, which needs no such devices"""


def main(argv: list[str]) -> None:
    """Print the modules and the costs of the model that the command line names."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("inspect"),
        description="Print every module of a model, and what it costs.",
    )
    name, config = choose(arguments)
    sizes = Sizes(arguments.batch, arguments.source_length, arguments.length)
    check_sizes(config, sizes)
    print(f"{name}: {describe_sizes(config, sizes)}\n")
    print(table(fold(module_rows(config))))
    print()
    print(summary(costs(config, sizes)))
    if arguments.mesh is not None:
        print(division(config, arguments.mesh))


def choose(arguments: Arguments) -> tuple[str, TransformerConfig]:
    """Name and configuration of the model to inspect. Raises InputError for an unknown one."""
    if sum(given is not None for given in (arguments.preset, arguments.checkpoint, arguments.model)) > 1:
        raise InputError("name a preset, a --checkpoint or a --model, one of them")
    if arguments.model is not None:
        return arguments.model, from_pretrained(arguments.model).model.config
    if arguments.checkpoint is not None:
        return str(arguments.checkpoint), read_description(arguments.checkpoint).transformer
    name = arguments.preset or "paper-base"
    if name not in PRESETS:
        raise InputError(
            f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}, or give --checkpoint RUN or --model FOLDER"
        )
    return name, PRESETS[name]()


def check_sizes(config: TransformerConfig, sizes: Sizes) -> None:
    """Raise InputError for inputs that the model cannot read."""
    for flag, size in (("batch", sizes.B), ("source-length", sizes.S), ("length", sizes.T)):
        if not 1 <= size <= INT32_MAX:
            raise InputError(f"--{flag} must be from 1 to {INT32_MAX}, not {shown(size)}")
    model = abstract_model(config)
    if model.max_source_length is not None and model.max_source_length < sizes.S:
        raise InputError(f"--source-length {sizes.S} exceeds the {model.max_source_length} positions of the encoder")
    if config.decoder and model.max_length is not None and model.max_length < sizes.T:
        raise InputError(f"--length {sizes.T} exceeds the {model.max_length} positions of the decoder")


def fold(rows: list[Row]) -> list[Row]:
    """Return the rows, equal blocks that follow each other as one row "blocks.1 - 5" behind the first of them."""
    folded: list[Row] = []
    groups = [(block, list(group)) for block, group in itertools.groupby(rows, lambda row: block_path(row.path))]
    likeness = [
        [dataclasses.replace(row, path=row.path.removeprefix(block)) for row in group] for block, group in groups
    ]
    start = 0
    while start < len(groups):
        stop = start + 1
        while groups[start][0] and stop < len(groups) and likeness[stop] == likeness[start]:
            stop += 1
        folded += groups[start][1]
        if same := [group[0] for _, group in groups[start + 1 : stop]]:
            last = same[-1].path.rpartition(".")[2]
            path = same[0].path if len(same) == 1 else f"{same[0].path} - {last}"
            count = sum(row.parameters for row in same)
            folded.append(Row(path, same[0].kind, ((f"as {groups[start][0]}", ""),), count))
        start = stop
    return folded


def block_path(path: str) -> str:
    """Return the block "encoder.blocks.0" to which a module belongs; empty where it belongs to none."""
    parts = path.split(".")
    return ".".join(parts[:3]) if len(parts) > 2 and parts[1] == "blocks" else ""


def describe_sizes(config: TransformerConfig, sizes: Sizes) -> str:
    """Return what the letters of the table stand for."""
    parts = [f"batch B = {sizes.B}"]
    parts += [f"source length S = {sizes.S}"] * (config.encoder is not None)
    parts += [f"target length T = {sizes.T}"] * (config.decoder is not None)
    return ", ".join([*parts, f"model width D = {config.dim}"])


def table(rows: list[Row]) -> str:
    """Return the rows as aligned columns; a module that is called with several shapes has a line for each."""
    lines: list[tuple[str, ...]] = [("module", "class, axes", "input", "output", "parameters")]
    for row in rows:
        first, *others = row.calls or (("", ""),)
        lines.append((row.path, f"{row.kind} {row.axes}".rstrip(), *first, f"{row.parameters:,}"))
        lines += [("", "", *call, "") for call in others]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "  ".join([*map(str.ljust, texts, widths), number.rjust(widths[-1])]).rstrip() for *texts, number in lines
    )


def summary(costs: Costs) -> str:
    """Return the totals, one a line."""
    chosen = f"; a token goes through {costs.active_parameters:,}" * (costs.active_parameters < costs.parameters)
    lines = [
        ("parameters", f"{costs.parameters:,} in {quantity(costs.weights, 'B')}{chosen}"),
        ("forward", f"{quantity(costs.forward, 'FLOP')} for a batch"),
        ("training step", f"{quantity(costs.step, 'FLOP')} for a batch: forward, gradient, AdamW"),
    ]
    if costs.cache:
        lines.append(("cache", f"{costs.cache_token:,} bytes a token; {quantity(costs.cache, 'B')} for B x T tokens"))
    if costs.otherwise:
        others = ", ".join(f"{name} {number:,}" for name, number in costs.otherwise.items())
        lines.append(("", f"of latents, absorbed; bytes a token otherwise: {others}"))
    if costs.cross:
        lines.append(("cross-attention", f"{quantity(costs.cross, 'B')} more, keys and values of B x S source tokens"))
    return "\n".join(f"{name:17}{value}" for name, value in lines)


def division(config: TransformerConfig, mesh: str) -> str:
    """Return how a mesh divides the parameters of a model, a line each. Raises InputError for what is no mesh."""
    sizes = read_sizes(mesh)
    if -1 in sizes.values():
        raise InputError(f"--mesh {mesh}: give all sizes, because no devices are looked for")
    variables = [variable for _, variable in nnx.to_flat_state(nnx.state(abstract_model(config)))]
    total, part, whole = sum(variable.size for variable in variables), 0.0, {}
    for variable in variables:
        matrix = len(variable.shape) > 1  # vectors stay whole
        letters = variable.axes if matrix else "_" * len(variable.shape)
        spec = partition(letters, variable.shape, sizes, RULES)
        taken = [axis for place in range(len(spec)) for axis in mesh_axes(spec, place)]
        part += variable.size / math.prod(sizes[axis] for axis in taken)
        for letter, size in zip(letters, variable.shape, strict=True):
            left = [axis for axis in getattr(RULES, letter, ()) if sizes.get(axis, 1) > 1 and axis not in taken]
            whole |= {f"{letter} = {size} is not divided by {axis}={sizes[axis]}": None for axis in left}
    devices = math.prod(sizes.values())
    share = f"{part:,.0f} of {total:,} parameters on each of {devices} devices"
    return "\n".join(f"{name:17}{text}" for name, text in [("mesh", share), *(("whole", each) for each in whole)])


def quantity(value: float, unit: str) -> str:
    """Return a number with its decimal prefix: 63082496 B is "63.1 MB"."""
    power = min(4, int(math.log10(max(value, 1))) // 3)
    return f"{value / 1000**power:.{1 if power else 0}f} {('', 'k', 'M', 'G', 'T')[power]}{unit}"
