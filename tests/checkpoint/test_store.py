"""Checkpoints of a small model's state, written from one mesh and read onto others."""

import functools
import json
import math
from typing import Any

import hypothesis
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import strategies
from orbax.checkpoint._src.path.atomicity import CommitFileTemporaryPath

from pathways_lm.checkpoint.retention import Keep
from pathways_lm.checkpoint.run_folder import write_atomically
from pathways_lm.checkpoint.store import Store
from pathways_lm.config import OptimizerConfig
from pathways_lm.errors import CheckpointError
from pathways_lm.train.optimizer import make_optimizer
from pathways_lm.train.schedule import make_schedule
from pathways_lm.train.state import TrainState, abstract_state, from_items, shardings, to_items

FACTS = {"data_fingerprint": "abc", "vocabulary_fingerprint": "def"}


def never(step, problem):
    pytest.fail(f"{step}: {problem}")


def layout(model, name="adafactor") -> TrainState:
    config = OptimizerConfig(name=name)
    return abstract_state(model, make_optimizer(config, make_schedule(config, 10), model))


def filled(abstract: TrainState) -> TrainState:
    """The state with numbers that are all different."""
    random = np.random.default_rng(5)

    def fill(leaf):
        value = random.integers(0, 1 << 30, leaf.shape) if leaf.dtype != np.float32 else random.normal(size=leaf.shape)
        return jax.device_put(value.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(fill, abstract)


@pytest.fixture(scope="module")
def saved(make, tmp_path_factory):
    """A run folder with the checkpoint of step 3, from eight devices as 2 x 4, and what is in it."""
    run = tmp_path_factory.mktemp("run")
    state = filled(layout(make("palm_2d", 2, 4)))
    store = Store(run)
    store.save(3, to_items(state), FACTS)
    store.close()
    return run, jax.device_get(state)


@pytest.mark.parametrize(
    ("preset", "data", "tensor"),
    [
        ("palm_2d", 2, 4),
        ("palm_2d", 4, 2),
        ("palm_2d", 8, 1),
        ("palm_2d", 1, 8),
        ("palm_2d", 1, 1),
        ("fsdp", 2, 4),
        ("fsdp", 8, 1),
        ("tensor_parallel", 4, 2),
    ],
)
def test_another_mesh(make, saved, preset, data, tensor):
    run, expected = saved
    abstract = layout(make(preset, data, tensor))
    store = Store(run, readonly=True)
    step, items, facts = store.restore(to_items(abstract), never)
    store.close()
    found = from_items(items)
    assert (step, facts) == (3, FACTS)
    assert jax.tree.map(lambda a: a.sharding, found) == shardings(abstract)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), expected)
    assert jax.tree.map(lambda a: a.dtype, found) == jax.tree.map(lambda a: a.dtype, expected)


def test_parameters_alone(make, saved):
    run, expected = saved
    store = Store(run, readonly=True)
    _, items, _ = store.restore({"params": make().abstract}, never)
    store.close()
    assert list(items) == ["params"]
    jax.tree.map(np.testing.assert_array_equal, items["params"], expected.params)


def test_some_arrays_alone(make, saved):
    """From a checkpoint of eight devices, without the others; what is not there is named."""
    run, state = saved
    [(path, expected), *_] = jax.tree.leaves_with_path(state.params)
    keys = [key.key for key in path]

    def part(last: str, shape: tuple[int, ...]) -> dict:
        tree: Any = jax.ShapeDtypeStruct(shape, np.float32)
        for key in [last, *reversed(keys[:-1])]:
            tree = {key: tree}
        return tree

    store = Store(run, readonly=True)
    step = store.newest(never)
    assert step == 3
    [(found_path, found)] = jax.tree.leaves_with_path(store.read(step, "params", part(keys[-1], expected.shape)))
    assert found_path == path
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(CheckpointError, match=r"/nothing .* and has none"):
        store.read(step, "params", part("nothing", expected.shape))
    with pytest.raises(CheckpointError, match=f"/{keys[-1]} .* and has it as"):
        store.read(step, "params", part(keys[-1], (7,)))
    store.close()


@pytest.fixture
def numbers():
    """A state of two numbers."""
    return {"params": {"w": jax.numpy.arange(2.0)}}


def abstract(items):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), items)


def test_the_last_ones_are_kept(tmp_path, numbers):
    store = Store(tmp_path, Keep(2))
    for step in (1, 2, 5, 9):
        store.save(step, jax.tree.map(lambda a, step=step: a + step, numbers), FACTS)
    store.wait()
    assert store.steps() == [5, 9]
    assert {path.stem for path in (tmp_path / "seals").iterdir()} >= {"5", "9"}
    step, items, _ = store.restore(abstract(numbers), never)
    assert step == 9
    np.testing.assert_array_equal(items["params"]["w"], [9.0, 10.0])
    store.close()


def test_the_regular_and_the_best_ones_are_kept(tmp_path, numbers):
    """Losses fall, rise, and fall again; a store knows the figures that the one before it was given."""
    losses = {10: 5.0, 20: 3.0, 30: math.nan, 40: None, 50: 3.5, 60: 4.0, 70: 3.2, 80: 9.0, 90: 8.0}
    keep = Keep(last=2, every=40, best=2)
    for part in ((10, 20, 30, 40), (50, 60, 70, 80, 90)):
        store = Store(tmp_path, keep)
        for step in part:
            figures = None if losses[step] is None else {"loss": losses[step]}
            store.save(step, jax.tree.map(lambda a, step=step: a + step, numbers), FACTS, figures)
        store.close()
    # 40 and 80 as multiples, 20 and 70 as the best, 80 and 90 as the last.
    assert store.steps() == [20, 40, 70, 80, 90]
    assert {int(path.stem) for path in (tmp_path / "seals").iterdir()} >= {20, 40, 70, 80, 90}
    # Each is whole, and is what was saved.
    readonly = Store(tmp_path, readonly=True)
    for step in store.steps():
        found, items, _ = readonly.restore(abstract(numbers), never, at_most=step + 5)
        assert found == step
        np.testing.assert_array_equal(items["params"]["w"], [step, step + 1.0])
    assert readonly.restore(abstract(numbers), never, at_most=19) is None


def by_hand(steps, scores, last, every, best):
    """The rule, told for one checkpoint at a time."""
    finite = [step for step in steps if scores[step] == scores[step]]

    def stays(step):
        newer = sum(other > step for other in steps)
        better = sum((scores[other], -other) < (scores[step], -step) for other in finite)
        return newer < last or (every and step % every == 0) or (step in finite and better < best)

    return {step for step in steps if stays(step)}


@hypothesis.given(
    scores=strategies.dictionaries(
        strategies.integers(0, 60), strategies.sampled_from([1.0, 2.0, 3.0, math.inf, math.nan])
    ),
    last=strategies.integers(1, 4),
    every=strategies.integers(0, 12),
    best=strategies.integers(0, 4),
)
def test_which_ones_stay(scores, last, every, best):
    steps = sorted(scores)
    kept = Keep(last, every, best).kept(steps, {step: {"loss": score} for step, score in scores.items()})
    assert kept == by_hand(steps, scores, last, every, best)
    assert set(steps[-last:]) <= kept


@pytest.mark.parametrize("by", ["accuracy", "bleu"])
def test_of_some_figures_more_is_better(tmp_path, numbers, by):
    """Those whose loss is the best are not kept for it; one without the figure never is."""
    figures = {1: {by: 10.0}, 2: {by: 80.0}, 3: {"loss": 0.1}, 4: {by: 30.0}, 5: {by: 80.0}, 6: {by: 20.0}}
    store = Store(tmp_path, Keep(last=1, best=2, by=by))
    for step, told in figures.items():
        store.save(step, numbers, FACTS, {"loss": step / 10, **told})
    store.close()
    assert store.steps() == [2, 5, 6]


def test_a_kept_one_is_checked_like_any_other(tmp_path, numbers):
    store = Store(tmp_path, Keep(last=1, best=1))
    for step, loss in ((1, 2.0), (2, 3.0), (3, 4.0)):
        store.save(step, numbers, FACTS, {"loss": loss})
    store.wait()
    assert store.steps() == [1, 3]
    # The figures by which it is ranked are sealed, too.
    (tmp_path / "checkpoints" / "1" / "metrics" / "metrics").write_text('{"loss": 1.0}')
    problems = []
    with pytest.raises(CheckpointError, match=r"steps 1$"):
        store.restore(abstract(numbers), lambda *problem: problems.append(problem), at_most=2)
    assert "file 'metrics/metrics' is not what was written" in problems[0][1]
    store.close()


def test_withdrawn_steps_can_be_done_anew(tmp_path, numbers):
    store = Store(tmp_path, Keep(5))
    for step in (1, 2, 3):
        store.save(step, numbers, FACTS)
    store.withdraw(after=1)
    assert store.steps() == [1]
    assert sorted(path.name for path in (tmp_path / "withdrawn").iterdir()) == ["2-0", "3-0"]
    store.save(2, jax.tree.map(lambda a: a + 7, numbers), FACTS)
    store.wait()
    step, items, _ = store.restore(abstract(numbers), never)
    assert step == 2
    np.testing.assert_array_equal(items["params"]["w"], [7.0, 8.0])
    store.close()


def test_a_store_that_marks_what_is_whole(tmp_path, numbers, monkeypatch):
    """As in a bucket, which cannot rename: checkpoints are written where they stay, and a file is added at the end."""
    options = functools.partial(ocp.CheckpointManagerOptions, temporary_path_class=CommitFileTemporaryPath)
    monkeypatch.setattr("pathways_lm.checkpoint.store.ocp.CheckpointManagerOptions", options)
    store = Store(tmp_path, Keep(2))
    for step in (1, 2, 3):
        store.save(step, numbers, FACTS)
    store.wait()
    assert store.steps() == [2, 3]
    assert store.restore(abstract(numbers), never)[0] == 3
    assert (tmp_path / "checkpoints" / "3" / "commit_success.txt").is_file()
    store.close()


def test_a_step_is_written_once(tmp_path, numbers):
    store = Store(tmp_path)
    store.save(4, numbers, FACTS)
    store.save(4, jax.tree.map(lambda a: a + 1, numbers), FACTS)
    store.close()
    _, items, _ = Store(tmp_path, readonly=True).restore(abstract(numbers), never)
    np.testing.assert_array_equal(items["params"]["w"], [0.0, 1.0])


def test_arrays_may_be_changed_while_they_are_written(tmp_path):
    """The step that follows takes their memory."""
    values = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    items = {"params": {"w": jax.device_put(values)}}
    wanted = abstract(items)
    overwrite = jax.jit(lambda a: a * 0, donate_argnums=0)
    store = Store(tmp_path)
    store.save(1, items, FACTS)
    jax.block_until_ready(overwrite(items["params"]["w"]))
    store.close()
    _, restored, _ = Store(tmp_path, readonly=True).restore(wanted, never)
    np.testing.assert_array_equal(restored["params"]["w"], values)


def test_there_is_a_seal_whenever_there_is_a_checkpoint(tmp_path, numbers, monkeypatch):
    """Also at the moment it appears: it is renamed to its name after its seal is there."""
    seen = []

    def watched(path, content):
        seen.append((path.name, [checkpoint.name for checkpoint in (tmp_path / "checkpoints").iterdir()]))
        write_atomically(path, content)

    monkeypatch.setattr("pathways_lm.checkpoint.seals.write_atomically", watched)
    store = Store(tmp_path)
    store.save(7, numbers, FACTS)
    store.close()
    ((name, present),) = seen
    assert name == "7.json"
    assert "7" not in present
    assert json.loads((tmp_path / "seals" / "7.json").read_text())


def test_nothing_there(tmp_path, numbers):
    store = Store(tmp_path)
    assert store.steps() == []
    assert store.restore(abstract(numbers), never) is None
    store.close()


def test_a_checkpoint_that_was_cut_short_is_not_seen(tmp_path, numbers):
    store = Store(tmp_path)
    store.save(1, numbers, FACTS)
    store.close()
    cut = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    (cut / "params").mkdir(parents=True)
    (cut / "params" / "_METADATA").write_text("{")
    readonly = Store(tmp_path, readonly=True)
    assert readonly.steps() == [1]
    assert cut.is_dir()
    store = Store(tmp_path)
    assert store.restore(abstract(numbers), never)[0] == 1
    store.save(2, numbers, FACTS)
    store.close()
    assert store.steps() == [1, 2] or store.steps() == [2]
    assert not cut.exists()


def test_all_damaged(tmp_path, numbers):
    store = Store(tmp_path, Keep(2))
    for step in (1, 2):
        store.save(step, numbers, FACTS)
    store.wait()
    for step in (1, 2):
        next((tmp_path / "checkpoints" / str(step) / "facts").glob("metadata")).write_text("{}")
    problems = []
    with pytest.raises(CheckpointError, match=r"all checkpoints .* damaged: steps 1, 2"):
        store.restore(abstract(numbers), lambda *problem: problems.append(problem))
    assert [step for step, _ in problems] == [2, 1]
    assert all("file 'facts/metadata' is not what was written" in problem for _, problem in problems)
    store.close()


@pytest.mark.parametrize("again", [1, 2])
def test_a_damaged_one_makes_room_for_itself(tmp_path, numbers, again):
    """Set aside, under a name of its own each time, it can be written again."""
    for attempt in range(again):
        store = Store(tmp_path, Keep(2))
        store.save(1, numbers, FACTS)
        store.save(2, numbers, FACTS)
        store.wait()
        (tmp_path / "checkpoints" / "2" / "params" / "_METADATA").unlink()
        assert store.restore(abstract(numbers), lambda *problem: None, writable=True)[0] == 1
        assert (tmp_path / "damaged" / f"2-{attempt}").is_dir()
        store.save(2, numbers, FACTS)
        store.close()
        assert Store(tmp_path, readonly=True).restore(abstract(numbers), never)[0] == 2


@pytest.mark.parametrize("folder", ["file/run", "/proc/run"])
def test_folder_that_cannot_be_written(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        Store(tmp_path / folder)
