"""Values of expressions about paths, worked out from the syntax tree: texts, `+`, f-strings, os.path and pathlib."""

import ast
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Unknown:
    """A value that only running the code would tell."""

    reason: str


@dataclass(frozen=True)
class Dotted:
    """Something of another module, by its full name: `os.path.join`."""

    name: str


@dataclass(frozen=True)
class Bound:
    """What a name or an attribute holds, and the line that bound it."""

    value: object
    """str, Path, tuple, None, a number, Dotted or Unknown."""
    line: int


@dataclass
class Scope:
    """Names in reach of a statement."""

    names: dict[str, Bound]
    outer: "Scope | None" = None
    receiver: str | None = None
    """The name of the object whose attributes are the settings."""
    attributes: dict[str, Bound] = field(default_factory=dict)

    def find(self, name: str) -> Bound | None:
        """The binding of a name, from the inside out."""
        found = self.names.get(name)
        return self.outer.find(name) if found is None and self.outer else found

    def is_receiver(self, node: ast.expr) -> bool:
        """Whether an expression is the object with the settings."""
        return isinstance(node, ast.Name) and node.id == self.receiver


class _NotFollowedError(Exception):
    """Ends the work on one expression; the text is the reason."""


def value_of(node: ast.expr, scope: Scope) -> object:
    """What the expression is, as running it would give; Unknown with the reason where that cannot be told."""
    try:
        return _value(node, scope)
    except _NotFollowedError as error:
        return Unknown(str(error))
    except RecursionError:
        return Unknown("the expression is too deep")


def _value(node: ast.expr, scope: Scope) -> object:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return _name(node, scope)
    if isinstance(node, ast.Attribute):
        return _attribute(node, scope)
    if isinstance(node, ast.BinOp):
        return _operation(node, scope)
    if isinstance(node, ast.JoinedStr):
        return "".join(_piece(one, scope) for one in node.values)
    if isinstance(node, ast.Call):
        return _call(node, scope)
    if isinstance(node, ast.Tuple):
        return tuple(_value(one, scope) for one in node.elts)
    if isinstance(node, ast.Subscript):
        return _member(node, scope)
    raise _NotFollowedError(f"`{_source(node)}` is not followed")


def _name(node: ast.Name, scope: Scope) -> object:
    found = scope.find(node.id)
    if found is None:
        if node.id == "str":
            return Dotted("str")
        raise _NotFollowedError(f"{node.id} is not assigned before")
    return _known(node.id, found)


def _known(name: str, bound: Bound) -> object:
    if isinstance(bound.value, Unknown):
        raise _NotFollowedError(f"it needs {name} of line {bound.line}: {bound.value.reason}")
    return bound.value


def _attribute(node: ast.Attribute, scope: Scope) -> object:
    if scope.is_receiver(node.value):
        if node.attr not in scope.attributes:
            raise _NotFollowedError(f"{scope.receiver}.{node.attr} is not assigned before")
        return _known(f"{scope.receiver}.{node.attr}", scope.attributes[node.attr])
    base = _value(node.value, scope)
    if isinstance(base, Dotted):
        name = f"{base.name}.{node.attr}"
        return os.sep if name in ("os.sep", "os.path.sep") else Dotted(name)
    if isinstance(base, Path) and node.attr in ("parent", "name", "stem", "suffix"):
        return getattr(base, node.attr)
    if isinstance(base, Path) and node.attr == "parents":
        return tuple(base.parents)
    raise _NotFollowedError(f"`{_source(node)}` is not followed")


def _operation(node: ast.BinOp, scope: Scope) -> object:
    left, right = _value(node.left, scope), _value(node.right, scope)
    if isinstance(node.op, ast.Add) and isinstance(left, str) and isinstance(right, str):
        return left + right
    if isinstance(node.op, ast.Div) and isinstance(left, Path) and isinstance(right, (str, Path)):
        return left / right
    if isinstance(node.op, ast.Div) and isinstance(left, str) and isinstance(right, Path):
        return left / right
    raise _NotFollowedError(f"`{_source(node)}` is not followed")


def _piece(node: ast.expr, scope: Scope) -> str:
    """A piece of an f-string."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.FormattedValue) and node.format_spec is None and node.conversion in (-1, ord("s")):
        value = _value(node.value, scope)
        if isinstance(value, (str, Path, int)):
            return str(value)
    raise _NotFollowedError(f"`{_source(node)}` is not followed")


def _member(node: ast.Subscript, scope: Scope) -> object:
    values, index = _value(node.value, scope), _value(node.slice, scope)
    if isinstance(values, tuple) and isinstance(index, int) and 0 <= index < len(values):
        return values[index]
    raise _NotFollowedError(f"`{_source(node)}` is not followed")


def _call(node: ast.Call, scope: Scope) -> object:
    source = _source(node)
    if node.keywords or any(isinstance(one, ast.Starred) for one in node.args):
        raise _NotFollowedError(f"`{source}` is not followed")
    function = _function(node.func, scope, source)
    values = [_value(one, scope) for one in node.args]
    if not all(isinstance(one, (str, Path)) for one in values):
        raise _NotFollowedError(f"`{source}` takes something other than texts and paths")
    try:
        return function(*values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _NotFollowedError(f"`{source}` fails: {error}") from None


def _function(node: ast.expr, scope: Scope, source: str) -> Callable[..., object]:
    if isinstance(node, ast.Attribute) and not scope.is_receiver(node.value):
        base = _value(node.value, scope)
        if isinstance(base, Path) and node.attr in _METHODS:
            method = _METHODS[node.attr]
            return lambda *values: method(base, *values)
    found = _value(node, scope)
    if isinstance(found, Dotted) and found.name in _FUNCTIONS:
        return _FUNCTIONS[found.name]
    raise _NotFollowedError(f"`{source}` is not run")


def _source(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= 60 else text[:57] + "..."


def _from_root(path: str | Path) -> str | Path:
    """The path itself; refused where the working folder would decide."""
    if not os.path.isabs(path):
        raise ValueError(f"it depends on the working folder: {str(path)!r} is relative")
    return path


def _on_disk(function: Callable[[str | Path], object]) -> Callable[[str | Path], object]:
    return lambda path: function(_from_root(path))


_FUNCTIONS: Mapping[str, Callable[..., object]] = {
    "str": str,
    "os.fspath": os.fspath,
    "os.path.abspath": _on_disk(os.path.abspath),
    "os.path.dirname": os.path.dirname,
    "os.path.basename": os.path.basename,
    "os.path.expanduser": os.path.expanduser,
    "os.path.join": os.path.join,
    "os.path.normpath": os.path.normpath,
    "os.path.realpath": _on_disk(os.path.realpath),
    "pathlib.Path": Path,
    "pathlib.Path.home": Path.home,
    "pathlib.PosixPath": Path,
    "pathlib.PurePath": Path,
}
_METHODS: Mapping[str, Callable[..., object]] = {
    "absolute": _on_disk(lambda path: Path(path).absolute()),
    "as_posix": Path.as_posix,
    "expanduser": Path.expanduser,
    "joinpath": Path.joinpath,
    "resolve": _on_disk(lambda path: Path(path).resolve()),
}
