"""Reads an old `local.py` by its syntax tree; nothing of it is run.

Two forms are known: `class EnvironmentSettings` whose `__init__` sets `self.NAME` (reference: `lib/train/admin/local.py` of
the tracking systems), and `def local_env_settings()` that sets `settings.NAME` and returns it (the evaluation side of the
same systems). What follows from texts alone is worked out (`penstock.settings.pathtext`); all else is reported, never guessed.
"""

import ast
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from penstock.errors import SourceNotFound, UsageError
from penstock.settings.keys import FILE_NAME, KEYS, nearest
from penstock.settings.pathtext import Bound, Dotted, Scope, Unknown, value_of

CLASS = "EnvironmentSettings"
FUNCTION = "local_env_settings"

OTHER_NAMES: Mapping[str, str] = {
    "lasot_path": "lasot_dir",
    "trackingnet_path": "trackingnet_dir",
    "lasot_lmdb_path": "lasot_lmdb_dir",
    "got10k_lmdb_path": "got10k_lmdb_dir",
}
"""Names of the evaluation side that mean the same folder as a key."""
_OTHER_MEANING: Mapping[str, str] = {
    "got10k_path": "it is the folder above train and val: set got10k_dir and got10k_val_dir to those two",
    "network_path": "it holds trained trackers; pretrained_networks holds the weights that training starts from",
}
_IGNORED = (ast.Pass, ast.Assert, ast.Global, ast.Nonlocal)
_NAMED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)
"""Nodes that bind the name they carry."""


@dataclass(frozen=True)
class Unread:
    """A statement that was not taken over."""

    line: int
    """From 1."""
    source: str
    """Its first line, as it stands in the file."""
    reason: str


@dataclass(frozen=True)
class ImportedLocal:
    """What a `local.py` says."""

    path: Path
    values: Mapping[str, str]
    """Key -> path as text, in the order of `KEYS`; never empty texts. What running the file would give."""
    problems: tuple[Unread, ...]
    """What was not taken over, by line: a value that only running the file would tell, a name that is no setting."""
    notes: tuple[str, ...]
    """What was taken over and may mean something else now: relative paths."""

    def as_dict(self) -> dict[str, object]:
        """Plain data: path, values, problems (line, source, reason), notes."""
        return {
            "path": str(self.path),
            "values": dict(self.values),
            "problems": [vars(one).copy() for one in self.problems],
            "notes": list(self.notes),
        }


def import_local_py(path: Path | str) -> ImportedLocal:
    """Reads the paths that an old `local.py` sets.

    Followed are assignments in order: texts, `+`, f-strings without a format, `os.path` and `pathlib` calls that need
    nothing but their arguments (and the home folder, for `~`), names and attributes assigned before, `__file__`. A branch, a
    loop, a call of anything else, the environment and other modules are not: what depends on them is a problem with its
    line. Empty texts and None mean "not set", also under names that are no settings.

    Raises:
        SourceNotFound: there is no such file.
        UsageError: it cannot be read, is not Python, or holds neither form.
    """
    path = Path(path)
    tree, lines = _parsed(path)
    reader = _Reader(path, lines)
    reader.module(tree)
    found = [one for one in tree.body if getattr(one, "name", None) in (CLASS, FUNCTION)]
    last = {one.name: one for one in found if isinstance(one, (ast.ClassDef, ast.FunctionDef))}
    for name, node in last.items():
        if name == CLASS and isinstance(node, ast.ClassDef):
            reader.settings_class(node)
        elif name == FUNCTION and isinstance(node, ast.FunctionDef):
            reader.settings_function(node)
    if not reader.forms:
        raise UsageError(
            f"{path}: expected `class {CLASS}` or `def {FUNCTION}()` at the top level of the file, found neither; "
            "training keeps it in lib/train/admin/local.py"
        )
    return reader.result()


def _parsed(path: Path) -> tuple[ast.Module, list[str]]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise SourceNotFound(f"{path}: expected a local.py, there is nothing") from None
    except OSError as error:
        raise UsageError(f"{path}: expected a local.py: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a backslash in a path is the file's own affair
            tree = ast.parse(content, str(path))
    except SyntaxError as error:
        raise UsageError(f"{path}:{error.lineno or 1}: this is no Python of today: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise UsageError(f"{path}: this is no Python: {error}") from None
    return tree, [line.decode("utf-8", "replace") for line in content.splitlines()]


@dataclass
class _Form:
    """The attributes that one form sets, the last value of each."""

    attributes: dict[str, Bound] = field(default_factory=dict)
    other_names: Mapping[str, str] = field(default_factory=dict)


class _Reader:
    """Goes through the statements of one file in order."""

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        self.path = path
        self.lines = lines
        self.problems: list[Unread] = []
        self.forms: list[_Form] = []
        self.globals = Scope({"__file__": Bound(os.path.abspath(path), 0)})

    def module(self, tree: ast.Module) -> None:
        """The top level, as an import would go through it."""
        self.body(tree.body, self.globals)
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):  # some function may assign them, nobody can say when
                for name in node.names:
                    self.globals.names[name] = Bound(Unknown(f"a function assigns {name}"), node.lineno)

    def settings_class(self, node: ast.ClassDef) -> None:
        """The class body, then `__init__` as if an object were made."""
        if node.bases or node.decorator_list or node.keywords:
            self.report(node, "what a base class or a decorator sets is not followed")
        inside = Scope({}, outer=self.globals)
        self.body(node.body, inside)
        start = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
        form = _Form({name: bound for name, bound in inside.names.items() if name in KEYS or name not in methods})
        if start:
            arguments = [*start[-1].args.posonlyargs, *start[-1].args.args]
            receiver = arguments[0].arg if arguments else None
            self.function(start[-1], Scope({}, outer=self.globals, receiver=receiver, attributes=form.attributes))
        self.forms.append(form)

    def settings_function(self, node: ast.FunctionDef) -> None:
        """The body of the function, on the object that it returns."""
        returned = [
            one.value.id for one in node.body if isinstance(one, ast.Return) and isinstance(one.value, ast.Name)
        ]
        if not returned:
            self.report(node, "it does not end with `return NAME`, so the settings in it cannot be told")
        form = _Form(other_names=OTHER_NAMES)
        receiver = returned[-1] if returned else None
        self.function(node, Scope({}, outer=self.globals, receiver=receiver, attributes=form.attributes))
        self.forms.append(form)

    def function(self, node: ast.FunctionDef, scope: Scope) -> None:
        """A function body with its parameters' defaults bound."""
        arguments = [*node.args.posonlyargs, *node.args.args]
        for argument in [*arguments, *node.args.kwonlyargs]:
            scope.names[argument.arg] = Bound(Unknown(f"the caller gives {argument.arg}"), node.lineno)
        given = node.args.defaults
        pairs = [*zip(arguments[len(arguments) - len(given) :], given, strict=True)]
        for argument, default in [*pairs, *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]:
            if default is not None:
                scope.names[argument.arg] = Bound(value_of(default, self.globals), default.lineno)
        self.body(node.body, scope)

    def body(self, statements: Sequence[ast.stmt], scope: Scope) -> None:
        """Statements in order, up to a `return`."""
        certain = True
        for node in statements:
            if isinstance(node, ast.Return):
                return
            if certain:
                self.statement(node, scope)
            else:
                self.not_followed(node, scope, "an earlier branch may return before this line")
            certain &= not (scope is not self.globals and _may_return(node))

    def statement(self, node: ast.stmt, scope: Scope) -> None:
        """One statement: an assignment is followed, all else is reported as far as it matters."""
        if isinstance(node, _IGNORED) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            return
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            self.imports(node, scope)
        elif isinstance(node, ast.Assign):
            value = value_of(node.value, scope)
            self.forget(node.value, scope)
            for target in node.targets:
                self.assign(target, value, scope)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                value = value_of(node.value, scope)
                self.forget(node.value, scope)
                self.assign(node.target, value, scope)
        elif isinstance(node, ast.AugAssign):
            sum_of = ast.copy_location(ast.BinOp(node.target, node.op, node.value), node)
            self.assign(node.target, value_of(sum_of, scope), scope)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            scope.names[node.name] = Bound(Unknown(f"{node.name} is code, which is not run"), node.lineno)
        elif _is_main_guard(node):
            return
        elif isinstance(node, ast.Expr):
            self.forget(node, scope)
            if not _is_print(node.value):
                self.report(node, "a call is not run; if it changes settings, the values here are without it")
        else:
            self.not_followed(node, scope, f"`{type(node).__name__.lower()}` is not followed")

    def imports(self, node: ast.Import | ast.ImportFrom, scope: Scope) -> None:
        """Binds the imported names to where they come from; the modules are not looked at."""
        for alias in node.names:
            if alias.name == "*":
                scope.names.clear()
                self.report(node, "it may bind any name; names assigned before it are not used")
            elif isinstance(node, ast.ImportFrom):
                origin = "." * node.level + (node.module or "")
                scope.names[alias.asname or alias.name] = Bound(Dotted(f"{origin}.{alias.name}"), node.lineno)
            else:
                first = alias.name.partition(".")[0]
                scope.names[alias.asname or first] = Bound(Dotted(alias.name if alias.asname else first), node.lineno)

    def assign(self, target: ast.expr, value: object, scope: Scope) -> None:
        """Binds a name or an attribute of the settings; a tuple of them to the members of a tuple."""
        if isinstance(target, ast.Name):
            scope.names[target.id] = Bound(value, target.lineno)
            if target.id == scope.receiver:
                scope.attributes.clear()
        elif isinstance(target, ast.Attribute) and scope.is_receiver(target.value):
            scope.attributes[target.attr] = Bound(value, target.lineno)
        elif isinstance(target, (ast.Tuple, ast.List)):
            members: tuple[object, ...] = value if isinstance(value, tuple) else ()
            if len(members) != len(target.elts) or any(isinstance(one, ast.Starred) for one in target.elts):
                members = (Unknown("how it is unpacked is not followed"),) * len(target.elts)
            for one, member in zip(target.elts, members, strict=True):
                self.assign(one.value if isinstance(one, ast.Starred) else one, member, scope)
        else:
            self.forget(target, scope)
            self.report(target, "assignments to this are not followed")

    def forget(self, node: ast.AST, scope: Scope, reason: str = "the line that assigns it is not followed") -> bool:
        """Makes unknown whatever the code may bind; says whether there is an attribute of the settings among it."""
        has_attribute = False
        for one in ast.walk(node):
            is_bound = isinstance(getattr(one, "ctx", None), (ast.Store, ast.Del))
            if isinstance(one, ast.Name) and is_bound:
                scope.names[one.id] = Bound(Unknown(reason), one.lineno)
            elif isinstance(one, ast.Attribute) and is_bound and scope.is_receiver(one.value):
                scope.attributes[one.attr] = Bound(Unknown(reason), one.lineno)
                has_attribute = True
            elif isinstance(one, ast.alias):
                scope.names[one.asname or one.name.partition(".")[0]] = Bound(Unknown(reason), one.lineno)
            elif isinstance(one, _NAMED) and one.name:
                scope.names[one.name] = Bound(Unknown(reason), one.lineno)
        return has_attribute

    def not_followed(self, node: ast.stmt, scope: Scope, reason: str) -> None:
        """Forgets what the statement binds; reports it where it is about the settings and names no attribute itself."""
        if not self.forget(node, scope, reason) and scope is not self.globals:
            self.report(node, reason)

    def report(self, node: ast.stmt | ast.expr, reason: str) -> None:
        """Adds a problem."""
        self.problems.append(Unread(node.lineno, self.source(node.lineno), reason))

    def source(self, line: int) -> str:
        """A line of the file, without its indent."""
        return self.lines[line - 1].strip() if 0 < line <= len(self.lines) else ""

    def result(self) -> ImportedLocal:
        """Values by key and problems by line, from all forms of the file; the first form to set a key has it."""
        found: dict[str, str] = {}
        notes: list[str] = []
        for form in self.forms:
            for name, bound in form.attributes.items():
                text, reason = self.setting(name, bound.value, form)
                key = form.other_names.get(name, name)
                if text and key in found and found[key] != text:
                    reason = f"{key} has another value before"
                if reason:
                    self.problems.append(Unread(bound.line, self.source(bound.line), reason))
                elif text:
                    found.setdefault(key, text)
        values = {name: found[name] for name in KEYS if name in found}
        for name, text in values.items():
            if not text.startswith(("/", "~")):
                notes.append(f"{name} = {text!r} is relative: in {FILE_NAME} it counts from the folder of that file")
        problems = sorted(set(self.problems), key=lambda one: (one.line, one.reason))
        return ImportedLocal(self.path, values, tuple(problems), tuple(notes))

    def setting(self, name: str, value: object, form: _Form) -> tuple[str, str]:
        """The text of an attribute, and why it cannot be taken over ("" where it can)."""
        text = str(value) if isinstance(value, (str, PurePath)) else ""
        if value is None or value == "":
            return "", ""
        if name not in KEYS and name not in form.other_names:
            meaning = _OTHER_MEANING.get(name) if form.other_names else None
            return "", f"{name} is no setting{nearest(name, KEYS) if meaning is None else '; ' + meaning}"
        if isinstance(value, Unknown):
            return "", value.reason
        if isinstance(value, Dotted):
            return "", f"{value.name} is another module's, which is not run"
        if not isinstance(value, (str, PurePath)):
            return "", f"expected a path, got {type(value).__name__}"
        if "\0" in text or any("\ud800" <= one <= "\udfff" for one in text):
            return "", "no settings file can hold a zero byte or half a character"
        return text, ""


def _may_return(node: ast.stmt) -> bool:
    return not isinstance(node, (ast.FunctionDef, ast.ClassDef)) and any(
        isinstance(one, ast.Return) for one in ast.walk(node)
    )


def _is_print(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def _is_main_guard(node: ast.stmt) -> bool:
    """`if __name__ == "__main__":` without an else: nothing for who imports the file."""
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "__name__ == '__main__'"
