"""How the program was called: hints and usage lines name commands as the user can type them."""

import shlex
import shutil
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
SCRIPTS = ("train", "generate")  # commands with a script at the root of the repository


def command_line(command: str) -> str:
    """Return what to type to run a command: "jaxformer train", "python -m jaxformer train" or "python train.py".

    Args:
        command: The name of the command, such as "train".
    """
    script, python = Path(sys.argv[0]), shlex.quote(sys.orig_argv[0])
    started = script.resolve()
    is_script = started in [PACKAGE.parent / f"{name}.py" for name in SCRIPTS]
    if is_script and command in SCRIPTS:
        return f"{python} {shlex.quote(str(script.with_name(f'{command}.py')))}"
    if is_script or started == PACKAGE / "__main__.py":
        return f"{python} -m jaxformer {command}"
    on_path = script.name != "jaxformer" or shutil.which("jaxformer") == str(script)
    return f"{'jaxformer' if on_path else shlex.quote(str(script))} {command}"
