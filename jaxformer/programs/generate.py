"""`python generate.py`: what a trained model says to held-out inputs, or to yours."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxformer.decode import GenerationConfig
from jaxformer.errors import InputError
from jaxformer.programs import terminal
from jaxformer.programs.answers import answer_inputs
from jaxformer.programs.continuations import Prompts, continue_prompts
from jaxformer.programs.kind import Run
from jaxformer.programs.runs import newest_finished, open_run

SAMPLING_FLAGS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True)
class Arguments:
    """What the command line says; a setting that is None keeps the model's own."""

    beam: int = 1
    """beam search with so many beams; 1 decodes greedily"""
    greedy: bool = False
    """the most likely token at every step (so it is unless other flags say otherwise)"""
    temperature: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """sample, from logits divided by this; 0 is greedy"""
    top_k: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """sample among the k most likely tokens only"""
    top_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """sample among the smallest set of tokens that has this probability"""
    min_p: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """sample among tokens at least so many times as likely as the likeliest, such as 0.05"""
    repetition_penalty: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """above 1, tokens that have occurred become less likely"""
    seed: int = 0
    """seed of the samples"""
    n_best: int = 1
    """how many sequences to print for each input"""
    length_penalty: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """beam scores are divided by length to this power"""
    max_new_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """the most tokens to generate"""
    input: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """decode this, for example "3 1 4 1 5" """
    prompt: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="TEXT")] = ()
    """text for a language model to continue; give it several times for several texts"""
    input_file: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """decode or continue every line of this file; - reads standard input"""
    truncate: bool = False
    """of a prompt that is too long, read the end"""
    checkpoint: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """folder of the run (default: the one below runs/ that was finished last)"""
    json: bool = False
    """print one JSON object per sequence"""


def main() -> None:
    """Entry point of generate.py."""
    terminal.run(lambda: decode_inputs(sys.argv[1:]))


def decode_inputs(argv: list[str]) -> None:
    """Decode as the command line says."""
    arguments = terminal.parse(
        Arguments,
        argv,
        prog="generate.py",
        description="Decode with a trained model: greedily, by beam search (--beam 4), or sampling (--temperature 1).",
    )
    settings = generation_settings(arguments)
    wants_text = arguments.checkpoint is None and bool(arguments.prompt)
    run = open_run(newest_finished(task_name="lm") if wants_text else arguments.checkpoint)
    is_text = run.task_name == "lm"
    refuse_flags(run, arguments, ("input",) if is_text else ("prompt", "truncate"))
    config = run.generation.replace(**settings)
    if is_text:
        limit = arguments.max_new_tokens
        prompts = Prompts(arguments.prompt, arguments.input_file, truncate=arguments.truncate, new_tokens=limit)
        continue_prompts(run, config, prompts, as_json=arguments.json)
    else:
        answer_inputs(run, config, given=arguments.input, file=arguments.input_file, as_json=arguments.json)


def refuse_flags(run: Run, arguments: Arguments, names: tuple[str, ...]) -> None:
    """Raise InputError if one of the flags is given, which mean nothing to this kind of model."""
    for name in names:
        if getattr(arguments, name):
            other = "prompt, text to continue" if run.task_name == "lm" else "input, symbols to answer"
            raise InputError(f"--{name} is not for {run.folder}, trained on {run.task_name!r}: give --{other}")


def generation_settings(arguments: Arguments) -> dict[str, Any]:
    """The settings that the flags stand for. Raises InputError for flags that contradict each other."""
    sampling = [name for name in SAMPLING_FLAGS if getattr(arguments, name) is not None]
    if arguments.greedy and (sampling or arguments.beam != 1):
        raise InputError("--greedy excludes --beam, --temperature, --top-k, --top-p and --min-p: leave one of them out")
    if arguments.length_penalty is not None and arguments.beam == 1:
        raise InputError("--length-penalty weighs beams: give --beam too")
    if arguments.n_best > max(arguments.beam, 1) and (not sampling or arguments.beam > 1):
        raise InputError(f"--n-best {arguments.n_best} needs --beam {arguments.n_best}, or sampling without beams")
    if sum([arguments.input is not None, arguments.input_file is not None, bool(arguments.prompt)]) > 1:
        raise InputError("--input, --prompt and --input-file exclude each other: give one")
    names = (*sampling, "length_penalty", "max_new_tokens", "repetition_penalty")
    given = {name: getattr(arguments, name) for name in names}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings |= {"num_beams": arguments.beam, "do_sample": bool(sampling)}
    settings |= {"num_return_sequences": arguments.n_best, "seed": arguments.seed}
    GenerationConfig().replace(**settings)  # wrong values are told before a model is loaded
    return settings
