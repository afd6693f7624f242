"""pathways_lm: PaLM and its relatives as configurations of a few modules, on any mesh.

Importing this package starts no device and reads no environment.
"""

__version__ = "0.1.0"
