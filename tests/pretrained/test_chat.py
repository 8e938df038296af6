"""Chat templates: rendered as transformers renders them, bounded in time and memory, and every error in one line."""

import json
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from jaxformer.errors import InputError
from jaxformer.pretrained import chat
from jaxformer.pretrained.chat import ChatTemplate, chat_template

USER = [{"role": "user", "content": "Hello <b>"}]
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is 2 + 2? é \N{GRINNING FACE}", "name": None},
    {"role": "assistant", "content": "4", "reasoning": "count"},
    {"role": "user", "content": "  And 3 + 3?\n"},
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = """{{- bos_token }}
{%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}{{- tools | tojson(indent=4) }}{% endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
MISTRAL = """{%- set ns = namespace(index=0) %}
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {%- if message.role not in ['user', 'assistant'] %}{{ raise_exception('only user and assistant') }}{% endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' ~ message.content ~ ' [/INST]' }}
    {%- else %}
        {%- generation %}{{- ' ' ~ message.content ~ eos_token }}{% endgeneration %}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if loop.index > 9 %}{% break %}{% endif %}
{%- endfor %}
{{- ns.index }}
"""
JSON = "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson }}{{ dict(a=1) }}{{ messages | length }}"
REASONING = (
    "{% for m in messages %}{{ m.get('reasoning_content', '-') }}{{ m.thinking }}{{ m.name is defined }}{% endfor %}"
)
MACROS = """{% macro turn(role, text) -%}<{{ role }}>{{ text | indent(2) }}{{ varargs }}{%- endmacro %}
{% for message in messages %}{{ turn(message.role, message.content) }}{{ loop.nextitem is defined }}
{% endfor %}{{ "%05d" | format(7) }}{{ "{:>4}".format(3) }}"""
TEMPLATES = {
    "chatml": CHATML,
    "llama-3": LLAMA_3,
    "mistral": MISTRAL,
    "json": JSON,
    "reasoning": REASONING,
    "macros": MACROS,
}


def template(text: str) -> ChatTemplate:
    return ChatTemplate(text, "chat_template.jinja", {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(name: str) -> None:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), bos_token="<s>", eos_token="</s>"
    )
    for messages in (CHAT, USER):
        call = {"chat_template": TEMPLATES[name], "tokenize": False, "add_generation_prompt": True}
        assert template(TEMPLATES[name]).render([messages]) == [fast.apply_chat_template(messages, **call)]


def test_several_conversations_need_one_process() -> None:
    start = time.monotonic()
    texts = template(CHATML).render([[{"role": "user", "content": str(number)}] for number in range(500)])
    assert [text.split("\n")[1] for text in texts] == [f"{number}<|im_end|>" for number in range(500)]
    assert time.monotonic() - start < 10
    assert template("{{ strftime_now('%Y') }}").render([USER])[0] in {str(datetime.now().year + d) for d in (0, 1)}


def test_values_of_other_types_are_written_as_in_transformers() -> None:
    odd: list[dict[str, Any]] = [
        {"role": "user", "content": np.float64(0.5), "image": np.ones(3), "n": (1, np.int8(2))}
    ]
    text = template("{{ messages[0].content }} {{ messages[0].image }} {{ messages[0].n }} \ud800").render([odd])
    assert text == ["0.5 <ndarray> [1, 2] \ud800"]


BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{{ j }}{% endfor %}{% endfor %}",
    "silent loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "list": "{{ [1] * 10**8 }}",
    "lists": "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "text": "{{ 'a' * 10**9 }}",
    "format": "{{ '%9999999999d' | format(1) }}",
    "format width": "{{ '{:9999999999}'.format(1) }}",
    "center": "{{ 'a' | center(9999999999) }}",
    "doubled text": "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "replace": "{% set n = namespace(x='a' * 9999) %}{% for i in range(9) %}{% set n.x = n.x.replace('a', n.x) %}"
    "{% endfor %}",
    "recursion": "{% macro m(x) %}{{ m(x) }}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "power": "{{ 9 ** (9 ** (9 ** 9)) }}",
    "deep equality": "{% set n = namespace(a=[], b=[]) %}{% for i in range(99) %}{% set n.a = [n.a, n.a] %}"
    "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
    "many characters": "{{ 'a' * 30000000 }}",
    "source": "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
}
QUICK = {"text", "format", "doubled text", "recursion", "many characters"}


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BOMBS]
)
def test_time_is_bounded(name: str) -> None:
    """Also in a thread that is not the main one."""
    found, start = [], time.monotonic()

    def ask() -> None:
        with pytest.raises(InputError) as refused:
            template(BOMBS[name]).render([USER])
        found.append(str(refused.value))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert found
    assert len(found[0]) < 300
    assert "\n" not in found[0]
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("name", sorted(QUICK))
def test_memory_is_bounded(name: str) -> None:
    """As a process between the two sees it, which has no other children."""
    program = "import resource, subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], stdout=2)"
    program += "; print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    request = {"template": BOMBS[name], "conversations": [[USER]], "special_tokens": {}, "seconds": 10}
    script = str(Path(chat.__file__).with_name("rendering.py"))
    done = subprocess.run(
        [sys.executable, "-c", program, "-I", "-S", script, *chat.module_folders()],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 2**20  # kilobytes


BROKEN = [
    "{{ 1 / 0 }}",
    "{{ 1 + 'a' }}",
    "{{ raise_exception() }}",
    "{{ raise_exception('a\nb' * 999) }}",
    "{{ strftime_now(5) }}",
    "{% include 'x' %}",
    "{{ undefined | tojson }}",
    "{% break %}",
    "{{ range(10**9) }}",
    "{{ 'é'.encode('ascii') }}",
    "{{ undefined.x }}",
    "{{ undefined() }}",
    "{{ messages[9].content }}",
    "{% for x in 5 %}{% endfor %}",
    "{{ 'a'.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
    "{% set n = namespace(_x=1) %}",
    "{{ messages | nofilter }}",
    "{% if %}",
    "{{ (",
    "{% extends 'a' %}",
    "{{ 'a' | round }}",
    "{{ {} [[]] . x }}",
]


@pytest.mark.parametrize("text", BROKEN)
def test_every_error_is_one_line_that_names_the_file(text: str) -> None:
    with pytest.raises(
        InputError, match=r"^chat_template\.jinja: the chat template does not take these messages"
    ) as refused:
        template(text).render([USER])
    assert len(str(refused.value)) < 300
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("messages", [[], "hello", [1], {"role": "user"}, [["a"]], None])
def test_messages_that_are_none(messages: Any) -> None:
    with pytest.raises(InputError, match="messages must be a list"):
        template(CHATML).render([messages])


def test_a_circle_of_messages_is_refused() -> None:
    message: dict[str, Any] = {"role": "user"}
    message["content"] = [message]
    with pytest.raises(InputError, match="nested too deep"):
        template(CHATML).render([[message]])


def test_a_process_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("/nowhere/python", None, "/bin/false"):
        monkeypatch.setattr("multiprocessing.spawn.get_executable", lambda: executable)  # noqa: B023
        with pytest.raises(InputError, match=r"process|executable"):
            template(CHATML).render([USER])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": 3}, "chat_template=3 must be a template"),
        ({"chat_template": [{"template": "a"}]}, "must be a template, or several with name and template"),
        ({"chat_template": ["a"]}, "must be a template"),
        ({"chat_template": {"default": 1}}, "must be a template"),
        ({"bos_token": {"x": 1}}, 'bos_token={"x": 1} must be a string, or an object with a string under content'),
        ({"eos_token": ["a"]}, "eos_token="),
        ([1], "must hold a JSON object"),
    ],
)
def test_settings_of_another_form_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^tokenizer_config.json: .*{message}"):
        chat_template({"tokenizer_config.json": json.dumps(settings)})


@pytest.mark.parametrize(
    ("files", "text", "file"),
    [
        ({}, None, ""),
        ({"chat_template.jinja": "a"}, "a", "chat_template.jinja"),
        ({"tokenizer_config.json": '{"chat_template": "b"}'}, "b", "tokenizer_config.json"),
        ({"chat_template.jinja": "a", "tokenizer_config.json": '{"chat_template": "b"}'}, "a", "chat_template.jinja"),
        ({"chat_template.jinja": "", "tokenizer_config.json": '{"chat_template": null}'}, None, ""),
        (
            {"tokenizer_config.json": '{"chat_template": [{"name": "rag", "template": "c"}]}'},
            None,
            "",
        ),
        (
            {"tokenizer_config.json": '{"chat_template": [{"name": "default", "template": "c"}]}'},
            "c",
            "tokenizer_config.json",
        ),
        ({"tokenizer_config.json": '{"chat_template": {"default": "d", "rag": "e"}}'}, "d", "tokenizer_config.json"),
    ],
)
def test_which_template_counts(files: dict[str, str], text: str | None, file: str) -> None:
    found = chat_template(files)
    assert (found and found.text) == text
    assert found is None or found.file == file


def test_special_tokens() -> None:
    settings = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": None,
        "sep_token": "",
    }
    found = chat_template(
        {"tokenizer_config.json": json.dumps(settings), "chat_template.jinja": "{{ bos_token }}|{{ pad_token }}"}
    )
    assert found is not None
    assert found.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert found.render([USER]) == ["<s>|"]
