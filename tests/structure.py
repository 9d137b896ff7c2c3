"""The shape of a checkout in one table: python tests/structure.py [FOLDER]

Files and lines, the longest function (from `def` to its last line, without its docstring), the deepest nesting (of
`for`, `while`, `if`, `with`, `try`, `match` and inner functions; an `elif` lies as deep as its `if`), and the imports
between rooms: the packages and modules right under `fq_ldm`, and the folders beside it.
"""

import ast
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

BLOCKS = (ast.For, ast.While, ast.If, ast.With, ast.Try, ast.Match, ast.FunctionDef)
ELSEWHERE = {"tests", "build", "runs"}  # tests import every room


@dataclass
class Function:
    """A function or method: where, how many lines, how many levels."""

    place: str
    lines: int
    depth: int


def source_files(root: Path) -> list[Path]:
    """The Python files of a checkout, without tests, in order."""
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    return [root / path for path in paths if path.parts[0] not in ELSEWHERE and not path.parts[0].startswith(".")]


def depth_of(node: ast.AST) -> int:
    """Levels of blocks below a node."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth_of(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def functions(path: Path, root: Path) -> list[Function]:
    """All functions of a file."""
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
    return [
        Function(f"{path.relative_to(root)}::{node.name}", lines_of(node) - docstring_lines(node), depth_of(node))
        for node in nodes
    ]


def lines_of(node: ast.AST) -> int:
    """How many lines a statement takes."""
    return node.end_lineno - node.lineno + 1


def docstring_lines(node: ast.FunctionDef) -> int:
    """How many lines of a function are its docstring."""
    return 0 if ast.get_docstring(node) is None else lines_of(node.body[0])


def room_of(module: str) -> str:
    """`fq_ldm.data.images` lies in the room `data`, `benchmarks.faces` in `benchmarks`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fq_ldm" and len(parts) > 1 else parts[0]


def room_imports(root: Path) -> Counter:
    """(room, room) -> statements in the first that import from the second."""
    names = {}
    for path in source_files(root):
        parts = path.relative_to(root).with_suffix("").parts
        # Folders beside the package that are installed inside of it.
        parts = ("fq_ldm", *parts) if parts[0] in ("pipelines", "configs") else parts
        names[path] = ".".join(parts).removesuffix(".__init__")
    known = set(names.values())
    found = Counter()
    for path, module in names.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for node in ast.walk(ast.parse(path.read_text())):
            for target in _targets(node, package, known):
                if target.split(".")[0] in {name.split(".")[0] for name in known}:
                    found[room_of(module), room_of(target)] += room_of(module) != room_of(target)
    return +found


def _targets(node: ast.AST, package: str, known: set[str]) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = package.split(".")
    base = base[: len(base) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    return sorted({f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module for alias in node.names})


def loops(arrows: Counter) -> list[set[str]]:
    """Groups of rooms each of which imports, directly or not, every other."""
    reach = {room: {b for a, b in arrows if a == room} for pair in arrows for room in pair}
    for _ in reach:
        reach = {room: further.union(*(reach[r] for r in further)) for room, further in reach.items()}
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in reach if a in reach[a]}
    return [set(group) for group in groups]


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    paths = source_files(root)
    lines = {path.relative_to(root): len(path.read_text().splitlines()) for path in paths}
    found = [function for path in paths for function in functions(path, root)]
    longest, deepest = max(found, key=lambda f: f.lines), max(found, key=lambda f: f.depth)
    biggest = max(lines, key=lines.get)
    readme = root / "README.md"
    print(f"files {len(paths)}, lines {sum(lines.values())}; README.md {len(readme.read_text().splitlines())} lines")
    print(f"biggest file {biggest}, {lines[biggest]} lines")
    over = sorted((f for f in found if f.lines > 70), key=lambda f: -f.lines)
    print(f"longest function {longest.place}, {longest.lines} lines; over 70: {len(over)}")
    deep = [f for f in found if f.depth > 4]
    print(f"deepest nesting {deepest.place}, {deepest.depth} levels; over 4: {len(deep)}")
    for function in {f.place: f for f in over + deep}.values():
        print(f"    {function.place}, {function.lines} lines, {function.depth} levels")
    arrows = room_imports(root)
    print(f"imports between rooms: {sum(arrows.values())} along {len(arrows)} arrows")
    for room in sorted({a for a, _ in arrows}):
        print(f"    {room} -> {', '.join(f'{b} {n}' for (a, b), n in sorted(arrows.items()) if a == room)}")
    print(f"rooms that import one another: {[sorted(group) for group in loops(arrows)] or 'none'}")


if __name__ == "__main__":
    main()
