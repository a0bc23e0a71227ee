"""The laws of the house: each reads one room's source and returns its complaints.

A law knows nothing of files; ``test_house.py`` brings it the rooms, and breaches
of its own making that each law must catch.
"""

from __future__ import annotations

import ast
import functools
import io
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.house import floors

PACKAGE = Path(__file__).parents[2] / "localdask"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Room:
    """One file of the package: its dotted name below the package, and its source."""

    name: str
    source: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @property
    def folder(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Import:
    """One module that a room imports: its absolute name, where, and whether in a function."""

    module: str
    line: int
    is_late: bool

    @property
    def top(self) -> str:
        return self.module.split(".")[0]


def read_rooms() -> list[Room]:
    """Return every room of the package as it lies on disk."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return [Room(".".join(path.relative_to(PACKAGE).with_suffix("").parts), path.read_text()) for path in paths]


def imports_of(room: Room, known: set[str]) -> Iterator[Import]:
    """Yield what a room imports; a name taken from one of our folders counts as the room of that name."""

    def visit(node: ast.AST, is_late: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, is_late)
            elif isinstance(child, ast.ImportFrom):
                module = "." * child.level + (child.module or "")
                for alias in child.names:
                    deeper = f"{module}.{alias.name}"
                    is_room = deeper.removeprefix("localdask.") in known
                    yield Import(deeper if is_room else module, child.lineno, is_late)
            else:
                yield from visit(child, is_late or isinstance(child, (*FUNCTIONS, ast.Lambda)))

    yield from visit(room.tree, False)


def room_of(module: str, known: set[str]) -> str | None:
    """Return which room a module is, or None when it is not one of ours."""
    if module.split(".")[0] != "localdask":
        return None
    inside = module.removeprefix("localdask").removeprefix(".")
    if inside in known:
        return inside
    return f"{inside}.__init__" if inside else "__init__"


def docstring_lines(tree: ast.AST) -> set[int]:
    """Return the lines that docstrings take."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS)) and ast.get_docstring(node, clean=False) is not None:
            string = node.body[0]
            lines |= set(range(string.lineno, (string.end_lineno or string.lineno) + 1))
    return lines


@functools.cache
def code_lines(source: str) -> set[int]:
    """Return the lines that hold code: no blanks, no comments, no docstrings."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines - docstring_lines(ast.parse(source))


# ── the laws ─────────────────────────────────────────────────────────────────


def is_on_the_plan(room: Room, known: set[str]) -> Iterator[str]:
    if room.name not in floors.planned_rooms():
        yield f"{room.name} is not on the plan: enter it in tests/house/floors.py first"
    word = room.name.split(".")[-1]
    if word in floors.FORBIDDEN_NAMES or word.rsplit("_", 1)[-1] in floors.FORBIDDEN_NAMES:
        yield f"{room.name}: a room is named for its noun, and {word!r} is none"


def imports_go_down(room: Room, known: set[str]) -> Iterator[str]:
    for found in imports_of(room, known):
        if found.module.startswith("."):
            yield f"{room.name}:{found.line} imports {found.module} relatively"
            continue
        target = room_of(found.module, known)
        if target is not None and not floors.may_import(room.name, target):
            yield f"{room.name}:{found.line} imports {target}, which is not below it"


def imports_stand_first(room: Room, known: set[str]) -> Iterator[str]:
    for found in imports_of(room, known):
        if not found.is_late or found.module.startswith("."):
            continue
        if room_of(found.module, known) is None:
            if found.top not in floors.LATE_MODULES:
                yield f"{room.name}:{found.line} imports {found.module} late, and no reason is on the plan"
        elif room_of(found.module, known) in floors.DEAR_ROOMS:
            continue
        elif room.name not in floors.LATE_ROOMS and room.folder not in floors.LATE_ROOMS:
            yield f"{room.name}:{found.line} imports {found.module} late, to hide a cycle or a climb"


def no_imports_for_types_only(room: Room, known: set[str]) -> Iterator[str]:
    if room.name == "__init__":
        return  # the public face loads lazily, and type checkers must see it all the same
    tree = room.tree
    allowed = {id(node.test) for node in ast.walk(tree) if isinstance(node, ast.If) and _is_dear(node.body)}
    for node in ast.walk(tree):
        is_guard = (
            isinstance(node, ast.Name) and node.id == "TYPE_CHECKING" or isinstance(node, ast.Attribute) and node.attr == "TYPE_CHECKING"
        )
        if is_guard and isinstance(node, ast.expr) and id(node) not in allowed:
            yield f"{room.name}:{node.lineno} hides an import under TYPE_CHECKING"


def _is_dear(body: list[ast.stmt]) -> bool:
    """Whether these lines only import what the plan has imported late."""
    modules = [node.module.removeprefix("localdask.") for node in body if isinstance(node, ast.ImportFrom) and node.module]
    return len(modules) == len(body) and all(
        module in floors.DEAR_ROOMS or module.split(".")[0] in floors.LATE_MODULES for module in modules
    )


def decides_without_doing(room: Room, known: set[str]) -> Iterator[str]:
    if room.folder not in floors.PURE_ROOMS:
        return
    for found in imports_of(room, known):
        is_ours = found.top == "localdask" and (room_of(found.module, known) or "").split(".")[0] in (*floors.PURE_ROOMS, "records")
        if not (is_ours or found.top in floors.PURE_MODULES or (room.name, found.top) in floors.PURE_EXCEPTIONS):
            yield f"{room.name}:{found.line} decides, and may not know {found.module}"
    for node in ast.walk(room.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in floors.IMPURE_BUILTINS:
            yield f"{room.name}:{node.lineno} decides, and may not call {node.func.id}()"


def says_what_it_is_for(room: Room, known: set[str]) -> Iterator[str]:
    words = (ast.get_docstring(room.tree) or "").split()
    wanted = 1 if room.name.endswith(("__init__", "__main__", "version")) else floors.MIN_DOCSTRING_WORDS
    if len(words) < wanted:
        yield f"{room.name} has a docstring of {len(words)} words; say what it is for, who runs it, and what it never does"


def is_small(room: Room, known: set[str]) -> Iterator[str]:
    lines = code_lines(room.source)
    if len(lines) > floors.MAX_ROOM_LINES:
        yield f"{room.name} has {len(lines)} lines of code; {floors.MAX_ROOM_LINES} are a room"
    for node in ast.walk(room.tree):
        if isinstance(node, FUNCTIONS):
            # Its body: a signature has a line for each parameter, and says no more for being short.
            n_lines = len(lines & set(range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)))
            if n_lines > floors.MAX_FUNCTION_LINES:
                yield f"{room.name}:{node.lineno} {node.name} has {n_lines} lines of code; {floors.MAX_FUNCTION_LINES} are a function"


def swallows_nothing(room: Room, known: set[str]) -> Iterator[str]:
    def is_broad(node: ast.expr | None) -> bool:
        parts = node.elts if isinstance(node, ast.Tuple) else [node]
        return any(part is None or isinstance(part, ast.Name) and part.id in ("Exception", "BaseException") for part in parts)

    def is_idle(statement: ast.stmt) -> bool:
        return (
            isinstance(statement, (ast.Pass, ast.Continue)) or isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        )

    for node in ast.walk(room.tree):
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type) and all(map(is_idle, node.body)):
            yield f"{room.name}:{node.lineno} swallows every error"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("suppress", "contextlib.suppress") and any(map(is_broad, node.args)):
            yield f"{room.name}:{node.lineno} swallows every error"


def leaves_messages_alone(room: Room, known: set[str]) -> Iterator[str]:
    messages = set(message_classes())
    names = set(floors.MESSAGE_NAMES)
    for node in ast.walk(room.tree):
        if isinstance(node, ast.arg) and node.annotation is not None and ast.unparse(node.annotation).split(".")[-1] in messages:
            names.add(node.arg)
    for node in ast.walk(room.tree):
        if not isinstance(node, ast.Attribute) or isinstance(node.ctx, ast.Load):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in names:
            yield f"{room.name}:{node.lineno} assigns to {ast.unparse(node)}; a message stays as it was made"


@functools.cache
def message_classes() -> dict[str, ast.ClassDef]:
    """Return the classes of ``messages/`` by name."""
    trees = [ast.parse(path.read_text()) for path in sorted((PACKAGE / "messages").glob("*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")}
