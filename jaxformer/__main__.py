"""`python -m jaxformer COMMAND`: the programs that look into models."""

import sys
from collections.abc import Callable

from jaxformer.cli import embed, export, inspect, perplexity, terminal, verify, visualize
from jaxformer.errors import InputError

COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "embed": (embed.main, "a vector for each sentence, from an encoder of Hugging Face"),
    "export": (export.main, "a language model trained here, as a folder that transformers opens"),
    "inspect": (inspect.main, "every module of a model with its shapes and parameters, FLOPs, bytes of the cache"),
    "perplexity": (perplexity.main, "how well a language model predicts a text: loss, perplexity, bits per byte"),
    "verify": (verify.main, "a checkpoint of Hugging Face here and in transformers, compared layer by layer"),
    "visualize": (visualize.main, "pictures of a trained model: attention maps, masks, positional encoding"),
}


def main(argv: list[str]) -> None:
    """Run the command that the first argument names, or list the commands. Raises InputError for an unknown one."""
    name, rest = (argv[0], argv[1:]) if argv else ("--help", [])
    if name in ("-h", "--help"):
        print("usage: python -m jaxformer COMMAND [flags]\n")
        for command, (_, about) in COMMANDS.items():
            print(f"  {command:12}{about}")
        print("\nFlags of a command: python -m jaxformer COMMAND --help")
    elif name in COMMANDS:
        COMMANDS[name][0](rest)
    else:
        raise InputError(f"unknown command {name!r}: choose one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    terminal.run(lambda: main(sys.argv[1:]))
