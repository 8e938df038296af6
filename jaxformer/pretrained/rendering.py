"""Renders chat templates in a process of its own: this file is run as a script, and imports nothing of the package.

Templates are code from outside. Jinja's sandbox keeps them away from Python, but not from loops without end or texts of
gigabytes: only a process can be stopped at any moment and be given so much memory and no more.

The arguments are folders to import from. Standard input is a request: a template, conversations, special tokens and the
seconds that a conversation may take. Standard output is the answer: texts, or an error.
"""

import json
import signal
import sys
from datetime import datetime
from functools import partial
from typing import Any, NoReturn

MEMORY = 512 * 2**20
MAX_CHARACTERS = 2**24

sys.path += sys.argv[1:]

from jinja2 import nodes  # noqa: E402
from jinja2.exceptions import SecurityError, TemplateError  # noqa: E402
from jinja2.ext import Extension  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402
from jinja2.utils import Namespace  # noqa: E402


class Generation(Extension):
    """The tag `generation`, which marks for training what the assistant wrote."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        """Return what is inside of the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("inside"), [], [], body).set_lineno(line)

    def inside(self, caller: Any) -> Any:
        """Return the text inside of the tag."""
        return caller()


class SafeNamespace(Namespace):
    """A namespace without names of Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # without names, so that all names are free for values
        values = dict(*args[1:], **kwargs)
        for name in values:
            check_name(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


class Dictionary:
    """The function `dict`, of which templates must not see the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        """Return a dictionary."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict:
        """Return a dictionary with the same value under all keys."""
        return dict.fromkeys(*args, **kwargs)


def check_name(name: Any) -> None:
    """Refuse to keep a value under a name that begins with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the name {name!r}")


def refuse(message: str) -> NoReturn:
    """Refuse messages, as the template says."""
    raise TemplateError(message)


def now(format: str) -> str:  # noqa: A002
    """Return the time."""
    return datetime.now().strftime(format)


def to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return a value as JSON; Jinja's own filter escapes it for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> ImmutableSandboxedEnvironment:
    """Return a sandbox with the filters, functions and tags that templates find in transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = to_json
    functions: dict[str, Any] = {
        "raise_exception": refuse,
        "strftime_now": now,
        "dict": Dictionary(),
        "namespace": SafeNamespace,
    }
    environment.globals.update(functions)
    return environment


def render(
    template: str, conversations: list[Any], prompts: list[bool], special_tokens: dict[str, str], seconds: int
) -> list[dict[str, str]]:
    """Return for each conversation its text, or the error that keeps it from having one; see `ChatTemplate.attempt`."""
    alarm = getattr(signal, "alarm", lambda seconds: None)  # Windows has none

    def attempt(make: Any) -> Any:
        alarm(seconds)  # nothing handles the signal: it ends the process, whatever that is doing
        try:
            return make()
        except MemoryError:
            return {"error": f"it needs more than {MEMORY // 2**20} MB of memory"}
        except Exception as error:
            name = "" if type(error) is TemplateError else f"{type(error).__name__}: "
            return {"error": f"{name}{str(error)[:400]}"}

    compiled = attempt(lambda: make_environment().from_string(template))
    if isinstance(compiled, dict):
        return [compiled] * len(conversations)

    def write(messages: Any, prompt: bool) -> dict[str, str]:
        text = compiled.render(
            messages=messages, tools=None, documents=None, add_generation_prompt=prompt, **special_tokens
        )
        if len(text) > MAX_CHARACTERS:
            return {"error": f"the text has {len(text):,} characters, at most {MAX_CHARACTERS:,} are supported"}
        return {"text": text}

    return [attempt(partial(write, *each)) for each in zip(conversations, prompts, strict=True)]


def limit() -> None:
    """Bound the memory of this process, and forbid it to write files, where the system has such limits."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):  # macOS does not limit the address space
            continue


if __name__ == "__main__":
    limit()
    answer = {"answers": render(**json.loads(sys.stdin.buffer.read().decode("utf-8", "surrogatepass")))}
    sys.stdout.buffer.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "surrogatepass"))
