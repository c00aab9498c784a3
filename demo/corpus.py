"""The demo's texts: the documentation strings of the Python standard library on this machine.

Several thousand short English texts that programmers know by heart, and nothing to download.
Python sources are parsed, never run; what is written in C is found by importing the library's
public modules, for it has no source to parse.
"""

import ast
import contextlib
import hashlib
import importlib
import inspect
import io
import os
import re
import sys
import sysconfig
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

# Longer texts are cut at a sentence: what a thing is for stands at its beginning, and a model's
# time grows with the length.
MAX_CHARS = 500
MIN_CHARS = 20

# Folders that are no part of the library that a programmer imports.
NOT_LIBRARY = {"__pycache__", "site-packages", "dist-packages", "lib-dynload"}
NOT_LIBRARY |= {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "distutils"}

# Modules that open a window or a browser, or print, when they are imported.
NOT_IMPORTED = {"antigravity", "this", "idlelib", "lib2to3", "tkinter", "turtle", "turtledemo", "test"}
# ... and two whose names programmers know as those of `os`, and one that newer Pythons lack.
NOT_IMPORTED |= {"posix", "nt", "distutils"}

# Public modules inside packages whose contents are defined in private ones.
INNER_MODULES = ("collections.abc", "concurrent.futures", "os.path", "xml.etree.ElementTree")

SIGNATURE = re.compile(r"^[\w.]+\(.*\)(\s*-{1,2}>.*)?\s*(--)?\s*$")


@dataclass(frozen=True)
class Document:
    name: str  # qualified, as one would import it: tempfile.mkdtemp
    kind: str  # module, class, function or method
    module: str  # tempfile
    text: str
    home: bool = True  # whether `module` is where it is defined


def collect() -> list[Document]:
    """Every distinct documentation string, ordered by name."""
    by_text: dict[str, Document] = {}
    for document in [*_from_sources(), *_from_modules()]:
        known = by_text.setdefault(document.text, document)
        by_text[document.text] = min(known, document, key=_preference)
    # One name, one text: where Python and C both have a text for a name, the first stays.
    by_name: dict[str, Document] = {}
    for document in by_text.values():
        by_name.setdefault(document.name, document)
    return sorted(by_name.values(), key=lambda document: document.name)


def fingerprint(documents: list[Document]) -> str:
    """Changes when any name or text does."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(f"{document.name}\0{document.kind}\0{document.text}\0".encode())
    return digest.hexdigest()[:16]


def _preference(document: Document) -> tuple:
    """Of several names for one text: the one where it is defined, the fewest parts, the shortest."""
    return (not document.home, document.name.count("."), len(document.name), document.name)


def _from_sources() -> Iterator[Document]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name for name in folders if name not in NOT_LIBRARY and not name.startswith(("_", "config-"))
        )
        for file in sorted(files):
            path = Path(folder, file)
            if path.suffix != ".py":
                continue
            parts = path.relative_to(root).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            if not parts or any(part.startswith("_") for part in parts):
                continue
            try:
                tree = ast.parse(path.read_bytes())
            except (OSError, SyntaxError, ValueError):
                continue  # a template or a damaged file: no text to take
            yield from _walk(tree, ".".join(parts), ".".join(parts))


def _walk(node: ast.AST, name: str, module: str) -> Iterator[Document]:
    text = clean(ast.get_docstring(node))
    if text:
        yield Document(name, _kind_of_node(node, name, module), module, text)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in _definitions(node.body):
            yield from _walk(child, f"{name}.{child.name}", module)


def _definitions(body: list[ast.stmt]) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The public classes and functions of a body, those under `if` and `try` too."""
    for child in body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not child.name.startswith("_"):
                yield child
        elif isinstance(child, ast.If | ast.Try):
            yield from _definitions(child.body)
            yield from _definitions(child.orelse)


def _kind_of_node(node: ast.AST, name: str, module: str) -> str:
    if isinstance(node, ast.Module):
        return "module"
    if isinstance(node, ast.ClassDef):
        return "class"
    return "method" if name.removeprefix(module).count(".") > 1 else "function"


def _from_modules() -> Iterator[Document]:
    for name in [*sorted(sys.stdlib_module_names), *INNER_MODULES]:
        if name.startswith("_") or name in NOT_IMPORTED:
            continue
        module = _imported(name)
        if module is None:
            continue
        text = clean(module.__doc__)
        if text:
            yield Document(name, "module", name, text)
        public = getattr(module, "__all__", None) or [key for key in vars(module) if key[0] != "_"]
        for attribute in sorted(public):
            value = getattr(module, attribute, None)
            if not isinstance(value, types.ModuleType):
                yield from _from_object(value, attribute, name)


def _imported(name: str) -> types.ModuleType | None:
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with warnings.catch_warnings(), silent[0], silent[1]:
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except Exception:  # Python was built without it, or it is for another system
            return None


def _from_object(value: object, attribute: str, module: str) -> Iterator[Document]:
    name = attribute if module == "builtins" else f"{module}.{attribute}"
    owner = getattr(value, "__module__", None) or ""
    # `_struct` is where `struct` keeps what is written in C; `posix` is that of `os`.
    home = owner.removeprefix("_") == module or (module == "os" and owner in ("posix", "nt"))
    if inspect.isclass(value):
        yield from _document(value, name, "class", module, home)
        for key, member in sorted(vars(value).items()):
            if not key.startswith("_") and (callable(member) or inspect.isdatadescriptor(member)):
                yield from _document(member, f"{name}.{key}", "method", module, home)
    elif inspect.isroutine(value):
        yield from _document(value, name, "function", module, home)


def _document(value: object, name: str, kind: str, module: str, home: bool) -> Iterator[Document]:
    docstring = value.__doc__
    text = clean(docstring if isinstance(docstring, str) else None)
    if text:
        yield Document(name, kind, module, text, home)


def clean(docstring: str | None) -> str | None:
    """The prose of `docstring`: no signatures, no examples; None when nothing is left."""
    if not docstring:
        return None
    lines = inspect.cleandoc(docstring).splitlines()
    while lines and (SIGNATURE.match(lines[0]) or not lines[0].strip()):
        lines.pop(0)
    prose = re.split(r"^\s*>>> ", "\n".join(lines), maxsplit=1, flags=re.MULTILINE)[0]
    text = " ".join(prose.split())
    if len(text) > MAX_CHARS:
        head = text[:MAX_CHARS]
        stop = head.rfind(". ")
        text = head[: stop + 1] if stop > MAX_CHARS // 2 else head[: head.rfind(" ")]
    return text if len(text) >= MIN_CHARS else None
