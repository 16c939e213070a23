"""What a call may hold and what an object looks like, read from the typed classes of the installed client library.

The library is generated from Stripe's own description of the API version that it pins, so its annotations say which
parameters and fields there are, which of them must be given, and of what type. They say nothing about lengths, ranges
or behaviour; handlers add those. Annotations are read as syntax, never evaluated: a class is parsed when its first
call arrives, and nothing of the library but its table of object classes is imported.

The library leaves enumerations open (`Literal["month", "year"] | str`) so that an old client survives a new value. The
API itself refuses a value that it does not know, so here they are closed, in both directions.
"""

import ast
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from stripe._object_classes import OBJECT_CLASSES, V2_OBJECT_CLASSES

Name: TypeAlias = Literal["string", "integer", "boolean", "number", "decimal", "null", "any"]


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value without parts; a `decimal` travels as text, and `any` is any JSON."""

    name: Name


@dataclass(frozen=True, slots=True)
class Choice:
    """One of so many literals; the empty text stands for "unset this"."""

    values: tuple[str | bool | int, ...]


@dataclass(frozen=True, slots=True)
class Array:
    """A list."""

    item: "Type"


@dataclass(frozen=True, slots=True)
class Map:
    """A dictionary whose keys the caller chooses, such as `metadata`."""

    value: "Type"


@dataclass(frozen=True, slots=True)
class Reference:
    """Another object, by its kind; where it is expandable, its id stands for it."""

    kind: str
    is_expandable: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a list inside an object."""

    item: "Type"


@dataclass(frozen=True, slots=True)
class Union:
    """Any of so many types."""

    options: tuple["Type", ...]


@dataclass(frozen=True, slots=True)
class Field:
    """A named part. One that is not required may be absent from a call, and null in an object."""

    type: "Type"
    is_required: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A dictionary with named parts and no others."""

    fields: Mapping[str, Field]


Type: TypeAlias = Scalar | Choice | Array | Map | Reference | Listing | Union | Record
Resolve: TypeAlias = Callable[[str], Type]


@dataclass(frozen=True, slots=True)
class Call:
    """One operation of the API.

    Attributes:
        parameters: Of the query or the body.
        returns: Kind of the object that it answers with, or of the list's items; None where the library has no class.
        is_list: It answers with a list.
    """

    parameters: Record
    returns: str | None
    is_list: bool


STRING = Scalar("string")
ANY = Scalar("any")
NULL = Scalar("null")
NOTHING = Record({})
_SCALARS: Mapping[str, Type] = {
    "str": STRING,
    "int": Scalar("integer"),
    "bool": Scalar("boolean"),
    "float": Scalar("number"),
    "Decimal": Scalar("decimal"),
    "Any": ANY,
}
_ROOT = Path(importlib.util.find_spec("stripe").submodule_search_locations[0])  # type: ignore[union-attr,index]
_REQUEST = re.compile(r'"(get|post|delete)",\s+"(/v[12]/[^"]+)"')
_KINDS = {place: kind for kind, place in {**OBJECT_CLASSES, **V2_OBJECT_CLASSES}.items()}
# Old names of a kind stand beside the present one; the class itself says which one it is.
_KINDS[OBJECT_CLASSES["file"]] = "file"


def kinds() -> frozenset[str]:
    """Every kind of object that the library knows under `/v1`."""
    return frozenset(OBJECT_CLASSES)


def has(verb: str, path: str) -> bool:
    """Whether the library has an operation of this verb (upper case) and path."""
    return (verb, path) in _services()


@cache
def call(verb: str, path: str) -> Call:
    """The operation that the library sends by this verb (upper case) to this path.

    Raises:
        KeyError: The library has no such operation.
    """
    for file in _services()[verb, path]:
        module = _Module(file)
        for method in _methods(module):
            if _sends(method, verb.lower(), path):
                return _read_call(module, method)
    raise KeyError((verb, path))


@cache
def object_type(kind: str) -> Record:
    """The fields of a kind of object.

    Raises:
        KeyError: The library has no such kind.
    """
    place = OBJECT_CLASSES.get(kind) or V2_OBJECT_CLASSES[kind]
    return class_type(*place)


@cache
def class_type(module_name: str, class_name: str) -> Record:
    """The fields of one class of the library.

    Raises:
        KeyError: There is no such class.
    """
    module = _Module(_file_of(module_name))
    return _read_resource(module.classes[class_name], module.reference)


@cache
def thin_event_type(name: str) -> Record:
    """The fields of a thin event of this type, such as `v1.billing.meter.no_meter_found`, with its data.

    Raises:
        KeyError: The library has no such type.
    """
    words = re.split(r"[._]", name)
    module = f"stripe.events._{'_'.join(words)}_event"
    if not _file_of(module).exists():
        raise KeyError(name)
    own = class_type(module, f"{''.join(word.capitalize() for word in words)}Event")
    return Record({**object_type("v2.core.event").fields, **own.fields})


class _Module:
    """A parsed file: its classes, and where the names in it come from."""

    def __init__(self, file: Path) -> None:
        tree = ast.parse(file.read_text())
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.origins = {
            alias.asname or alias.name: (node.module or "", alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        parts = file.relative_to(_ROOT).with_suffix("").parts
        self.name = ".".join(("stripe", *parts))

    def reference(self, name: str) -> Type:
        """A class of another file, or this one, that is an object of its own; anything where it is none."""
        kind = _KINDS.get(self.origins.get(name, (self.name, name)))
        return Reference(kind) if kind is not None else ANY


@cache
def _services() -> dict[tuple[str, str], list[Path]]:
    found: dict[tuple[str, str], list[Path]] = {}
    for file in sorted(_ROOT.rglob("_*_service.py")):
        for verb, path in set(_REQUEST.findall(file.read_text())):
            found.setdefault((verb.upper(), path), []).append(file)
    return found


def _file_of(module_name: str) -> Path:
    return _ROOT.joinpath(*module_name.split(".")[1:]).with_suffix(".py")


def _methods(module: _Module) -> Iterable[ast.FunctionDef]:
    return (node for service in module.classes.values() for node in service.body if isinstance(node, ast.FunctionDef))


def _sends(method: ast.FunctionDef, verb: str, path: str) -> bool:
    literals = {node.value for node in ast.walk(method) if isinstance(node, ast.Constant)}
    return verb in literals and path in literals


def _read_call(module: _Module, method: ast.FunctionDef) -> Call:
    parameters = NOTHING
    annotated = [argument.annotation for argument in method.args.args if argument.arg == "params"]
    if annotated and annotated[0] is not None:
        name = re.findall(r"\w+Params", ast.unparse(annotated[0]))[0]
        parameters = _read_parameters(*module.origins[name])
    returned = ast.unparse(method.returns) if method.returns is not None else ""
    kinds = [module.reference(name) for name in re.findall(r"\w+", returned)]
    named = [found.kind for found in kinds if isinstance(found, Reference) and found.kind != "list"]
    return Call(parameters, named[-1] if named else None, "ListObject" in returned)


def _read_parameters(module_name: str, class_name: str) -> Record:
    module = _Module(_file_of(module_name))

    def resolve(name: str) -> Type:
        if name not in module.classes:
            return _read_parameters(*module.origins[name])
        return Record(_fields(module.classes[name], resolve, "NotRequired"))

    read = resolve(class_name)
    assert isinstance(read, Record)
    return read


def _read_resource(node: ast.ClassDef, outer: Resolve) -> Record:
    inner = {child.name: child for child in node.body if isinstance(child, ast.ClassDef)}

    def resolve(name: str) -> Type:
        return _read_resource(inner[name], resolve) if name in inner else outer(name)

    return Record(_fields(node, resolve, "Optional"))


def _fields(node: ast.ClassDef, resolve: Resolve, optional: str) -> dict[str, Field]:
    found = {}
    for child in node.body:
        if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            name, annotation = child.target.id, child.annotation
            if name.isupper() or name.startswith("_"):
                continue
            found[name] = Field(_read(annotation, resolve), not ast.unparse(annotation).startswith(optional))
    return found


def _read(node: ast.expr, resolve: Resolve) -> Type:
    """The type that an annotation names."""
    if isinstance(node, ast.Constant):
        return NULL if node.value is None else _read(ast.parse(str(node.value), mode="eval").body, resolve)
    if isinstance(node, ast.Name):
        return _SCALARS[node.id] if node.id in _SCALARS else resolve(node.id)
    if isinstance(node, ast.BinOp):
        return _union([_read(node.left, resolve), _read(node.right, resolve)])
    assert isinstance(node, ast.Subscript), ast.unparse(node)
    return _read_subscript(ast.unparse(node.value), node.slice, resolve)


def _read_subscript(head: str, inner: ast.expr, resolve: Resolve) -> Type:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if head == "Literal":
        return Choice(tuple(ast.literal_eval(part) for part in parts))
    # `Dict[str, X]` names its keys' type first; every other one of these has one argument, or is a union.
    read = [_read(part, resolve) for part in parts]
    match head:
        case "NotRequired" | "Required":
            return read[0]
        case "Optional":
            return _union([read[0], NULL])
        case "Union":
            return _union(read)
        case "List":
            return Array(read[0])
        case "ListObject":
            return Listing(read[0])
        case "Dict" | "UntypedStripeObject":
            return Map(read[-1])
        case "ExpandableField":
            return _expandable(read[0])
    raise TypeError(head)


def _expandable(type: Type) -> Type:
    options = type.options if isinstance(type, Union) else (type,)
    return _union(
        Reference(option.kind, is_expandable=True) if isinstance(option, Reference) else option for option in options
    )


def _union(options: Iterable[Type]) -> Type:
    flat: list[Type] = []
    for option in options:
        flat += option.options if isinstance(option, Union) else [option]
    literals = [value for option in flat if isinstance(option, Choice) for value in option.values]
    rest: list[Type] = []
    for option in flat:
        is_open_end = option == STRING and any(literals)
        if not isinstance(option, Choice) and not is_open_end and option not in rest:
            rest.append(option)
    merged = [Choice(tuple(dict.fromkeys(literals))), *rest] if literals else rest
    return merged[0] if len(merged) == 1 else Union(tuple(merged))
