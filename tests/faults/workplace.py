"""Folders to try programs in: tiny checkpoints with tokenizers, finished runs, texts."""

import os
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from commands import TINY, command, environment
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

LETTERS = {"<s>": 0, "<pad>": 1, "</s>": 2} | {
    letter: number for number, letter in enumerate("abcdefghijklmnop \n:", 3)
}
TEXT = "".join(f"The cat number {number} sat on mat {number % 7}; nobody minded it.\n" for number in range(120))
ONE_STEP = ["--steps", "1", "--batch-size", "4"]


def add_models(folder: Path, names: Iterable[str] = ("gpt2", "bart", "bert")) -> None:
    """Write `gpt2`, `bart` and `bert`, each with a tokenizer of letters, and `lines.txt`."""
    from hf_encoders import save_encoder
    from hf_models import save_decoder, save_model
    from transformers.utils import logging

    logging.disable_progress_bar()
    makers = {"gpt2": save_decoder, "bart": save_model, "bert": partial(save_encoder, head="bare")}
    for name in names:
        makers[name](name, folder=folder / name)
        letters(ends=name != "gpt2").save(str(folder / name / "tokenizer.json"))
    (folder / "lines.txt").write_text("abc\n\nfeed a deaf cab\nno\n" * 9)


def letters(*, ends: bool) -> Tokenizer:
    """A tokenizer with a token per letter; ends: with an EOS token behind each text."""
    tokenizer = Tokenizer(models.WordLevel(LETTERS, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    if ends:
        tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 2)])
    return tokenizer


def add_runs(folder: Path) -> None:
    """Train `runs/copy` and `runs/lm` for one step each, and write `text.txt` and `pairs.tsv`."""
    (folder / "pairs.tsv").write_text("a bad cab\tyes\nno fed\tno\n" * 12)
    (folder / "text.txt").write_text(TEXT)
    text = ["--data", "text.txt", "--context", "16", "--evaluate-batches", "1"]
    for flags in (["--task", "copy", *TINY, *ONE_STEP], ["--task", "lm", *text, *ONE_STEP]):
        subprocess.run(command("train.py", *flags), cwd=folder, env=environment(), capture_output=True, check=True)


def quiet_environment(cache: Path) -> dict[str, str]:
    """The environment of a plain shell, where compiled programs are kept in a folder of their own."""
    return environment() | {"JAX_COMPILATION_CACHE_DIR": str(cache), "RUST_BACKTRACE": "0"}


def module(*arguments: str) -> list[str]:
    """The command line of `python -m jaxformer`."""
    return [sys.executable, "-m", "jaxformer", *arguments]


REPOSITORY_ON_PATH = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}
