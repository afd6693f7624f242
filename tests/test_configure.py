"""Python files, gin files and overrides, into equal experiments; and every way to get one wrong."""

import ast
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathways_lm.config import Experiment, ModelConfig, TrainConfig, to_dict
from pathways_lm.configure import load, override, to_gin
from pathways_lm.errors import ConfigError

PYTHON = """
from pathways_lm.config import DataConfig, Experiment, ModelConfig, TrainConfig


def experiment() -> Experiment:
    return Experiment(
        name="small",
        model=ModelConfig(
            num_layers=2, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, vocab_size=300, remat="block"
        ),
        data=DataConfig(batch_size=12),
        train=TrainConfig(num_steps=50, z_loss=0.0),
    )
"""

GIN = """
Experiment.name = 'small'
Experiment.model = @ModelConfig()
Experiment.data = @DataConfig()
Experiment.train = @TrainConfig()

ModelConfig.num_layers = 2
ModelConfig.embed_dim = 16
ModelConfig.num_heads = 2
ModelConfig.head_dim = 8
ModelConfig.mlp_dim = 32
ModelConfig.vocab_size = 300
ModelConfig.remat = 'block'
DataConfig.batch_size = 12
TrainConfig.num_steps = 50
TrainConfig.z_loss = 0.0
"""

SMALL = Experiment(
    name="small",
    model=ModelConfig(num_layers=2, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, vocab_size=300),
    train=TrainConfig(num_steps=50),
)

CONFIGS = Path(__file__).parent.parent / "configs"


def refusal(*args) -> str:
    """The one line with which `load` refuses."""
    with pytest.raises(ConfigError) as caught:
        load(*args)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def file(tmp_path):
    """`file("x.py", text)` writes a file and returns its path."""

    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


@pytest.fixture(params=["py", "gin"])
def small(request, file):
    """The same experiment, in both languages."""
    return file(f"small.{request.param}", {"py": PYTHON, "gin": GIN}[request.param])


def test_both_languages(small):
    loaded = load(small)
    assert type(loaded) is Experiment
    assert type(loaded.model) is ModelConfig
    assert to_dict(loaded)["model"] == {**to_dict(SMALL)["model"], "remat": "block"}
    assert (loaded.model.num_layers, loaded.model.vocab_size) == (2, 300)
    assert (loaded.name, loaded.data.batch_size, loaded.train.num_steps, loaded.train.z_loss) == ("small", 12, 50, 0.0)


def test_equal(file):
    python, gin = load(file("a.py", PYTHON)), load(file("a.gin", GIN))
    assert python == gin
    assert hash(python) == hash(gin)


def test_overrides(small):
    """In order, the last one counts; the whole is checked at the end, so that two that belong together may change."""
    overrides = ["model.num_layers=3", "train.microbatches=5", "data.batch_size=10", "model.num_layers=4", "name=other"]
    loaded = load(small, overrides)
    assert (loaded.model.num_layers, loaded.train.microbatches, loaded.data.batch_size) == (4, 5, 10)
    assert loaded.name == "other"
    assert loaded.model.remat == "block"
    assert load(small, ["data.batch_size=10", "train.microbatches=5"]).data == loaded.data


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("data.files=corpus/*.jsonl", "files", "corpus/*.jsonl"),
        ("data.files=a=b", "files", "a=b"),
        ("data.files=", "files", ""),
        ("data.text_key=7", "text_key", "7"),
        ("data.seed=12", "seed", 12),
        ("data.validation_fraction=1e-2", "validation_fraction", 0.01),
    ],
)
def test_values_of_overrides(text, field, value):
    """Text stays text, also where it looks like a number."""
    changed = getattr(override(SMALL, [text]).data, field)
    assert changed == value
    assert type(changed) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model.num_layers", "--set model.num_layers must read section.field=value"),
        ("modle.num_layers=2", "--set modle.num_layers=2: no field 'modle.num_layers'; did you mean 'model'?"),
        ("model.num_layer=2", "--set model.num_layer=2: no field 'model.num_layer'; did you mean 'num_layers'?"),
        ("model.num_layers=two", "model.num_layers must be a whole number, not 'two'"),
        ("model.num_layers=2.0", "model.num_layers must be a whole number, not 2.0"),
        ("model.num_layers=True", "model.num_layers must be a whole number, not True"),
        ("model.num_layers=-1", "model.num_layers must be at least 1, not -1"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate must be a finite number, not nan"),
        ("optimizer.learning_rate=1e999", "optimizer.learning_rate must be a finite number, not inf"),
        ("train.microbatches=7", "data.batch_size=512 does not divide into train.microbatches=7"),
    ],
)
def test_wrong_overrides(text, said):
    with pytest.raises(ConfigError) as caught:
        override(SMALL, [text])
    assert str(caught.value) == said


def test_a_section_is_not_a_field():
    """To be told 'no field model; did you mean model?' helps nobody."""
    with pytest.raises(ConfigError) as caught:
        override(SMALL, ["model=3"])
    assert "did you mean 'model'" not in str(caught.value)


@given(st.text())
def test_any_override(value):
    """Whatever stands right of the sign, it is taken or refused in one line."""
    for target in ("model.num_layers", "optimizer.learning_rate", "optimizer.name", "name", "data.files"):
        try:
            override(SMALL, [f"{target}={value}"])
            said = ["nothing"]
        except ConfigError as error:
            said = str(error).splitlines()
        assert len(said) == 1


def test_gin_bindings(file):
    path = file("a.gin", GIN)
    loaded = load(path, ["train.num_steps=70"], ["ModelConfig.num_layers = 5", "TrainConfig.num_steps = 60"])
    assert (loaded.model.num_layers, loaded.train.num_steps) == (5, 70)
    assert load(path).model.num_layers == 2, "a binding must not outlive its call"


def test_gin_macros_and_includes(file, tmp_path):
    """What gin users expect of a gin file."""
    file("base.gin", GIN)
    path = file("a.gin", f"include '{tmp_path}/base.gin'\nWIDTH = 64\nModelConfig.embed_dim = %WIDTH\n")
    assert load(path).model.embed_dim == 64
    assert load(path, [], ["WIDTH = 32"]).model.embed_dim == 32


def test_bindings_for_a_python_file(file):
    message = refusal(file("a.py", PYTHON), [], ["ModelConfig.num_layers = 5"])
    assert "--gin.ModelConfig.num_layers" in message
    assert "--set" in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("ModelConfig.num_layer = 2", ["num_layer", "did you mean 'num_layers'"]),
        ("ModelConfg.num_layers = 2", ["ModelConfg"]),
        ("ModelConfig.num_layers = 0", ["model.num_layers must be at least 1, not 0"]),
        ("ModelConfig.num_layers = 'two'", ["model.num_layers must be a whole number, not 'two'"]),
        ("ModelConfig.num_layers = ", ["a.gin"]),
        ("ModelConfig.num_layers 3", ["a.gin"]),
        ("include 'nowhere.gin'", ["nowhere.gin"]),
        ("import no_such_module", ["no_such_module"]),
        ("Experiment.model = @TrainConfig()", ["model must be a ModelConfig"]),
        ("Experiment.model = 3", ["model must be a ModelConfig"]),
        ("ModelConfig.embed_dim = %WIDTH", ["WIDTH"]),
    ],
)
def test_wrong_gin(file, line, said):
    path = file("a.gin", GIN + line + "\n")
    message = refusal(path)
    assert message.startswith(path)
    for part in said:
        assert part in message


@pytest.mark.parametrize("binding", ["ModelConfig.num_layer = 2", "Nothing.a = 2", "ModelConfig.num_layers = 0", "= ="])
def test_wrong_bindings(file, binding):
    path = file("a.gin", GIN)
    assert refusal(path, [], [binding]).startswith(path)
    assert load(path).model.num_layers == 2


def test_missing_gin_field(file):
    message = refusal(file("a.gin", GIN.replace("TrainConfig.num_steps = 50", "")))
    assert "train.num_steps is not set" in message


def without(text: str) -> str:
    assert text in PYTHON
    return PYTHON.replace(text, "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (PYTHON.replace("num_layers", "num_layer"), "no field 'model.num_layer'; did you mean 'num_layers'?"),
        (PYTHON.replace("train=", "trian="), "no field 'trian'; did you mean 'train'?"),
        (without("num_steps=50, "), "train.num_steps is not set"),
        (without("        train=TrainConfig(num_steps=50, z_loss=0.0),\n"), "train is not set"),
        (PYTHON.replace("num_layers=2", "num_layers=0"), "model.num_layers must be at least 1, not 0"),
        (PYTHON.replace("def experiment", "def experimnt"), "experiment"),
        ("def experiment():\n    return 3\n", "experiment() must return an Experiment, not int"),
        ("def experiment():\n    pass\n", "experiment() must return an Experiment, not NoneType"),
        ("def experiment(:\n", "SyntaxError"),
        ("import no_such_module\n", "no_such_module"),
        ("def experiment():\n    return Expermient()\n", "Expermient"),
        ("", "experiment"),
    ],
)
def test_wrong_python(file, text, said):
    path = file("a.py", text)
    message = refusal(path)
    assert message.startswith(path)
    assert said in message


def test_wrong_files(file, tmp_path):
    nowhere = str(tmp_path / "nowhere.py")
    assert refusal(nowhere) == f"config file '{nowhere}' does not exist"
    text = file("a.yaml", "x: 1")
    assert refusal(text) == f"config file '{text}' must end in .py or .gin"
    refusal(str(tmp_path))
    (tmp_path / "binary.gin").write_bytes(b"\xff\xfe\x00")
    assert "binary.gin" in refusal(str(tmp_path / "binary.gin"))
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    assert "binary.py" in refusal(str(tmp_path / "binary.py"))


PYTHON_CONFIGS = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.py"))


def test_there_are_configs():
    assert {f"palm/{size}.py" for size in ("tiny", "8b", "62b", "540b")} <= set(PYTHON_CONFIGS)
    families = {name.partition("/")[0] for name in PYTHON_CONFIGS}
    assert families == {"palm", "megatron", "mt_nlg", "t5", "switch", "gshard", "glam", "st_moe"}
    twins = sorted(path.name for path in CONFIGS.rglob("*.gin"))
    assert twins == ["540b.gin", "62b.gin", "8b.gin", "tiny.gin"]


@pytest.mark.parametrize("name", PYTHON_CONFIGS)
def test_shipped_config(name, tmp_path):
    """Written as gin it loads equal; it survives JSON, and opens with the command that runs it."""
    python = CONFIGS / name
    loaded = load(str(python))
    gin = tmp_path / "same.gin"
    gin.write_text(to_gin(loaded))
    assert loaded == load(str(gin))
    assert json.loads(json.dumps(to_dict(loaded))) == to_dict(loaded)
    opening = ast.get_docstring(ast.parse(python.read_text())) or python.read_text().partition("\n\n")[0]
    assert f"pathways-lm train configs/{name}" in opening


@pytest.mark.parametrize("name", [name for name in PYTHON_CONFIGS if name.startswith("palm/")])
def test_shipped_twin(name):
    """PaLM's stand in both languages, to be compared."""
    gin = (CONFIGS / name).with_suffix(".gin")
    assert load(str(CONFIGS / name)) == load(str(gin))
    gin_opening = gin.read_text().partition("\n\n")[0]
    assert f"pathways-lm train configs/{Path(name).with_suffix('.gin')}" in gin_opening
    assert all(line.startswith("#") for line in gin_opening.splitlines())


PAPER = [("8b", 32, 4096, 16), ("62b", 64, 8192, 32), ("540b", 118, 18432, 48)]


@pytest.mark.parametrize(("size", "layers", "d", "heads"), PAPER)
def test_palm_is_the_papers(size, layers, d, heads):
    """arXiv:2204.02311, table 1 and section 5; 780 billion tokens, one epoch."""
    palm = load(str(CONFIGS / "palm" / f"{size}.py"))
    assert (palm.model.num_layers, palm.model.embed_dim, palm.model.num_heads) == (layers, d, heads)
    assert (palm.model.head_dim, palm.model.mlp_dim, palm.model.vocab_size, palm.data.sequence_length) == (
        256,
        4 * d,
        256_000,
        2048,
    )
    assert (palm.optimizer.name, palm.optimizer.learning_rate, palm.optimizer.hold_steps) == ("adafactor", 1e-2, 10_000)
    assert (palm.optimizer.clip_norm, palm.optimizer.weight_decay, palm.train.z_loss) == (1.0, 1.0, 1e-4)
