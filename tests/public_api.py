"""The listing of the public API, docs/api/listing.md: the names of `dim_jax.__all__` with their signatures, read from the sources alone.

make api      # writes it anew; tests/test_public_api.py fails where it is not what the sources say
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LISTING = ROOT / "docs/api/listing.md"
HEAD = """# Listing

All names of `dim_jax.__all__` with their signatures: what `from dim_jax import NAME` gives. `make api` writes this page, and a test
compares it with the sources, so that no name and no argument changes unnoticed.

"""


def modules() -> dict[str, str]:
    """Name -> module, as dim_jax/__init__.pyi has them."""
    body = ast.parse((ROOT / "dim_jax/__init__.pyi").read_text()).body
    return {alias.name: str(node.module) for node in body if isinstance(node, ast.ImportFrom) for alias in node.names}


def listing() -> str:
    lines = []
    for module in sorted(set(modules().values())):
        lines.append(module)
        for name in sorted(name for name, where in modules().items() if where == module):
            lines += [f"    {line}" for line in describe(definition(module, name))]
    return f"{HEAD}```text\n" + "\n".join(lines) + "\n```\n"


def definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
    return next(node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name)


def describe(node: ast.stmt) -> Iterator[str]:
    """A function in a line; a class with its public fields and methods, and what making and calling one takes."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        marks = "".join(f"@{ast.unparse(mark)} " for mark in node.decorator_list)
        kind = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield f"{marks}{kind} {node.name}({ast.unparse(node.args)}){returns}"
    elif isinstance(node, ast.ClassDef):
        yield f"class {node.name}({', '.join(map(ast.unparse, node.bases))})".removesuffix("()")
        for member in node.body:
            if is_public(member):
                yield from (f"    {line}" for line in describe(member))
    elif isinstance(node, ast.AnnAssign):
        yield ast.unparse(node)


def is_public(member: ast.stmt) -> bool:
    name = ast.unparse(member.target) if isinstance(member, ast.AnnAssign) else getattr(member, "name", "_")
    return name in ("__init__", "__call__") or not name.startswith("_")


if __name__ == "__main__":
    LISTING.write_text(listing())
