"""Is the house in order? Prints what is not, and exits 1 then.

    python .ci/check_house.py [FOLDER]

Fails where `skmft/` is too long or says `Any` too often, where one of its modules uses a private name of another (the names
of modules may be private), and where a benchmark patches skmft.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

MOST_LINES, MOST_IN_MODULE, MOST_ANY = 6200, 450, 150
SKLEARN = {"_parameter_constraints"}  # what scikit-learn itself asks a subclass to read from its base


def private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def root_name(node: ast.AST) -> str:
    """`a` of `a.b[0].c()`; empty where the expression starts with no name."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def imports_of_skmft(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, imported name and the name that it has here, of all that is imported from skmft."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "skmft"):
            yield from ((node.lineno, alias.name, alias.asname or alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            ours = (alias for alias in node.names if alias.name.split(".")[0] == "skmft")
            yield from ((node.lineno, "skmft", alias.asname or "skmft") for alias in ours)


def defined(tree: ast.AST) -> set[str]:
    """Private names that a module defines: functions, classes, variables, attributes that it sets."""
    named = (getattr(node, "name", None) for node in ast.walk(tree) if not isinstance(node, ast.alias))
    stored = (node for node in ast.walk(tree) if isinstance(getattr(node, "ctx", None), ast.Store))
    names = [*named, *(getattr(node, "id", None) or getattr(node, "attr", None) for node in stored)]
    return {name for name in names if name and private(name)}


def private_uses(trees: dict[Path, ast.AST]) -> Iterator[str]:
    modules = {path.stem for path in trees} | {path.parent.name for path in trees}
    defines = {path: defined(tree) for path, tree in trees.items()}
    for path, tree in trees.items():
        imported = list(imports_of_skmft(tree))
        here = {name for _, _, name in imported}
        elsewhere = set().union(*(names for other, names in defines.items() if other != path)) - defines[path] - SKLEARN
        uses = [(line, name) for line, name, _ in imported if private(name)]
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Attribute) and private(node.attr)) or node.attr in SKLEARN:
                continue
            start = root_name(node)  # a method of the base class is the subclass's too
            if start in here or (node.attr in elsewhere and start not in ("self", "cls", "super")):
                uses.append((node.lineno, node.attr))
        yield from (f"{path}:{line}: {name} is private to another module" for line, name in uses if name not in modules)


def patches(path: Path, tree: ast.AST) -> Iterator[str]:
    ours = {"skmft", *(name for _, _, name in imports_of_skmft(tree))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and "patch" in ast.unparse(node.func):
            what = node.args[0]
            text = what.value if isinstance(what, ast.Constant) and isinstance(what.value, str) else root_name(what)
            if text.split(".")[0] in ours:
                yield f"{path}:{node.lineno}: patches {ast.unparse(what)}"


def problems(top: Path) -> list[str]:
    """What is out of order under `top`, a line each."""
    texts = {path.relative_to(top): path.read_text() for path in sorted((top / "skmft").rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    found = [f"{path}: {n} lines, of {MOST_IN_MODULE} at most" for path, n in lines.items() if n > MOST_IN_MODULE]
    if sum(lines.values()) > MOST_LINES:
        found.append(f"skmft: {sum(lines.values())} lines, of {MOST_LINES} at most")
    tokens = (token for text in texts.values() for token in tokenize.generate_tokens(io.StringIO(text).readline))
    n_any = sum(token.type == tokenize.NAME and token.string == "Any" for token in tokens)
    if n_any > MOST_ANY:
        found.append(f"skmft: Any is written {n_any} times, of {MOST_ANY} at most")
    found += private_uses(trees)
    for path in sorted((top / "benchmarks").rglob("*.py")):
        found += patches(path.relative_to(top), ast.parse(path.read_text()))
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parents[1])
    print("\n".join(found) or "the house is in order")
    sys.exit(bool(found))
