"""GET /docs: the interface as one readable page, rendered from the OpenAPI document.

No script and no third-party host: the page works offline and under a strict content
security policy. Machines read /openapi.json.
"""

import re
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from pydantic_core import to_json

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CODE = re.compile("`([^`]+)`")
_BRANCHES = ("anyOf", "oneOf", "allOf")

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> Response:
    """The page; the document does not change while the process runs."""
    page = _template().render(document=request.app.openapi(), fields=_fields, examples=_examples)
    return HTMLResponse(page, headers={"content-security-policy": _POLICY, "x-content-type-options": "nosniff"})


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("app.api"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["marked"] = _marked
    return environment.get_template("docs.html")


def _marked(text: str) -> Markup:
    """Text of the document as HTML: its only markup is code between backticks."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped above


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> list[dict[str, str]]:
    """What can be sent: header, path and query parameters, then the fields of the body."""
    rows = [
        {
            "name": parameter["name"],
            "place": parameter["in"],
            "type": _type(parameter["schema"]),
            "required": "required" if parameter.get("required") else "",
            "description": parameter.get("description", ""),
        }
        for parameter in operation.get("parameters", ())
    ]
    schema = _body_schema(document, operation)
    for name, field in (schema or {}).get("properties", {}).items():
        rows.append(
            {
                "name": name,
                "place": "body",
                "type": _type(field),
                "required": "required" if name in schema.get("required", ()) else "",
                "description": field.get("description", ""),
            }
        )
    return rows


def _examples(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    """Examples of the request's body, or one of the answer of a GET."""
    schema = _body_schema(document, operation)
    if schema:
        return [_pretty(example) for example in schema["examples"]]
    content = operation["responses"]["200"]["content"]
    shown = next(iter(content.values())).get("example", "")
    return [shown if isinstance(shown, str) else _pretty(shown)]


def _body_schema(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    body = operation.get("requestBody")
    if body is None:
        return {}
    name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema: dict[str, Any] = document["components"]["schemas"][name]
    return schema


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words: ``string or list of string``."""
    for branch in _BRANCHES:
        if branch in schema:
            names = dict.fromkeys(_type(part) for part in schema[branch] if part.get("type") != "null")
            return " or ".join(names)
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", schema.get("const", "any")))


def _pretty(value: object) -> str:
    return to_json(value, indent=2).decode()
