"""`jaxformer generate`: what a trained model says to held-out inputs, or to yours."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxformer import parallel
from jaxformer.cli import runs, terminal
from jaxformer.cli.inputs import Prompts, read_inputs
from jaxformer.cli.invocation import command_line
from jaxformer.cli.runs import Run, find_run
from jaxformer.cli.streams import note, print_as_it_comes
from jaxformer.cli.terminal import search_name
from jaxformer.cli.texts import answer_texts
from jaxformer.errors import InputError
from jaxformer.flags import optional
from jaxformer.generation import GenerationConfig
from jaxformer.pretrained import from_pretrained
from jaxformer.tasks import Task

SAMPLING_FLAGS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command line; a setting that is None keeps the model's own."""

    beam: Annotated[int | None, optional("INT")] = None
    """number of beams; 1, the default of models trained here, decodes greedily"""
    greedy: bool = False
    """greedy decoding: the most likely token at every step (the default of models trained here)"""
    temperature: Annotated[float | None, optional("FLOAT")] = None
    """sample from logits divided by this; 0 is greedy"""
    top_k: Annotated[int | None, optional("INT")] = None
    """sample among the k most likely tokens only"""
    top_p: Annotated[float | None, optional("FLOAT")] = None
    """sample among the smallest set of tokens that has this probability"""
    min_p: Annotated[float | None, optional("FLOAT")] = None
    """sample among tokens whose probability is at least this share of the largest, such as 0.05"""
    repetition_penalty: Annotated[float | None, optional("FLOAT")] = None
    """values above 1 make tokens that have occurred less likely"""
    seed: int = 0
    """seed of sampling"""
    n_best: Annotated[int | None, optional("INT")] = None
    """number of sequences to print for each input (default: one)"""
    length_penalty: Annotated[float | None, optional("FLOAT")] = None
    """divide scores of beams by length to this power"""
    max_new_tokens: Annotated[int | None, optional("INT")] = None
    """largest number of tokens to generate"""
    input: Annotated[str | None, optional("TEXT")] = None
    """decode this, for example "3 1 4 1 5" """
    prompt: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """text for a language model to continue; several times for several texts (default: the lines of a pipe)"""
    input_file: Annotated[Path | None, optional("PATH")] = None
    """decode or continue every line of this file; - reads standard input"""
    model: Annotated[str | None, optional("FOLDER")] = None
    """a checkpoint folder of Hugging Face, or a hub id, to read --prompt or the lines of --input-file"""
    raw: bool = False
    """with --model: texts as they are, without the chat template, as of a run that learned no conversations"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """with --model: the type to compute in"""
    weights: Literal["full", "int8"] = "full"
    """int8 rounds weights to 8 bits, which are read faster (see docs/performance.md)"""
    truncate: bool = False
    """truncate prompts that are too long from the left"""
    checkpoint: Annotated[Path | None, optional("RUN")] = None
    """folder of the run (default: the one below runs/ that was finished last)"""
    task: Annotated[str | None, optional("NAME")] = None
    """task of the run; needed for a task of your own, FILE.py:CLASS"""
    mesh: Annotated[str | None, optional("AXIS=SIZE,...")] = None
    """divide the model over devices: tensor=4, or fsdp=2,tensor=2"""
    json: bool = False
    """print one JSON object per sequence"""


def decode_inputs(argv: list[str]) -> None:
    """Decode as the command line says."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog=command_line("generate"),
        description="Decode with a trained model: greedily, by beam search (--beam 4), or sampling (--temperature 1).",
    )
    with parallel.using(None if arguments.mesh is None else parallel.make_mesh(arguments.mesh)):
        answer(arguments)


def answer(arguments: Arguments) -> None:
    """Print what the model makes of its inputs."""
    settings = generation_settings(arguments)
    if arguments.model is not None:
        answer_with_folder(arguments.model, arguments, settings)
        return
    if arguments.raw or arguments.dtype != "float32":
        raise InputError("--raw and --dtype belong to --model: leave them out")
    wants_text = bool(arguments.prompt) and arguments.task is None
    able = (lambda task: task.reads.flag == "prompt") if wants_text else None
    run = find_run(arguments.checkpoint, arguments.task, able)
    if arguments.weights == "int8":
        run = replace(run, model=run.model.quantize())
    refuse_flags(run, arguments)
    answer_with_run(run, arguments, settings)


def answer_with_folder(name: str, arguments: Arguments, settings: dict[str, Any]) -> None:
    """Print what a checkpoint of Hugging Face makes of texts."""
    if arguments.checkpoint or arguments.input or arguments.task:
        raise InputError(
            "--model reads --prompt or --input-file, and is no --checkpoint and no --task: leave the others out"
        )
    prompts = Prompts(arguments.prompt, arguments.input_file, arguments.truncate)
    given = prompts.read()
    if not given:
        raise InputError("there is no text to read: give --prompt (which may be empty), --input-file or a pipe")
    prompts = replace(prompts, given=tuple(given), file=None)
    lm = from_pretrained(runs.checkpoint_in(name), dtype=arguments.dtype)
    if lm.model.decoder is None:
        programs = ", ".join(command_line(program) for program in ("classify", "tag", "answer", "fill-mask", "embed"))
        raise InputError(f"{name} is an encoder, which generates nothing: give it to one of {programs}")
    lm = lm.quantize() if arguments.weights == "int8" else lm
    raw = arguments.raw or runs.reads_plain(name)
    answer_texts(name, lm, settings, prompts, raw=raw, as_json=arguments.json)


def answer_with_run(run: Run, arguments: Arguments, settings: dict[str, Any]) -> None:
    """Print what a model that was trained here makes of inputs. A single text is printed as it is produced."""
    task, options = run.task, {"truncate": arguments.truncate, **settings}
    given = arguments.prompt if arguments.input is None else (arguments.input,)
    inputs = read_inputs(task, given, arguments.input_file)
    config, parts = task.generation.replace(**settings), None
    if len(inputs) == config.num_return_sequences == config.num_beams == 1 and not arguments.json:
        parts = task.stream(run.model, inputs[0], **options)
    outputs = task.generate(run.model, inputs, **options) if parts is None else iter(())
    if not arguments.json:
        searches = type(task).generation is not Task.generation
        note(f"{run.folder}: {task.name}{f', {search_name(config)}' if searches else ''}")
    if parts is not None:
        print_as_it_comes(parts)
        return
    start, groups = time.perf_counter(), []
    for group in outputs:
        groups.append(group)
        for output in group:
            print(json.dumps(vars(output), ensure_ascii=False) if arguments.json else output, flush=True)
    summary = None if arguments.json else task.summarize(groups)
    if summary is not None:
        note(f"{summary}, {time.perf_counter() - start:.1f} s")


def refuse_flags(run: Run, arguments: Arguments) -> None:
    """Raise InputError if a flag is given that means nothing to the task of a run."""
    reads = run.task.reads
    foreign = ["prompt" if reads.flag == "input" else "input", *([] if reads.truncate else ["truncate"])]
    for name in foreign:
        if getattr(arguments, name):
            raise InputError(
                f"--{name} is not for {run.folder}, trained on {run.task.name!r}: give --{reads.flag}, {reads.content}"
            )


def generation_settings(arguments: Arguments) -> dict[str, Any]:
    """Return the settings that the flags stand for. Raises InputError for flags that contradict each other."""
    sampling = [name for name in SAMPLING_FLAGS if getattr(arguments, name) is not None]
    beams, copies = arguments.beam or 1, arguments.n_best or 1
    for name, count in (("beam", arguments.beam), ("n-best", arguments.n_best)):
        if count is not None and count < 1:
            raise InputError(f"--{name} must be at least 1, not {count}")
    if arguments.greedy and (sampling or beams != 1):
        raise InputError("--greedy excludes --beam, --temperature, --top-k, --top-p and --min-p: leave one of them out")
    if arguments.length_penalty is not None and beams == 1 and arguments.model is None:
        raise InputError("--length-penalty weighs beams: give --beam too")
    if copies > beams and (not sampling or beams > 1) and arguments.model is None:
        raise InputError(f"--n-best {copies} needs --beam {copies}, or sampling without beams")
    if sum([arguments.input is not None, arguments.input_file is not None, bool(arguments.prompt)]) > 1:
        raise InputError("--input, --prompt and --input-file exclude each other: give one")
    names = (*sampling, "length_penalty", "max_new_tokens", "repetition_penalty")
    given = {name: getattr(arguments, name) for name in names}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    counts = {"num_beams": 1 if arguments.greedy else arguments.beam, "num_return_sequences": arguments.n_best}
    settings |= {name: value for name, value in counts.items() if value is not None} | {"seed": arguments.seed}
    if sampling or arguments.greedy or arguments.model is None:
        settings["do_sample"] = bool(sampling)
    if arguments.model is None:
        GenerationConfig().replace(**settings)  # wrong values are told before a model is loaded
    return settings
