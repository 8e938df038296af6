"""What a chat model is told: messages, written as its template wants them."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxformer.errors import InputError

SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def chat_template(files: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
    """The template among the files of a tokenizer, and the special tokens that it may write; None: there is none."""
    settings = json.loads(files.get("tokenizer_config.json", "{}"))
    template = files.get("chat_template.jinja", settings.get("chat_template"))
    if isinstance(template, list):  # several, each for a purpose
        template = {each["name"]: each["template"] for each in template}.get("default")
    if not template:
        return None
    said = {name: settings[name] for name in SPECIAL if settings.get(name)}
    return template, {name: token["content"] if isinstance(token, dict) else token for name, token in said.items()}


def render(template: str, special: Mapping[str, str], messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of messages {"role": "user" | "assistant" | "system", "content": text}, up to where the answer begins.

    Templates run in a sandbox, as in transformers. Raises InputError where the template refuses the messages.
    """

    def refuse(message: str) -> NoReturn:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    tools = {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    context = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True, **special}
    try:
        return environment.from_string(template, globals=tools).render(context)
    except jinja2.exceptions.TemplateError as error:
        raise InputError(f"the chat template does not take these messages: {error}") from None
