"""One file out of many: a class with everything of this package that it needs, for diffusers without the package.

diffusers can load a class whose code lies beside the weights (`trust_remote_code=True`), but it downloads one file
only. So the modules are joined: each after those it imports from, all in one namespace, with the imports of other
packages at the top.
"""

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from .own_code import GENERATED

PACKAGE = "fq_ldm"


@cache
def bundle(name: str, version: str, empty: tuple[str, ...] = ()) -> str:
    """The text of one Python file with a module of the package and all modules that it imports from.

    Args:
        name: of the module, "fq_ldm.models.fq_model".
        version: of the package, for the first line.
        empty: modules whose classes become empty ones: what only the installed package can do.

    Raises:
        ValueError: if the modules cannot be joined: two of them use one name, or import in a way that is not followed.
    """
    modules: dict[str, SimpleNamespace] = {}
    _collect(name, empty, modules)
    imports = sorted({line for module in modules.values() for line in module.imports})
    owners: dict[str, str] = {}
    for module in modules.values():
        for defined in module.names:
            if defined in owners:
                raise ValueError(f"{defined} is defined in {owners[defined]} and in {module.name}: rename one")
            owners[defined] = module.name
    for line in imports:
        for bound in ast.parse(line).body[0].names:
            known = (bound.asname or bound.name).split(".")[0]
            if known in owners:
                raise ValueError(f"{known} is defined in {owners[known]}, and imported elsewhere by: {line}")
    header = f'{GENERATED}{version}: {name}, with all that it needs in one file. Licence: Apache-2.0."""'
    parts = [f"# {module.name}: {module.summary}\n\n{module.body}" for module in modules.values()]
    return "\n\n\n".join([header + "\n\n" + "\n".join(imports), *parts]) + "\n"


def _collect(name: str, empty: tuple[str, ...], modules: dict[str, SimpleNamespace]) -> None:
    """Read a module and, before it, those that it imports from."""
    if name in modules:
        return
    text = _source(name)
    tree = ast.parse(text)
    if name in empty:
        tree.body = [_emptied(node) for node in tree.body if isinstance(node, ast.ClassDef)]
        text = ast.unparse(tree)
        tree = ast.parse(text)
    dropped, imports = [], []
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports += [ast.unparse(ast.Import([alias])) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not _is_ours(node):
            imports += [ast.unparse(ast.ImportFrom(node.module, [alias])) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.asname is not None:
                    raise ValueError(f"{name}: {ast.unparse(node)}: other names than the imported ones do not join")
                _collect(_home(_absolute(node, name), alias.name), empty, modules)
        elif not _is_docstring(node):
            _refuse_inner_imports(node, name)
            continue
        dropped.append(node)
    modules[name] = SimpleNamespace(
        name=name,
        imports=imports,
        names=[defined for node in tree.body for defined in _defined(node)],
        summary=(ast.get_docstring(tree) or "").splitlines()[0] if name not in empty else "only in the package",
        body=_without(text, dropped + _module_names(tree)),
    )


def _source(name: str) -> str:
    return Path(find_spec(name).origin).read_text()


def _is_ours(node: ast.ImportFrom) -> bool:
    return node.level > 0 or (node.module or "").split(".")[0] == PACKAGE


def _absolute(node: ast.ImportFrom, importer: str) -> str:
    """The module that a statement imports from."""
    if not node.level:
        return node.module or ""
    spec = find_spec(importer)
    package = importer if spec.submodule_search_locations is not None else importer.rpartition(".")[0]
    parts = package.split(".")
    return ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))


def _home(module: str, name: str) -> str:
    """The module that defines a name which another hands on."""
    for node in ast.parse(_source(module)).body:
        if isinstance(node, ast.ImportFrom) and _is_ours(node) and name in [alias.name for alias in node.names]:
            return _home(_absolute(node, module), name)
        if name in _defined(node):
            return module
    raise ValueError(f"{module} defines no {name}: modules that import whole modules do not join")


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [node.target.id] if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) else []


def _emptied(node: ast.ClassDef) -> ast.ClassDef:
    node.bases = []
    node.body = node.body[:1] if ast.get_docstring(node) else [ast.Pass()]
    return node


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _module_names(tree: ast.Module) -> list[ast.stmt]:
    """`__module__ = ...` of classes: the name that is recorded for the package does not hold for a copy."""
    inner = (node for cls in tree.body if isinstance(cls, ast.ClassDef) for node in cls.body)
    return [node for node in inner if "__module__" in _defined(node)]


def _refuse_inner_imports(node: ast.stmt, module: str) -> None:
    for inner in ast.walk(node):
        if isinstance(inner, ast.ImportFrom) and _is_ours(inner):
            raise ValueError(f"{module}: {ast.unparse(inner)} inside of a function does not join")


def _without(text: str, nodes: list[ast.stmt]) -> str:
    """The text without the lines of these statements, and of the comments right above those inside of classes."""
    lines: list[str | None] = list(text.splitlines())
    for node in nodes:
        first = node.lineno - 1
        while node.col_offset and (lines[first - 1] or "").lstrip().startswith("#"):
            first -= 1
        lines[first : node.end_lineno] = [None] * (node.end_lineno - first)
    return "\n".join(line for line in lines if line is not None).strip("\n")
