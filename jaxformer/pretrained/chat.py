"""Conversations as text: the chat template of a checkpoint, rendered in a process of its own."""

import dataclasses
import importlib.util
import json
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer import schema
from jaxformer.errors import InputError, shortened
from jaxformer.extras import require_extra

Messages = Sequence[Mapping[str, Any]]
Dialogue = list[tuple[str, bool]]  # texts that follow each other, and whether each is an answer

SECONDS = 10  # that the template may take for each conversation
AT_ONCE = 500  # conversations that one process renders
TEMPLATE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one key, the usual one first


def is_token(value: Any) -> bool:
    """Return whether a value is a special token: a string, or an object that has it as its content."""
    return isinstance(value.get("content") if isinstance(value, dict) else value, str)


def is_templates(value: Any) -> bool:
    """Return whether a value is a template, or several under their names: an object, or a list of objects."""
    if isinstance(value, list):
        return all(isinstance(each, dict) and all(map(is_text, map(each.get, ("name", "template")))) for each in value)
    return is_text(value) or (isinstance(value, dict) and all(map(is_text, value.values())))


def is_text(value: Any) -> bool:
    """Return whether a value is a string."""
    return isinstance(value, str)


TOKEN = schema.nullable(schema.Field(None, "a string, or an object with a string under content", is_token))
TEMPLATES = schema.nullable(schema.Field(None, "a template, or several with name and template each", is_templates))
SCHEMA = dict.fromkeys(SPECIAL, TOKEN) | {"chat_template": TEMPLATES}


@dataclass(frozen=True)
class ChatTemplate:
    """Format of a model's conversations.

    Attributes:
        text: The template, in the language of Jinja.
        file: The name of the file that it comes from.
        special_tokens: The special tokens that it may write, by name.
    """

    text: str
    file: str
    special_tokens: dict[str, str]

    def render(self, conversations: Sequence[Messages]) -> list[str]:
        """Return the text of each conversation, up to where the model's answer begins, as transformers renders it.

        Templates are rendered in a process of their own, that ends after 10 seconds for each conversation, and has 512
        MB of memory on Linux.

        Raises:
            InputError: The messages are none, or the template cannot be rendered with them.
            MissingPackageError: Jinja is not installed.
        """
        found = self.attempt([(messages, True) for messages in conversations])
        for each in found:
            if isinstance(each, InputError):
                raise each
        return [each for each in found if isinstance(each, str)]

    def attempt(self, conversations: Sequence[tuple[Messages, bool]]) -> list[str | InputError]:
        """Return the text of each conversation, or why it has none.

        Args:
            conversations: Messages, and whether the beginning of an answer follows them.

        Raises:
            InputError: Messages are none, or the process that renders the template ended.
            MissingPackageError: Jinja is not installed.
        """
        require_extra("chat", "a chat template")
        problem = f"{self.file}: the chat template does not take these messages: "
        request = {
            "template": self.text,
            "conversations": [as_json(messages) for messages, _ in conversations],
            "prompts": [prompt for _, prompt in conversations],
            "special_tokens": self.special_tokens,
            "seconds": SECONDS,
        }
        try:
            answers = in_process(json.dumps(request), SECONDS * (len(conversations) + 1))["answers"]
        except (ValueError, RecursionError) as error:
            raise InputError(f"{problem}{shortened(str(error), 200)}") from None
        return [
            answer["text"] if "text" in answer else InputError(f"{problem}{shortened(answer['error'], 200)}")
            for answer in answers
        ]

    def dialogues(self, conversations: Sequence[Messages]) -> list[list[Dialogue] | InputError]:
        """Return the texts that teach a model the assistant's turns of each conversation, or why there are none.

        A conversation is one text, of which the turns of the assistant are answers. Where the template writes earlier
        turns otherwise than later ones, as some do without their reasoning, it is a text for each of these turns.

        Args:
            conversations: Messages each, of which some have the role "assistant".

        Raises:
            InputError: The process that renders the template ended.
        """
        turns = [assistant_turns(messages) for messages in conversations]
        tried = [
            (messages[: turn + behind], not behind)
            for messages, found in zip(conversations, turns, strict=True)
            for turn in found
            for behind in (0, 1)
        ]
        texts: list[str | InputError] = []
        for first in range(0, len(tried), AT_ONCE):
            texts += self.attempt(tried[first : first + AT_ONCE])
        parts = iter(texts)
        return [dialogues_of([(next(parts), next(parts)) for _ in found]) for found in turns]


def chat_template(files: Mapping[str, str]) -> ChatTemplate | None:
    """Return the template among the files of a tokenizer, None where there is none. Raises InputError for odd files."""
    with schema.located(CONFIG):
        settings = schema.read(schema.parse_json(files.get(CONFIG, "{}")), SCHEMA)
    tokens = {name: settings[name] for name in SPECIAL if settings[name]}
    special_tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    if TEMPLATE in files:
        return ChatTemplate(files[TEMPLATE], TEMPLATE, special_tokens) if files[TEMPLATE] else None
    template = settings["chat_template"]
    if isinstance(template, list):
        template = {each["name"]: each["template"] for each in template}
    if isinstance(template, dict):
        template = template.get("default")
    return ChatTemplate(template, CONFIG, special_tokens) if template else None


def assistant_turns(messages: Messages) -> list[int]:
    """Return the places of the assistant's messages that answer something."""
    return [place for place, message in enumerate(messages) if place and message.get("role") == "assistant"]


def dialogues_of(turns: Sequence[tuple[str | InputError, str | InputError]]) -> list[Dialogue] | InputError:
    """Return the dialogues of a conversation.

    Args:
        turns: The text up to each answer of the assistant, and the text with it.
    """
    if not turns:
        return InputError('no message of the role "assistant" answers another one')
    for turn in turns:
        for text in turn:
            if isinstance(text, InputError):
                return text
    written = [(str(before), str(behind)) for before, behind in turns]
    if not all(behind.startswith(before) and behind != before for before, behind in written):
        return InputError("the chat template does not begin an answer as it asks for one")
    if not all(later.startswith(earlier) for (_, earlier), (later, _) in pairwise(written)):
        return [[(before, False), (behind[len(before) :], True)] for before, behind in written]
    whole: Dialogue = []
    end = 0
    for before, behind in written:
        whole += [(before[end:], False), (behind[len(before) :], True)]
        end = len(behind)
    return [whole]


def in_process(request: str, seconds: float) -> dict[str, Any]:
    """Return the answer of `rendering` to a request.

    Raises:
        ValueError: There is none.
    """
    executable = spawn.get_executable()  # an embedded Python can say what is to be used
    script = str(Path(__file__).with_name("rendering.py"))
    if not executable:
        raise ValueError("Python's executable, which renders templates, is not known: see multiprocessing")
    try:
        done = subprocess.run(
            [executable, "-I", "-S", script, *module_folders()],
            input=request.encode("utf-8", "surrogatepass"),
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {seconds} seconds") from None
    except OSError as error:
        raise ValueError(f"the process that renders it cannot be started ({error.strerror})") from None
    if done.returncode == -getattr(signal, "SIGALRM", 0) != 0:
        raise ValueError(f"it takes more than {SECONDS} seconds")
    if done.returncode:
        raise ValueError(f"the process that renders it ended with status {done.returncode}")
    return schema.parse_json(done.stdout.decode("utf-8", "surrogatepass"))


def module_folders() -> list[str]:
    """Return the folders that Jinja and what it needs are imported from."""
    found = (importlib.util.find_spec(name) for name in ("jinja2", "markupsafe"))
    return sorted({str(Path(spec.origin).parents[1]) for spec in found if spec and spec.origin})


def as_json(messages: Messages) -> list[dict[str, Any]]:
    """Return messages as transformers passes them to a template.

    Keys of value None are left out, other names of the reasoning stand beside the usual one, and there is nothing but
    texts, numbers, lists and dictionaries: of anything else the name of its type.
    """
    several = isinstance(messages, Sequence) and len(messages) > 0
    if not several or not all(isinstance(message, Mapping) for message in messages):
        raise InputError('messages must be a list of at least one {"role": "user", "content": "Hello"}')
    converted = []
    try:
        for message in messages:
            plain = {str(key): as_plain(value) for key, value in message.items() if value is not None}
            reasoning = next((plain[key] for key in REASONING if plain.get(key) is not None), None)
            if reasoning is not None:
                plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
            converted.append(plain)
    except RecursionError:
        raise InputError("the messages are nested too deep") from None
    return converted


def as_plain(value: Any) -> Any:
    """Return a value in types that JSON has."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return f"<{type(value).__name__}>"
