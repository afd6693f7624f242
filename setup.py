"""Packaging. `make` installs the lock files of requirements/ instead of resolving what stands here."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "pathways_lm" / "__init__.py").read_text()).group(1)

# t5 is in the lock files, where it is installed without its dependencies. Declared here, it would bring
# seqio-nightly and tfds-nightly, which write into the same folders as seqio and tensorflow-datasets.
CORE = [
    "jax>=0.10.2",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "seqio>=0.0.20",
    "gin-config>=0.5",
    "grain>=0.2.18",
    "array-record>=0.8",
    "sentencepiece>=0.2.1",
    "pyarrow>=20",
    "rich>=14",
    "tensorboardX>=2.6",
]

setup(
    name="pathways-lm",
    version=VERSION,
    description="PaLM and its relatives as configurations of a few JAX modules, on TPU, GPU and CPU meshes",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["pathways_lm", "pathways_lm.*"]),
    package_data={"pathways_lm": ["py.typed", "kernels/mkl/*.cc", "kernels/mkl/*.h"]},
    python_requires=">=3.11,<3.14",
    install_requires=CORE,
    extras_require={
        "cpu": ["mkl ; sys_platform == 'linux' and platform_machine == 'x86_64'"],
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
        "generate": ["llguidance"],
        "eval": ["sacrebleu", "rouge-score", "nltk", "scikit-learn", "babel"],
        "harness": ["lm-eval>=0.4.13"],
        "report": ["matplotlib"],
        "convert": ["safetensors"],
        "quantize": ["qwix"],
        "dev": ["hypothesis", "ipykernel", "mypy", "nbclient", "nbformat", "pytest", "pytest-xdist", "ruff"],
    },
    entry_points={"console_scripts": ["pathways-lm = pathways_lm.cli:main"]},
)
