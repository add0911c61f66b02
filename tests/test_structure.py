"""The shape of the package: layers, budgets, public names, docstrings, flags. Each test lists every offender at once."""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "penstock"
SOURCES = sorted(PACKAGE.rglob("*.py"))

LAYERS = [
    ["errors"],
    ["schema", "report", "geometry", "curves"],
    ["source", "store", "samplers", "registry", "settings", "draws", "tracking"],
    [
        "readers",
        "models",
        "loader",
        "buffers",
        "feed",
        "fill",
        "saved",
        "sequence_folder",
        "sequence_check",
        "segments",
        "refining",
        "exporters",
    ],
    ["stages", "check", "repair", "search", "describe", "doctor", "track", "mix"],
    ["jobs", "work", "launch", "train", "convert", "sequence", "embed", "refine", "teacher"],
    [
        "viewer",
        "cli",
        "compat",
        "testing",
        "recipes",
        "progress",
        "report_page",
        "sequence_report",
        "refine_report",
        "distill_report",
        "__main__",
    ],
]
"""DESIGN.md section 5: a module imports from its own layer and from those before it. `check_boxes` lies with `check`."""
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def layer_of(name: str) -> int:
    """The layer of a module at the top, by its name or by the first word of it.

    Raises:
        KeyError: it has none.
    """
    return LAYER_OF[name] if name in LAYER_OF else LAYER_OF[name.partition("_")[0]]


APART = {
    "jobs": {"readers", "models", "stages", "check"},
    "work": {"readers", "models", "stages"},
    "store": {"models", "stages"},
    "viewer": {"stages"},
}
"""What a module must not import although its layer would allow it."""

MODULE_LINES, FUNCTION_LINES, POSITIONAL = 400, 60, 5
BROAD_EXCEPT = {"work.py": 2, "feed.py": 1}
"""The per-row boundary of jobs (fetch, compute), and the thread that fills the loader: a row never kills a run."""


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """`penstock.store.sink` for penstock/store/sink.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def imported(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Modules of penstock that a module imports; `at_run_time`: only those of its top level, when it is imported."""
    tree = tree_of(path)
    found: set[str] = set()
    for node in tree.body if at_run_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in whole}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno}: a relative import"
    return {name for name in found if name.partition(".")[0] == "penstock"} - {module_of(path)}


def top(module: str) -> str:
    """`store` for penstock.store.sink."""
    return [*module.split("."), ""][1]


def none_of(offenders: Iterable[object]) -> None:
    """Fails with all of them listed."""
    lines = [str(one) for one in offenders]
    assert not lines, "\n".join(["", *lines])


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def test_every_module_has_a_layer() -> None:
    for name in {top(module) for module in MODULES} - {""}:
        layer_of(name)


def test_no_layer_imports_a_higher_one() -> None:
    edges = [(top(module), top(used)) for module, path in MODULES.items() for used in imported(path)]
    upward = {(left, right) for left, right in edges if left and right and layer_of(left) < layer_of(right)}
    apart = {(left, right) for left, right in edges if right in APART.get(left, set())}
    none_of([*upward, *apart])


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module: imported(path, at_run_time=True) for module, path in MODULES.items()}
    graph["penstock"] = set()  # it loads its names when they are asked for
    while free := [module for module, used in graph.items() if not used & graph.keys()]:
        for module in free:
            del graph[module]
    assert not graph, "a cycle among these"


def test_modules_stay_short() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    none_of(f"{name}: {count} lines" for name, count in lines.items() if count > MODULE_LINES)


def test_functions_stay_short() -> None:
    def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        body = node.body[1:] if ast.get_docstring(node) else node.body
        return (node.end_lineno or 0) - body[0].lineno + 1 if body else 0

    long = {f"{path.name}:{node.name}": body_lines(node) for path in SOURCES for node in functions(tree_of(path))}
    none_of(f"{name}: {count} lines" for name, count in long.items() if count > FUNCTION_LINES)


def test_functions_take_few_positional_parameters() -> None:
    def positional(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        names = [arg.arg for arg in node.args.posonlyargs + node.args.args]
        return len(names) - (names[:1] in (["self"], ["cls"]))

    many = {f"{path.name}:{node.name}": positional(node) for path in SOURCES for node in functions(tree_of(path))}
    none_of(f"{name}: {count} parameters" for name, count in many.items() if count > POSITIONAL)


def test_sources_are_ascii() -> None:
    folders = [PACKAGE, *(ROOT / name for name in ("tests", "examples", "benchmarks", "compat"))]
    files = [path for folder in folders for path in folder.rglob("*.py")]
    none_of(path for path in files if not path.read_bytes().isascii())


def test_only_the_command_line_prints() -> None:
    calls = [
        f"{path.name}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    none_of(call for call in calls if not call.startswith("cli"))


def is_bare_raise(node: ast.stmt) -> bool:
    """Clean up and let it pass: nothing is caught."""
    return isinstance(node, ast.Raise) and node.exc is None


def test_every_exception_is_caught_at_the_row_boundaries_only() -> None:
    found: dict[str, int] = {}
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler) and not is_bare_raise(node.body[-1]):
                names = {one.id for one in ast.walk(node.type) if isinstance(one, ast.Name)} if node.type else {"all"}
                if names & {"Exception", "BaseException", "all"}:
                    name = str(path.relative_to(PACKAGE))
                    found[name] = found.get(name, 0) + 1
    assert found == BROAD_EXCEPT


def loaded_by(code: str) -> set[str]:
    """Top-level modules beside the standard library that a fresh interpreter holds after running the code."""
    script = f"{code}\nimport sys\nprint(' '.join(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys\nsys.path[:] = {sys.path!r}\n{script}"],
        capture_output=True, text=True, check=True, env=environment,
    )  # fmt: skip
    return set(done.stdout.splitlines()[-1].split()) - set(sys.stdlib_module_names) - {"__main__", "penstock"}


def test_import_penstock_loads_no_other_package() -> None:
    assert loaded_by("import penstock, penstock.compat, penstock.errors") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "sa1b-tar", "--help"], ["--version"]])
def test_help_loads_the_parser_and_nothing_heavy(arguments: list[str]) -> None:
    parser = {"cyclopts", "attr", "attrs", "docstring_parser", "rich", "markdown_it", "mdurl", "pygments"}
    assert loaded_by(f"from penstock.cli import main\nassert main({arguments!r}) == 0") <= parser | {
        "typing_extensions"
    }


PUBLIC = ("penstock", "penstock.compat", "penstock.errors", "penstock.store", "penstock.testing")


def public_names(module: str) -> list[str]:
    """`__all__`, or else what the module itself defines without an underscore."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return list(loaded.__all__)
    names: list[str] = []
    for node in tree_of(MODULES[module]).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.append(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return sorted(name for name in names if not name.startswith("_"))


def committed(name: str) -> list[str]:
    return (Path(__file__).parent / name).read_text().splitlines()


def test_public_names_are_those_of_the_committed_list() -> None:
    assert [f"{module}.{name}" for module in PUBLIC for name in public_names(module)] == committed("public_names.txt")


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_sorted_and_resolve(module: str) -> None:
    names = public_names(module)
    assert names == sorted(set(names))
    loaded = importlib.import_module(module)
    for name in names:
        getattr(loaded, name)
        assert name in dir(loaded)
    assert not hasattr(loaded, "no_such_name")


def undocumented(node: ast.AST, where: str) -> Iterator[str]:
    """Public definitions without a docstring, those inside public classes included; overloads have theirs elsewhere."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            decorators = {ast.unparse(decorator) for decorator in child.decorator_list}
            if not ast.get_docstring(child) and not decorators & {"overload"}:
                yield f"{where}.{child.name}"
            if isinstance(child, ast.ClassDef):
                yield from undocumented(child, f"{where}.{child.name}")


def test_every_module_and_every_public_definition_has_a_docstring() -> None:
    missing = [module for module, path in MODULES.items() if not ast.get_docstring(tree_of(path))]
    missing += [name for module, path in MODULES.items() for name in undocumented(tree_of(path), module)]
    none_of(missing)


def test_geometry_says_the_shapes_of_its_arrays() -> None:
    silent = []
    for path in sorted((PACKAGE / "geometry").glob("*.py")):
        for node in functions(tree_of(path)):
            hints = [one.annotation for one in node.args.args + node.args.kwonlyargs] + [node.returns]
            if not node.name.startswith("_") and any(hint and "np.ndarray" in ast.unparse(hint) for hint in hints):
                has_shape = re.search(r"\([^)]*[A-Za-z0-9*.]+, [^)]*\)", ast.get_docstring(node) or "")
                silent += [] if has_shape else [f"{path.name}:{node.name}"]
    none_of(silent)


def cli_flags() -> list[str]:
    """`command --flag` for every flag of every command, and `command NAME` for every positional argument."""
    from penstock.cli import app

    lines: list[str] = []

    def visit(words: str, node: object) -> None:
        if getattr(node, "default_command", None) is not None:
            for argument in node.assemble_argument_collection():  # type: ignore[attr-defined]
                kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
                name = [argument.name.lstrip("-").upper()] if argument.field_info.kind in kinds else []
                lines.extend(f"{words} {one}".strip() for one in [*name, *argument.names])
        for name in node:  # type: ignore[attr-defined]
            if not name.startswith("-"):
                visit(f"{words} {name}".strip(), node[name])  # type: ignore[index]

    visit("", app)
    return sorted(lines)


def test_flags_are_those_of_the_committed_list() -> None:
    assert cli_flags() == committed("cli_flags.txt")


def tracked_files() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout: what is committed is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_nothing_committed_names_a_machine() -> None:
    words = [
        "/wor" + "k/",
        "farm" + "-studio",
        "/opt/" + "wheels",
        "pyp" + "i.org",
        "pythonhosted" + ".org",
        "/ro" + "ot/",
    ]
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in tracked_files()
        for word in words
        if word.encode() in path.read_bytes()
    ]
    none_of(found)
