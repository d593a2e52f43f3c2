"""Which chat template has a model, and which are known by name?

A chat template is a Jinja text that lays out a conversation as its model was trained to read it.
The ones here are written from the public descriptions of the formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergeconf.checkpoint.vocabulary_files import (
    TOKENIZER_CONFIG,
    Files,
    load_object,
    read_bytes,
    written,
)

TEMPLATE_FILE = "chat_template.jinja"
PROCESSOR_TEMPLATE_FILE = "chat_template.json"

_ALPACA = """\
{%- for message in messages %}
{%- if message['role'] == 'system' %}
{{- message['content'] | trim ~ '\\n\\n' }}
{%- elif message['role'] == 'user' %}
{{- '### Instruction:\\n' ~ message['content'] | trim ~ '\\n\\n' }}
{%- elif message['role'] == 'user_context' %}
{{- '### Input:\\n' ~ message['content'] | trim ~ '\\n\\n' }}
{%- elif message['role'] == 'assistant' %}
{{- '### Response:\\n' ~ message['content'] | trim ~ (eos_token or '') ~ '\\n\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '### Response:\\n' }}
{%- endif %}
"""

_CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

_EXAONE = """\
{%- if messages and messages[0]['role'] != 'system' %}
{{- '[|system|][|endofturn|]\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '[|' ~ message['role'] ~ '|]' ~ message['content'] }}
{{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '[|assistant|]' }}
{%- endif %}
"""

_LLAMA3 = """\
{{- bos_token or '' }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

_MISTRAL = """\
{{- bos_token or '' }}
{%- set ns = namespace(system='', expected='user') %}
{%- for message in messages %}
{%- if message['role'] == 'system' and loop.first %}
{%- set ns.system = message['content'] ~ '\\n\\n' %}
{%- elif message['role'] != ns.expected %}
{{- raise_exception('roles have to take turns: user, assistant, user; one system message first') }}
{%- elif message['role'] == 'user' %}
{{- ' [INST] ' ~ ns.system ~ message['content'] ~ ' [/INST]' }}
{%- set ns.system = '' %}
{%- set ns.expected = 'assistant' %}
{%- else %}
{{- ' ' ~ message['content'] ~ (eos_token or '') }}
{%- set ns.expected = 'user' %}
{%- endif %}
{%- endfor %}
"""

TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
}
"""Templates by the names that mergekit gives them."""


def template_of(files: Files) -> str | None:
    """Return a model's chat template, or None where it has none.

    Raises:
        CheckpointError: a file that may hold it cannot be read.
    """
    if TEMPLATE_FILE in files:
        return read_bytes(files, TEMPLATE_FILE).decode("utf-8", "replace")
    for name in (TOKENIZER_CONFIG, PROCESSOR_TEMPLATE_FILE):
        found = _default(load_object(files, name).get("chat_template"))
        if found:
            return found
    return None


def flaw_of(template: str) -> str | None:
    """Return what is wrong with a template's syntax, or None where it is sound.

    Templates with the tags that transformers adds are not looked at, nor any where Jinja is not
    installed.
    """
    if "generation" in template:
        return None
    try:
        from jinja2 import Environment, TemplateSyntaxError
    except ImportError:
        return None
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {(error.message or 'is no sound template').rstrip('.')}"
    return None


def with_template(files: Files, template: str) -> dict[str, bytes]:
    """Return the files to write so that every version of transformers finds a template.

    It is written to a file of its own, which newer versions read first, and to wherever else the
    model has one.

    Args:
        files: The output's small files.
        template: The template.
    """
    changed = {TEMPLATE_FILE: template.encode()}
    for name in (TOKENIZER_CONFIG, PROCESSOR_TEMPLATE_FILE):
        content = load_object(files, name)
        if content.get("chat_template"):
            content["chat_template"] = _replaced(content["chat_template"], template)
            changed[name] = written(content)
    return changed


def _default(given: Any) -> str | None:
    """Return the template for ordinary conversations of those that a config has."""
    if isinstance(given, list):
        given = {item.get("name"): item.get("template") for item in given if isinstance(item, dict)}
    if isinstance(given, dict):
        given = given.get("default")
    return given if isinstance(given, str) and given else None


def _replaced(given: Any, template: str) -> Any:
    if isinstance(given, dict):
        return {**given, "default": template}
    if isinstance(given, list):
        others = [i for i in given if isinstance(i, dict) and i.get("name") != "default"]
        return [{"name": "default", "template": template}, *others]
    return template
