"""A run in which all may change that a run may change, moved from mesh to mesh and from one process to two."""

import json

import pytest

# Two tasks whose shares follow their losses, and batches that grow. In fp32, so that losses compare closely.
CHANGING = (
    *("data.files=", "data.mixture=translation", "data.objective=text_to_text", "data.inputs=causal"),
    *("data.batch_ramp=8x12,16x12", "data.batch_size=32", "mixing.rule=loss_ratio", "mixing.interval=5"),
    *("train.precision=fp32", "train.eval_every=100", "train.checkpoint_every=12"),
)
STEPS = 36

pytestmark = pytest.mark.slow


def train(micro, run, steps, *settings):
    """Up to so many steps, on eight devices."""
    done = micro.call(*micro.train(run, *CHANGING, f"train.num_steps={steps}", *settings), "--cpu-devices", "8")
    assert done.returncode == 0, done.stderr


def balance(run):
    """What the last checkpoint knows of shares and rows: of these and the seed, batches are functions."""
    facts = json.loads(next((run / "checkpoints" / str(STEPS) / "facts").glob("*")).read_text())
    return facts["balance"]["mixture"], facts["skips"]


@pytest.fixture(scope="module")
def alone(micro, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / "run"
    train(micro, run, STEPS, "mesh.data=2", "mesh.tensor=4")
    assert len(balance(run)[0]["segments"]) > 5
    return run


def check(micro, run, alone):
    assert balance(run) == balance(alone)
    assert micro.losses(run) == pytest.approx(micro.losses(alone), rel=1e-5)
    assert list(micro.losses(run)) == list(range(1, STEPS + 1))


def test_from_mesh_to_mesh(micro, tmp_path, alone):
    run = tmp_path / "run"
    for steps, data, tensor in ((12, 1, 8), (24, 2, 4), (STEPS, 4, 2)):
        train(micro, run, steps, f"mesh.data={data}", f"mesh.tensor={tensor}")
    check(micro, run, alone)


def test_from_one_process_to_two(micro, tmp_path, alone):
    run = tmp_path / "run"
    train(micro, run, 12, "mesh.data=2", "mesh.tensor=4")
    arguments = micro.train(run, *CHANGING, f"train.num_steps={STEPS}", "mesh.pod=2", "mesh.tensor=2")
    done = micro.call("launch", "--processes", "2", "--cpu-devices", "8", "--", *arguments)
    assert done.returncode == 0, done.stderr
    check(micro, run, alone)
