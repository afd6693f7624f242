"""A run that begins from another's parameters: what it takes, what it draws, whose vocabulary it has."""

import importlib.util
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from pathways_lm.checkpoint.seals import Seals
from pathways_lm.cli.begin import begin
from pathways_lm.configure import load
from pathways_lm.mesh import make_mesh
from pathways_lm.models.model import Model
from pathways_lm.sharding import rules_of

THERE = importlib.util.spec_from_file_location("kill_many", Path(__file__).parent / "kill_many.py")
kill_many = importlib.util.module_from_spec(THERE)
THERE.loader.exec_module(kill_many)

MESHES = [("mesh.data=1",), ("mesh.data=4", "mesh.tensor=2"), ("mesh.data=2", "mesh.tensor=4", "mesh.rules=fsdp")]


def leaves(params) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(params)
    return {f"params{jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in found}


def taken_by(micro, run, *settings):
    """The parameters a run would begin with, its model, and what it says of them."""
    experiment = load(str(micro.config), [f"train.init_from={run}", *settings])
    model = Model(experiment.model, rules_of(experiment.mesh, make_mesh(experiment.mesh)))
    beginning = begin(experiment, model)
    return beginning.params(model, experiment.train.seed), model, beginning


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: " ".join(mesh))
def test_parameters_are_those_of_the_run_bit_for_bit(micro, undisturbed, mesh):
    params, model, beginning = taken_by(micro, undisturbed, *mesh)
    expected = {name: array for name, array in micro.arrays(undisturbed, 60).items() if name.startswith("params")}
    found = leaves(params)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name].tobytes() != expected[name].tobytes()] == []
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == jax.tree.map(lambda leaf: leaf.sharding, model.abstract)
    assert beginning.told(model) == f"begins from step 60 of '{undisturbed}'"


def test_what_is_not_taken_is_drawn_as_a_run_of_its_own_draws_it(micro, undisturbed):
    """An earlier checkpoint, its attention alone, on a mesh of eight."""
    settings = ("train.init_step=50", "train.init_parameters=attention,norm", "train.seed=7", *MESHES[1])
    params, model, beginning = taken_by(micro, undisturbed, *settings)
    old, drawn = micro.arrays(undisturbed, 50), leaves(model.initialise(7))
    found, taken = leaves(params), set()
    for name, array in found.items():
        if "'attention'" in name or "'norm'" in name:
            taken.add(name)
            assert array.tobytes() == old[name].tobytes()
            assert "scale" in name or array.tobytes() != drawn[name].tobytes()
        else:
            assert array.tobytes() == drawn[name].tobytes()
    assert 0 < len(taken) < len(found)
    assert f"{len(found) - len(taken)} of {len(found)} parameters drawn anew; not taken: " in beginning.told(model)


def test_a_tuned_run_begins_where_the_other_ended(micro, undisturbed, tmp_path):
    """The same validation loss to the last bit, at step 0, with an optimizer that has done nothing; the source is as it
    was."""
    before = sorted(path.name for path in undisturbed.rglob("*"))
    run = tmp_path / "tuned"
    assert micro.main(*micro.train(run, f"train.init_from={undisturbed}", "train.num_steps=1")) == 0
    source, tuned = micro.rows(undisturbed), micro.rows(run)
    (last,) = (row for row in source if row["kind"] == "validation" and row["step"] == 60)
    first = next(row for row in tuned if row["kind"] == "validation")
    assert (first["step"], first["loss"]) == (0, last["loss"])
    start = next(row for row in tuned if row.get("what") == "start")
    assert start["detail"] == f"begins from step 60 of '{undisturbed}'"
    # One step: a fresh optimizer has counted one update, and its momentum is that of one.
    arrays = micro.arrays(run, 1)
    assert arrays["training['step']"] == 1
    counts = [array for name, array in arrays.items() if "count" in name]
    assert all(count == 1 for count in counts)
    assert (run / "vocabulary.model").read_bytes() == (undisturbed / "vocabulary.model").read_bytes()
    assert sorted(path.name for path in undisturbed.rglob("*")) == before


def test_the_vocabulary_is_that_of_the_run(micro, undisturbed, tmp_path):
    """Of other texts, from which another would be learned. Once it has begun, the other run may go."""
    corpus, source = tmp_path / "corpus", tmp_path / "source"
    corpus.mkdir()
    for number, path in enumerate(sorted(micro.corpus.glob("*.txt"))):
        (corpus / path.name).write_text(f"{number} {number} ".join(path.read_text().split("a")))
    shutil.copytree(undisturbed, source)
    run = tmp_path / "tuned"
    line = micro.train(run, f"train.init_from={source}", f"data.files={corpus}/*.txt", "train.num_steps=2")
    assert micro.main(*line) == 0
    assert (run / "vocabulary.model").read_bytes() == (source / "vocabulary.model").read_bytes()
    shutil.rmtree(source)
    assert micro.main("evaluate", str(run)) == 0
    assert micro.main("data", "show", str(run)) == 0
    assert micro.main(*line, "--set=train.num_steps=3") == 0
    assert micro.steps(run) == [2, 3]


def test_a_killed_run_goes_on_from_its_own_checkpoint(micro, undisturbed, tmp_path):
    """SIGKILL, and the run it began from is gone: in every bit as if it had been left alone."""
    source, whole, killed = tmp_path / "source", tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(undisturbed, source)
    settings = (f"train.init_from={source}", "train.num_steps=20", "train.checkpoint_every=4", "optimizer.beta1=0.8")
    assert micro.call(*micro.train(whole, *settings)).returncode == 0
    with micro.start(*micro.train(killed, *settings), stdout=subprocess.DEVNULL) as process:
        kill_many.wait_for(process, lambda: bool(micro.steps(killed)))
        time.sleep(random.Random(0).uniform(0, 0.05))
        process.kill()
    at = micro.steps(killed)[-1]
    assert at < 20
    shutil.rmtree(source)
    last = micro.call(*micro.train(killed, *settings))
    assert last.returncode == 0, last.stderr
    assert f"resuming '{killed}' after step {at}" in last.stdout.replace("\n", "")
    micro.assert_same_bits(killed, whole, 20)
    assert micro.losses(killed) == micro.losses(whole)


def test_a_damaged_checkpoint_is_passed_over_and_told(micro, trained, tmp_path, capfd):
    for path in (trained / "checkpoints" / "60" / "params").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.write_bytes(path.read_bytes()[:-1])
    assert micro.main(*micro.train(tmp_path / "tuned", f"train.init_from={trained}", "train.num_steps=1")) == 0
    said = capfd.readouterr()
    assert "checkpoints/60' is damaged" in said.err and "beginning from step 50" in said.err
    assert "begins from step 50" in said.out


@pytest.mark.usefixtures("no_compile")
class TestRefused:
    """Each in one line, before anything is drawn or compiled, and the run folder stays empty."""

    @pytest.fixture
    def tune(self, micro, refused, tmp_path):
        def call(*settings: str) -> str:
            message = refused(*micro.train(tmp_path / "tuned", *settings))
            assert not (tmp_path / "tuned" / "config.json").exists()
            return message

        return call

    def test_no_run(self, tune, tmp_path):
        message = tune(f"train.init_from={tmp_path}/nothing")
        assert f"train.init_from='{tmp_path}/nothing' is not a run folder" in message

    def test_no_checkpoint(self, tune, trained):
        shutil.rmtree(trained / "checkpoints")
        assert f"train.init_from='{trained}' has no checkpoint yet" in tune(f"train.init_from={trained}")
        (trained / "checkpoints").mkdir()
        assert f"train.init_from='{trained}' has no checkpoint yet" in tune(f"train.init_from={trained}")

    def test_no_such_step(self, tune, undisturbed):
        message = tune(f"train.init_from={undisturbed}", "train.init_step=55")
        assert "train.init_step=55" in message and "it has 50, 60" in message

    def test_fields_of_no_run(self, tune):
        assert "train.init_step=5 is of the run that train.init_from names" in tune("train.init_step=5")
        assert "train.init_parameters='norm' is of" in tune("train.init_parameters=norm")

    def test_a_pattern_that_fits_nothing(self, tune, undisturbed):
        message = tune(f"train.init_from={undisturbed}", "train.init_parameters=embedding,atention")
        assert "train.init_parameters: no parameter fits 'atention'; names: attention" in message
        assert "has an empty entry" in tune(f"train.init_from={undisturbed}", "train.init_parameters=norm,,mlp")

    def test_all_that_does_not_fit_is_named_at_once(self, tune, undisturbed):
        message = tune(f"train.init_from={undisturbed}", "model.mlp_dim=48", "model.bias=True", "model.num_layers=3")
        parameters = {row["path"]: row["shape"] for row in json.loads((undisturbed / "parameters.json").read_text())}
        for path, shape in parameters.items():
            # Every stack has three layers now.
            named = f"wrong shape: {path} is {tuple(shape)}, not " in message
            assert named == (shape[0] == 2), path
        assert message.count("missing: ") >= 2 and "train.init_parameters" in message

    def test_parameters_that_fit_may_be_taken_alone(self, micro, undisturbed, tmp_path):
        with pytest.raises(pytest.fail.Exception, match="began to compile"):
            micro.main(
                *micro.train(tmp_path / "tuned", f"train.init_from={undisturbed}", "model.mlp_dim=48"),
                "--set=train.init_parameters=embedding,attention",
            )

    def test_another_vocabulary(self, tune, micro, undisturbed, tmp_path):
        from pathways_lm.data.vocabulary import train_vocabulary

        other = tmp_path / "other.model"
        other.write_bytes(train_vocabulary([path.read_text() for path in sorted(micro.corpus.glob("*.txt"))], 400))
        settings = (f"train.init_from={undisturbed}", f"data.vocabulary={other}")
        message = tune(*settings)
        assert f"'{undisturbed}' was trained with another vocabulary than data.vocabulary='{other}'" in message
        # Without embeddings, ids are of no concern.
        with pytest.raises(pytest.fail.Exception, match="began to compile"):
            micro.main(*micro.train(tmp_path / "tuned", *settings, "train.init_parameters=attention"))

    def test_a_checkpoint_without_a_vocabulary(self, tune, micro, trained, tmp_path):
        """As `convert` leaves one whose tokenizer is no SentencePiece model that keeps text."""
        (trained / "vocabulary.model").rename(tmp_path / "its.model")
        for step in (50, 60):
            folder = trained / "checkpoints" / str(step)
            (path,) = (path for path in (folder / "facts").iterdir() if "vocabulary_fingerprint" in path.read_text())
            path.write_text(json.dumps({**json.loads(path.read_text()), "vocabulary_fingerprint": ""}))
            Seals(epath.Path(trained / "seals")).write(step, epath.Path(folder), [50, 60])
        message = tune(f"train.init_from={trained}")
        assert "has no vocabulary; name the file it was trained with in data.vocabulary" in message
        settings = (f"train.init_from={trained}", f"data.vocabulary={tmp_path}/its.model")
        with pytest.raises(pytest.fail.Exception, match="began to compile"):
            micro.main(*micro.train(tmp_path / "tuned", *settings))

    def test_another_beginning_for_a_run_that_has_one(self, micro, trained, undisturbed, refused):
        message = refused(*micro.train(trained, f"train.init_from={undisturbed}"))
        assert f"was made with train.init_from='', not '{undisturbed}'" in message
