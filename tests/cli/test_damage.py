"""Checkpoints damaged after they were written: named, set aside, and the one before is used."""

import shutil
from pathlib import Path

import pytest


def largest(checkpoint: Path) -> Path:
    """The file with most of the numbers."""
    return max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(checkpoint: Path) -> Path:
    file = largest(checkpoint)
    file.write_bytes(file.read_bytes()[:-1])
    return file


def flip_one_bit(checkpoint: Path) -> Path:
    file = largest(checkpoint)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file


def lose_a_file(checkpoint: Path) -> Path:
    file = checkpoint / "training" / "_METADATA"
    file.unlink()
    return file


def lose_the_parameters(checkpoint: Path) -> Path:
    shutil.rmtree(checkpoint / "params")
    return checkpoint / "params" / "_METADATA"


@pytest.mark.parametrize("damage", [truncate, flip_one_bit, lose_a_file, lose_the_parameters])
def test_training_goes_on_from_the_checkpoint_before(micro, undisturbed, trained, capfd, damage):
    newest = trained / "checkpoints" / "60"
    damaged = damage(newest)
    assert micro.main(*micro.train(trained)) == 0
    out, err = capfd.readouterr()
    named = [line for line in out.splitlines() if str(newest) in line]
    assert len(named) == 1
    assert "is damaged" in named[0]
    assert named[0].endswith("using step 50")
    assert damaged.name in named[0] or damage is lose_the_parameters
    assert err == ""
    assert [row["step"] for row in micro.rows(trained) if row.get("what") == "damaged"] == [60]
    assert (trained / "damaged" / "60-0").is_dir()
    assert micro.steps(trained) == [50, 60]
    micro.assert_same_bits(trained, undisturbed)
    assert micro.losses(trained) == micro.losses(undisturbed)


def test_generate_uses_the_checkpoint_before_and_moves_nothing(micro, trained, capfd):
    flip_one_bit(trained / "checkpoints" / "60")
    assert micro.main("generate", str(trained), "--prompt", "The", "--num-tokens", "2") == 0
    out, err = capfd.readouterr()
    assert out.startswith("The")
    assert err.count("\n") == 1
    assert str(trained / "checkpoints" / "60") in err
    assert micro.steps(trained) == [50, 60]
    assert micro.main("evaluate", str(trained)) == 0
    assert capfd.readouterr().out.startswith("step 50\n")


@pytest.mark.parametrize("command", ["train", "generate"])
def test_all_damaged(micro, trained, refused, command):
    for step in (50, 60):
        truncate(trained / "checkpoints" / str(step))
    arguments = micro.train(trained) if command == "train" else ["generate", str(trained), "--prompt", "a"]
    message = refused(*arguments, lines=1 if command == "train" else 3)
    assert str(trained / "checkpoints") in message
    assert "50" in message
    assert "60" in message


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"params/_METADATA": 3}'])
def test_a_damaged_seal_is_damage(micro, trained, capfd, content):
    """What it vouched for cannot be checked any more."""
    seal = trained / "seals" / "60.json"
    seal.unlink() if content is None else seal.write_text(content)
    assert micro.main("evaluate", str(trained)) == 0
    out, err = capfd.readouterr()
    assert out.startswith("step 50\n")
    assert err.count("\n") == 1
    assert str(trained / "checkpoints" / "60") in err


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "commit_success.txt"])
@pytest.mark.parametrize("content", [None, "", "{"])
def test_what_orbax_notes_beside_the_items_is_not_needed(micro, trained, capfd, name, content):
    note = trained / "checkpoints" / "60" / name
    note.unlink() if content is None else note.write_text(content)
    assert micro.main("evaluate", str(trained)) == 0
    out, err = capfd.readouterr()
    assert out.startswith("step 60\n")
    assert "Traceback" not in err
