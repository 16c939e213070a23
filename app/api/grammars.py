"""What an answer must look like: the caller's parameter as the engine's grammar.

The engine compiles it and decides whether it can be used; nothing here reads a
schema or an expression. Sizes are checked, so that what does not fit into a message
is refused by name.
"""

import hashlib

from pydantic_core import to_json

from app.api.generation_schemas import GenerationBody
from app.errors import BadRequest
from app.rpc import engine_pb2 as pb

MAX_GRAMMAR_CHARACTERS = 65_536
"""The engine's own limit, of a schema as of all texts of a choice."""


def engine_grammar(body: GenerationBody) -> pb.Grammar | None:
    """The grammar of a request; None: anything goes.

    Raises:
        BadRequest: It is too large.
    """
    if body.choice is not None:
        _check_size(sum(map(len, body.choice)), "choice")
        return pb.Grammar(choice=pb.Choice(texts=body.choice))
    if body.regex is not None:
        return pb.Grammar(regex=body.regex)
    if body.response_format is None or body.response_format.type == "text":
        return None
    if body.response_format.json_schema is None:
        return pb.Grammar(json_object=True)
    schema = _canonical(body.response_format.json_schema.definition)
    _check_size(len(schema), "response_format")
    return pb.Grammar(json_schema=schema)


def grammar_record(body: GenerationBody) -> dict[str, object]:
    """What is kept of a request's grammar: its parameter and kind, and of what the caller wrote the sha256 only."""
    if body.choice is not None:
        return {"choice": {"sha256": _sha256(_canonical(body.choice))}}
    if body.regex is not None:
        return {"regex": {"sha256": _sha256(body.regex)}}
    if body.response_format is None or body.response_format.type == "text":
        return {}
    record: dict[str, object] = {"type": body.response_format.type}
    if body.response_format.json_schema is not None:
        record["sha256"] = _sha256(_canonical(body.response_format.json_schema.definition))
    return {"response_format": record}


def _canonical(value: object) -> str:
    """JSON without spaces, in UTF-8; in the caller's order, as properties are written in the order of the schema."""
    return to_json(value).decode()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_size(num_characters: int, param: str) -> None:
    if num_characters > MAX_GRAMMAR_CHARACTERS:
        raise BadRequest(
            f"'{param}' has {num_characters:,} characters; at most {MAX_GRAMMAR_CHARACTERS:,} are read.", param=param
        )
