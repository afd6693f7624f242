"""pathways_lm: PaLM and its relatives as configurations of a few modules, on any mesh.

Importing this package starts no device and reads no environment.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # JAX takes seconds to import, and whoever only asks for the version must not wait for it.
    if name == "load":
        return importlib.import_module("pathways_lm.language_model").load
    raise AttributeError(f"module 'pathways_lm' has no attribute {name!r}")
