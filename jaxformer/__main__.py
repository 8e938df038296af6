"""The installed command `jaxformer`, and `python -m jaxformer`: all programs by their names."""

import importlib
import platform
import sys
from typing import NamedTuple

import flax
import jax

import jaxformer
from jaxformer.cli import terminal
from jaxformer.cli.invocation import command_line
from jaxformer.errors import InputError
from jaxformer.extras import require_extra
from jaxformer.machine import keep_freed_memory


class Command(NamedTuple):
    """A program.

    Attributes:
        entry: Its module in `jaxformer.cli` and its function, which takes the list of arguments.
        about: What it does, in one line.
        example: Arguments to begin with.
    """

    entry: str
    about: str
    example: str


COMMANDS = {
    "train": Command("train:train", "train a model on a task, or a language model on a text", "--task copy"),
    "generate": Command("generate:decode_inputs", "answer inputs or continue texts with a trained model", "--beam 4"),
    "answer": Command(
        "answer:main",
        "answer questions with parts of a text, with a checkpoint of Hugging Face",
        "--model FOLDER --context text.txt --question 'Who sat there?'",
    ),
    "classify": Command(
        "classify:main",
        "tell which label each line of a file has, with a classifier of Hugging Face",
        "--model FOLDER --input-file texts.txt",
    ),
    "embed": Command(
        "embed:main",
        "turn sentences into vectors with a checkpoint of Hugging Face or sentence-transformers",
        "--model FOLDER --input-file sentences.txt",
    ),
    "export": Command(
        "export:main", "write a language model trained here as a folder that transformers opens", "my-model"
    ),
    "fill-mask": Command(
        "fill_mask:main",
        "tell which tokens may stand for each [MASK], with an encoder of Hugging Face",
        "--model FOLDER --input-file texts.txt",
    ),
    "inspect": Command(
        "inspect:main", "list the modules of a model: shapes, parameters, FLOPs, bytes of the cache", "paper-base"
    ),
    "perplexity": Command(
        "perplexity:main",
        "measure how well a language model predicts a text: loss, perplexity, bits per byte",
        "--data text.txt",
    ),
    "tag": Command(
        "tag:main",
        "list the entities in each line of a file, with a checkpoint of Hugging Face",
        "--model FOLDER --input-file texts.txt",
    ),
    "verify": Command(
        "verify:main", "compare a checkpoint of Hugging Face here and in transformers, layer by layer", "FOLDER"
    ),
    "visualize": Command(
        "visualize:main",
        "draw attention maps, masks and positional encodings of a trained model",
        "--checkpoint runs/copy",
    ),
}


def run(argv: list[str] | None = None) -> None:
    """Run the command that the arguments name, as a process of its own: the entry point of the installed command.

    Args:
        argv: The arguments; by default those of the process.
    """
    arguments = sys.argv[1:] if argv is None else argv
    training = arguments[:1] == ["train"]
    if training:
        keep_freed_memory()  # before JAX starts its threads
    runner = terminal.run_and_leave if training else terminal.run
    runner(lambda: main(arguments))


def main(argv: list[str]) -> None:
    """Run the command that the first argument names, or list the commands. Raises InputError for an unknown one."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if "--version" in (name, *rest[:1]):
        print(f"jaxformer {jaxformer.__version__} (jax {jax.__version__}, flax {flax.__version__}, {python()})")
    elif name in ("-h", "--help"):
        print_help()
    elif name in COMMANDS:
        require_extra("cli", command_line(name))
        module, _, function = COMMANDS[name].entry.partition(":")
        getattr(importlib.import_module(f"jaxformer.cli.{module}"), function)(rest)
    else:
        raise InputError(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")


def python() -> str:
    """Return the name and version of the interpreter."""
    return f"{platform.python_implementation().replace('CPython', 'Python')} {platform.python_version()}"


def print_help() -> None:
    """Print every command with its example."""
    print(f"usage: {command_line('COMMAND')} [flags]\n")
    for name, (_, about, example) in COMMANDS.items():
        print(f"  {name:12}{about}\n{'':14}{command_line(name)} {example}")
    print(f"\nFlags of a command: {command_line('COMMAND')} --help\nVersion: {command_line('--version')}")


if __name__ == "__main__":
    run()
