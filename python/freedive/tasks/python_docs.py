"""Real English that every machine has: the documentation inside the Python installation, as web pages.

The language reference comes from `pydoc_data.topics`, the rest from docstrings of the standard library, read with `ast`
(nothing is imported or run). Pages differ between Python versions, since the documentation does.
"""

from __future__ import annotations

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator
from html import escape
from pathlib import Path

# Well documented modules, roughly from the most to the least prose.
MODULES = tuple(
    """
    argparse collections/__init__ datetime decimal fractions statistics random logging/__init__ threading subprocess
    asyncio/base_events asyncio/tasks asyncio/streams concurrent/futures/_base concurrent/futures/process heapq bisect
    functools contextlib dataclasses enum typing abc inspect ast dis difflib doctest unittest/case unittest/mock
    unittest/loader email/message email/policy http/client http/cookiejar http/server urllib/request urllib/parse
    json/__init__ json/decoder json/encoder csv configparser pathlib os shutil tempfile glob fnmatch zipfile tarfile gzip
    pickle pickletools shelve sqlite3/dbapi2 socket socketserver ssl selectors queue sched calendar locale gettext textwrap
    string re/__init__ codecs io _pyio timeit trace traceback pdb cmd code optparse getopt turtle ipaddress uuid hashlib
    hmac secrets base64 struct copy pprint types weakref operator warnings importlib/abc zipapp
    """.split()
)


def documentation_pages(max_bytes: int) -> Iterator[tuple[str, str, str]]:
    """(name, title, HTML body) until about `max_bytes` of text, alternating between the reference and the library."""
    used = 0
    reference, library = _topics(), _docstrings()
    while used < max_bytes:
        pages = [page for page in (next(reference, None), next(library, None)) if page is not None]
        if not pages:
            return
        for name, title, text in pages:
            used += len(text)
            yield name, title, to_html(text)


def _topics() -> Iterator[tuple[str, str, str]]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        return
    seen = set()
    for name in sorted(topics):
        text = topics[name].strip()
        if text not in seen and len(text) > 600:
            seen.add(text)
            yield f"reference/{name}", text.split("\n", 1)[0], text


def _docstrings() -> Iterator[tuple[str, str, str]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for module in MODULES:
        try:
            tree = ast.parse((library / f"{module}.py").read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue  # another version of Python: the module is elsewhere or gone
        text = "\n\n".join(_described(tree, ""))
        if len(text) > 600:
            name = module.replace("/__init__", "").replace("/", ".")
            yield f"library/{name}", f"The module {name}", text


def _described(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """Docstrings of a module or class and its public members, each below the name it describes."""
    text = ast.get_docstring(node, clean=False)
    if text:
        yield inspect.cleandoc(text)
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            if isinstance(child, ast.ClassDef):
                yield from (f"{part}" for part in _described(child, f"{prefix}{child.name}."))
            elif (text := ast.get_docstring(child, clean=False)) and len(text) > 40:
                arguments = ", ".join(argument.arg for argument in child.args.args if argument.arg != "self")
                yield f"{prefix}{child.name}({arguments})\n\n{inspect.cleandoc(text)}"


def to_html(text: str) -> str:
    """Paragraphs of plain reST-like text: indented ones become <pre>, underlined titles <h2>, the rest <p>."""
    parts = []
    for block in re.split(r"\n\s*\n", text):
        lines = block.rstrip().split("\n")
        if len(lines) == 2 and re.fullmatch(r"([*=~^-])\1+", lines[1].strip()):
            parts.append(f"<h2>{escape(lines[0])}</h2>")
        elif lines[0].startswith(("   ", ">>>")):
            parts.append(f"<pre>{escape(inspect.cleandoc(block) if not lines[0].strip() else block)}</pre>")
        elif block.strip():
            parts.append(f"<p>{escape(' '.join(line.strip() for line in lines))}</p>")
    return "\n".join(parts)
