"""Chat templates as models bring them: Jinja in a sandbox, with what Hugging Face's renderer gives them.

A template is a program by whoever published the model and its data is whatever a caller
sent, so neither reaches Python: what goes wrong while it runs is the messages' fault,
what does not parse is the model's.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from app.errors import BadRequest, ModelFormatError

PLAIN = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}assistant:"
"""Used where a model has no template of its own: `role: content`, a blank line, `assistant:`."""


class _GenerationBlock(Extension):
    """`{% generation %}` marks what the assistant said, for training; here it is that text and no more."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # a set is only its default

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Jinja's hook."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def compile_template(source: str) -> Template:
    """Ready to be rendered.

    Raises:
        ModelFormatError: it is no template.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, LoopControlExtension]
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now(UTC).strftime(form)
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except (TemplateError, RecursionError) as error:
        raise ModelFormatError(f"chat template is not valid: {error}") from None


def render(template: Template, messages: Sequence[Mapping[str, str]], special_tokens: Mapping[str, str]) -> str:
    """A conversation as text, up to where the assistant begins.

    Args:
        template: from `compile_template`.
        messages: each with `role` and `content`.
        special_tokens: `bos_token` and the like, by name.

    Raises:
        BadRequest: the template refuses the messages, for example their order.
    """
    try:
        return template.render(
            **special_tokens, messages=list(messages), tools=None, documents=None, add_generation_prompt=True
        )
    except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise BadRequest(f"The model's chat template refuses these messages: {error}", param="messages") from None


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None, **more: Any) -> str:  # noqa: ANN401 - of json.dumps
    """Plain JSON: Jinja's own is made for HTML and would write `<` as an escape."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **more)
