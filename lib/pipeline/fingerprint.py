"""What a stage's result depends on besides its inputs: the notebook's code, the lib modules it imports, the pins.

A module's own texts and tables in the YAML file of its name, and its C code in one, count with it.
"""

import ast
import json
from functools import cache

from lib.pipeline.files import ROOT, sha256_file, sha256_text

LEFT_OUT = {"parameters", "injected-parameters", "colab"}  # tags of cells that compute no result


def notebook_code(path):
    """The code cells of a notebook as one string, without parameters and set-up: prose and outputs do not count."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    tags = [c["metadata"].get("tags", []) for c in cells if c["cell_type"] == "code"]
    kept = [text for text, tag in zip(code, tags, strict=True) if not LEFT_OUT & set(tag)]
    return "\n\n".join(kept)


@cache
def _imports(text):
    """Dotted names below lib that Python source imports, at any depth of nesting; attributes are among them."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(name.removeprefix("lib.") for name in found if name.startswith("lib."))


def modules(code):
    """lib modules that `code` imports, and those that they import, as a sorted list such as ["chat/turns", "stats"].

    A package's __init__ holds no code, so it counts for nothing.
    """
    seen, todo = set(), set(_imports(code))
    while todo:
        name = todo.pop().replace(".", "/")
        path = ROOT / "lib" / f"{name}.py"
        if name not in seen and path.exists():
            seen.add(name)
            todo |= _imports(path.read_text(encoding="utf-8"))
    return sorted(seen)


def of_stage(stage):
    """{"notebook": sha, "pins": sha, "lib/<module>.py": sha, ...} for the stage's notebook as it stands on disk.

    Raises ValueError when there is no such notebook.
    """
    path = ROOT / "notebooks" / f"{stage}.ipynb"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb")))
        raise ValueError(f"no notebook notebooks/{stage}.ipynb; there is {names}")
    code = notebook_code(path)
    pins = "".join(sha256_file(ROOT / name) for name in ("requirements.lock", "toolchain.txt"))
    files = [ROOT / "lib" / f"{name}.{kind}" for name in modules(code) for kind in ("py", "yaml", "c")]
    parts = {path.relative_to(ROOT).as_posix(): sha256_file(path) for path in files if path.exists()}
    return {"notebook": sha256_text(code), "pins": sha256_text(pins), **parts}
