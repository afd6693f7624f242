"""Folders that do not fit: one line, exit code 2, and the run stays as it was."""

import shutil
import subprocess
import sys

import pytest


def content(run):
    """Every file of a run and what is in it, but for the lock."""
    files = (path for path in run.rglob("*") if path.is_file() and path.name != "lock")
    return {path.relative_to(run): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("model.num_layers=3", "model.num_layers"),
        ("model.rope_base=500.0", "model.rope_base"),
        ("data.sequence_length=64", "data.sequence_length"),
        ("data.batch_size=16", "data.batch_size"),
        ("data.seed=1", "data.seed"),
        ("optimizer.name=adamw", "optimizer.name"),
        ("optimizer.factored=True", "optimizer.factored"),
        ("optimizer.moments=bfloat16", "optimizer.moments"),
        ("optimizer.beta1=0.0", "optimizer.beta1"),
    ],
)
def test_run_of_another_experiment(micro, trained, refused, no_compile, setting, field):
    before = content(trained)
    message = refused(*micro.train(trained, setting))
    assert field in message
    assert setting.partition("=")[2] in message
    assert str(trained) in message
    assert content(trained) == before


def test_a_longer_run_on_another_layout_is_the_same_experiment(micro, trained, capfd):
    settings = ("train.num_steps=61", "mesh.rules=fsdp", "model.remat=block", "optimizer.learning_rate=0.001")
    assert micro.main(*micro.train(trained, *settings)) == 0
    assert micro.steps(trained)[-1] == 61
    resumed = [row for row in micro.rows(trained) if row.get("what") == "resume"]
    assert resumed[-1]["step"] == 60
    assert all(setting.partition("=")[0] in resumed[-1]["detail"] for setting in settings)


def test_other_data(micro, trained, refused, no_compile, tmp_path):
    """The config is the same, and a file of the corpus is not."""
    shutil.copytree(micro.corpus, tmp_path / "corpus")
    config = tmp_path / "micro.py"
    config.write_text(micro.config.read_text().replace(str(micro.corpus), str(tmp_path / "corpus")))
    text = (trained / "config.json").read_text()
    (trained / "config.json").write_text(text.replace(str(micro.corpus), str(tmp_path / "corpus")))
    # In the text that is trained on, one letter of one word.
    file = tmp_path / "corpus" / "assert.txt"
    file.write_text(file.read_text().replace("debugging", "debuggang", 1))
    before = content(trained)
    message = refused("train", str(config), "--run", str(trained))
    assert "other data" in message or "another vocabulary" in message
    assert content(trained) == before


def test_a_finished_run(micro, trained, capfd):
    assert micro.main(*micro.train(trained)) == 0
    assert "trained to step 60; raise train.num_steps" in capfd.readouterr().out
    assert micro.steps(trained) == [50, 60]


def test_vocabulary_of_another_run(micro, trained, refused, no_compile, tmp_path):
    from pathways_lm.data.vocabulary import train_vocabulary

    texts = [path.read_text() for path in sorted(micro.corpus.glob("*.txt"))]
    (trained / "vocabulary.model").write_bytes(train_vocabulary(texts, 400))
    message = refused("generate", str(trained), "--prompt", "a")
    assert str(trained / "vocabulary.model") in message
    (trained / "vocabulary.model").write_bytes(b"what?")
    assert str(trained / "vocabulary.model") in refused("generate", str(trained), "--prompt", "a")
    (trained / "vocabulary.model").unlink()
    assert str(trained / "vocabulary.model") in refused("evaluate", str(trained))


@pytest.mark.parametrize("arguments", [["generate", "--prompt", "a"], ["evaluate"], ["report"]], ids=lambda a: a[0])
def test_no_run_folder(tmp_path, refused, no_compile, arguments):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "nothing", tmp_path, tmp_path / "file"):
        message = refused(arguments[0], str(folder), *arguments[1:])
        assert str(folder) in message
        assert "not a run folder" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_no_checkpoint_yet(trained, refused, no_compile, command):
    arguments = [command, str(trained), *(["--prompt", "a"] if command == "generate" else [])]
    shutil.rmtree(trained / "checkpoints")
    assert "no checkpoint yet" in refused(*arguments)
    (trained / "checkpoints" / "10.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert "no checkpoint yet" in refused(*arguments)


@pytest.mark.parametrize("config", ["", "{", "[]", "null", "3", '{"name": 3}', '{"model": 3}', "\xff"])
def test_broken_config_of_a_run(trained, refused, no_compile, config):
    (trained / "config.json").write_text(config, encoding="latin-1")
    assert str(trained) in refused("generate", str(trained), "--prompt", "a")


def test_two_processes_in_one_folder(micro, trained, refused, no_compile):
    holder = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", holder, str(trained / "lock")]
    before = content(trained)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        message = refused(*micro.train(trained, "train.num_steps=70"))
        process.communicate(b"\n")
    assert f"'{trained}' is being trained by" in message
    assert content(trained) == before
    # The lock goes with its holder.
    assert micro.main(*micro.train(trained)) == 0


def test_the_holder_is_named(micro, trained, refused, no_compile):
    from pathways_lm.checkpoint.run_folder import RunFolder

    with RunFolder(trained).lock():
        assert "process " in refused(*micro.train(trained))


@pytest.mark.parametrize("below", ["/proc/pathways_lm/run", "/dev/null/run", "/dev/null"])
def test_folder_that_cannot_be_made(micro, refused, no_compile, below):
    assert f"'{below}'" in refused(*micro.train(below))
