"""Who may know whom, read from the source."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pathways_lm

ROOT = Path(pathways_lm.__file__).parent
FILES = {str(path.relative_to(ROOT)): path for path in sorted(ROOT.rglob("*.py"))}

# Rooms from the ground up. A file imports from its own room and from those above it in this list;
# rooms of one line don't know each other, but those named in NEIGHBOURS.
STOREYS = [
    {"errors"},
    {"checked"},
    {"config"},
    {"mesh"},
    {"sharding", "compiler"},
    {"kernels"},
    {"layers"},
    {"models"},
    {"pipeline"},
    {"data", "train", "checkpoint", "decode"},
    {"evaluate", "report", "convert"},
    {"plan"},
    {"configure"},
    {"language_model"},
    {"cli"},
    {"__main__"},
]
# The loop of training saves; what saves does not know the loop.
NEIGHBOURS = {("train", "checkpoint")}


def room(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """Every module that a file imports, anywhere in it. `from a import b` is both a and a.b."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def rooms_used(name: str) -> set[str]:
    own = [module.split(".")[1] for module in imports(FILES[name]) if module.startswith("pathways_lm.")]
    return {module for module in own if module in {used for storey in STOREYS for used in storey}} - {room(name)}


def outside(name: str) -> set[str]:
    return {module.split(".")[0] for module in imports(FILES[name])}


def storey(of: str) -> int:
    return next(level for level, rooms in enumerate(STOREYS) if of in rooms)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_downhill(name):
    if name == "__init__.py":
        assert rooms_used(name) == set()
        return
    for used in rooms_used(name):
        assert storey(used) < storey(room(name)) or (room(name), used) in NEIGHBOURS, f"{name} imports {used}"


def test_every_room_has_its_place():
    """A new folder is given a line above."""
    assert {room(name) for name in FILES} - {"__init__"} == {used for storey in STOREYS for used in storey}


def test_train_and_decode_do_not_know_each_other():
    users = {(room(name), used) for name in FILES for used in rooms_used(name)}
    assert not users & {("train", "decode"), ("decode", "train")}


@pytest.mark.parametrize(
    ("packages", "where"),
    [
        ({"tensorflow", "seqio", "t5", "tensorflow_text", "tensorflow_datasets"}, {"data", "evaluate"}),
        ({"gin"}, {"configure"}),
        ({"matplotlib"}, {"report"}),
        ({"torch", "transformers"}, {"convert"}),
        ({"orbax"}, {"checkpoint"}),
        ({"pickle", "cloudpickle", "dill"}, set()),
        ({"configs", "tests"}, set()),
    ],
)
def test_packages_stay_in_their_rooms(packages, where):
    assert {name for name in FILES if outside(name) & packages and room(name) not in where} == set()


def calls_with_axis_names(tree: ast.AST) -> list[str]:
    """String constants 'data' and 'tensor' where JAX expects the name of a mesh axis."""
    takers = {"P", "PartitionSpec", "NamedSharding", "Mesh", "AbstractMesh", "make_mesh", "reshard", "shard_map"}
    takers |= {"psum", "pmean", "pmax", "pmin", "all_gather", "psum_scatter", "ppermute", "all_to_all", "pcast"}
    takers |= {"axis_index", "axis_size"}
    found = []
    for node in ast.walk(tree):
        inside = []
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            inside = [*node.args, *node.keywords] if called in takers else []
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "shape":
            inside = [node.slice]
        found += [
            constant.value
            for part in inside
            for constant in ast.walk(part)
            if isinstance(constant, ast.Constant) and constant.value in ("data", "tensor")
        ]
    return found


@pytest.mark.parametrize("name", [name for name in FILES if name not in ("mesh.py", "sharding.py")])
def test_axes_are_named_only_below(name):
    """Layers speak of 'embed' and 'heads'. 'data' is also a section of a config, so its use decides above the model;
    in the model and below the word does not occur."""
    tree = ast.parse(FILES[name].read_text())
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert "tensor" not in words
    assert calls_with_axis_names(tree) == []
    if room(name) in ("kernels", "layers", "models"):
        assert "data" not in words
        assert not {f"pathways_lm.mesh.{axis}" for axis in ("DATA", "TENSOR", "AXES")} & set(imports(FILES[name]))


def test_the_reader_of_axis_names_sees_them():
    code = "jax.lax.psum(x, 'data'); P(None, ('data', 'tensor')); mesh.shape['tensor']; values['data']; rules('batch')"
    assert sorted(calls_with_axis_names(ast.parse(code))) == ["data", "data", "tensor", "tensor"]


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name):
    assert len(FILES[name].read_text().splitlines()) <= 400


def test_no_drawers_for_everything():
    assert not {name for name in FILES if Path(name).stem in ("utils", "util", "common", "misc", "helpers")}


def answer_of(code: str):
    """What a fresh interpreter prints, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_is_light():
    """In a fresh interpreter: under a second, no JAX, no tensorflow, no device."""
    code = (
        "import sys, time, json; start = time.perf_counter(); import pathways_lm;"
        "took = time.perf_counter() - start; print(json.dumps([took, sorted(sys.modules)]))"
    )
    took, modules = answer_of(code)
    assert took < 1.0
    assert not {"jax", "jaxlib", "flax", "tensorflow", "seqio", "gin", "numpy"} & set(modules)


def test_importing_the_core_starts_no_device():
    """Nor reads gin or tensorflow: what needs them imports them when it is used."""
    core = set.union(*STOREYS[:7], {"train", "checkpoint", "decode", "configure"})
    modules = [f"pathways_lm.{name.removesuffix('.py').replace('/', '.')}" for name in FILES if room(name) in core]
    code = (
        f"import importlib, sys, json; [importlib.import_module(name) for name in {modules!r}];"
        "from jax._src import xla_bridge as backends;"
        "print(json.dumps([backends.backends_are_initialized(), sorted(sys.modules)]))"
    )
    started, loaded = answer_of(code)
    assert not started
    assert set(loaded) & {"tensorflow", "seqio", "t5", "matplotlib", "torch", "gin"} == set()
