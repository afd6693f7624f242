"""Text on every machine that has Python: its documentation and the source of its library."""

import sysconfig
from pathlib import Path

from pathways_lm.data.examples import Document

# Left out of the standard library: tests, what others installed, the documentation (a task of its own) and
# what the build wrote for one machine.
_SKIPPED_PARTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}
_SKIPPED_PREFIXES = ("_sysconfigdata_", "config-")


def python_docs() -> list[Document]:
    """Python's documentation as the `help` command has it, a topic each: 0.5 MB of English."""
    from pydoc_data.topics import topics

    return [Document(name, topics[name]) for name in sorted(topics) if topics[name]]


def python_stdlib() -> list[Document]:
    """The source of the running Python's standard library without its tests, a module each: about 11 MB."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not any(part in _SKIPPED_PARTS or part.startswith(_SKIPPED_PREFIXES) for part in parts):
            names.append("/".join(parts))
    documents = []
    for name in sorted(names):
        try:
            text = (root / name).read_bytes().decode()
        except UnicodeDecodeError:
            continue  # a few modules of older Pythons are in Latin-1
        if text:
            documents.append(Document(name, text))
    return documents
