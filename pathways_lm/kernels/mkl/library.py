"""Which library multiplies in fp32 on CPUs: XLA's own, or Intel's MKL, which is a fifth faster (decision 24).

What XLA calls is compiled from the C++ beside this where it is first used, with the headers of the JAX that is
installed, and kept where compiled programs are. A process multiplies by MKL once it has asked to (`load`).
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import Array

_HERE = Path(__file__).parent
_SOURCES = (_HERE / "products.cc", _HERE / "attention.cc")
# AVX-512 as all processors have it that pass `_check_processor`; loops are cut for it where they say so themselves.
_FLAGS = ("-O3", "-march=x86-64-v4", "-fopenmp-simd", "-fno-trapping-math", "-std=c++17", "-shared", "-fPIC")
_PROCESSOR = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_HANDLERS = (
    "pathways_product",
    "pathways_ragged",
    "pathways_ragged_gradient",
    "pathways_attend",
    "pathways_attend_gradient",
)
_PATIENCE = 120
_SEQUENTIAL, _LP64 = 1, 0
"""MKL's own names: it works in the thread that asks, as the threads are XLA's, and takes whole numbers of 32 bits."""
_registered: list[ctypes.CDLL] = []
"""Kept loaded as long as XLA knows them."""
_loaded: list[str] = []
"""MKL's version, where this process multiplies by it."""


class _MissingError(Exception):
    """What MKL needs and this machine has not."""


def load(folder: Path) -> str:
    """From here on, this process multiplies by MKL where it can, but for functions that JAX has traced already. Says
    which library it is now, and why.

    Args:
      folder: where what is compiled is kept.
    """
    _loaded.clear()
    try:
        _check_processor()
        mkl = _library()
        if not _registered:
            _register(mkl, _compiled(folder))
    except _MissingError as reason:
        return f"XLA's own (no MKL: {reason})"
    except OSError as error:
        return f"XLA's own (no MKL: {error})"
    _loaded.append(version("mkl"))
    return f"in fp32 MKL {_loaded[0]}, which holds only tiles of plain attention's scores; else XLA's own"


def multiplies(*operands: Array | None) -> bool:
    """Whether MKL is loaded and these are what it takes."""
    return bool(_loaded) and all(operand is not None and operand.dtype == jnp.float32 for operand in operands)


def _check_processor() -> None:
    """MKL was measured on Intel's processors with AVX-512; on others it may take a slower way."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise _MissingError("it is used on Linux on x86-64")
    told = Path("/proc/cpuinfo").read_text().split()
    if "GenuineIntel" not in told or not _PROCESSOR.issubset(told):
        raise _MissingError("this is none of Intel's processors with AVX-512")


def _library() -> Path:
    try:
        files = distribution("mkl").files or ()
    except PackageNotFoundError:
        raise _MissingError("pip install mkl") from None
    for file in files:
        if file.name.startswith("libmkl_rt.so"):
            return Path(str(file.locate())).resolve()
    raise _MissingError("the package mkl has no libmkl_rt.so")


def _compiled(folder: Path) -> Path:
    """The shared library of the C++ here, compiled unless it lies there for these headers already."""
    told = hashlib.sha256("\n".join((version("jaxlib"), *_FLAGS)).encode())
    for source in sorted(_HERE.glob("*.cc")) + sorted(_HERE.glob("*.h")):
        told.update(source.read_bytes())
    library = folder / f"mkl-{told.hexdigest()[:16]}.so"
    if library.exists():
        return library
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise _MissingError("no C++ compiler: neither c++ nor g++ nor clang++ is here")
    folder.mkdir(parents=True, exist_ok=True)
    # Under a name of its own until it is whole, as another process may look for it.
    descriptor, name = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(descriptor)
    made = Path(name)
    try:
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), *map(str, _SOURCES), "-o", name]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        if ended.returncode:
            first = next((line for line in ended.stderr.splitlines() if "error" in line), ended.stderr[:200])
            raise _MissingError(f"{compiler} ended with {ended.returncode}: {first.strip()}")
        made.chmod(0o755)
        made.replace(library)
    except subprocess.TimeoutExpired:
        raise _MissingError(f"{compiler} took over {_PATIENCE} seconds") from None
    finally:
        made.unlink(missing_ok=True)
    return library


def _register(mkl: Path, compiled: Path) -> None:
    try:
        runtime, kernels = ctypes.CDLL(str(mkl)), ctypes.CDLL(str(compiled))
        entries = [ctypes.cast(entry, ctypes.c_void_p) for entry in (runtime.cblas_sgemm, runtime.vmsExp)]
        handlers = {name: jax.ffi.pycapsule(getattr(kernels, name)) for name in _HANDLERS}
        asked = runtime.MKL_Set_Interface_Layer(_LP64), runtime.MKL_Set_Threading_Layer(_SEQUENTIAL)
    except AttributeError as error:
        raise _MissingError(str(error)) from None
    if asked != (_LP64, _SEQUENTIAL):
        raise _MissingError("this process uses it in another way already")
    kernels.pathways_use(*entries)
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    _registered.extend((runtime, kernels))
