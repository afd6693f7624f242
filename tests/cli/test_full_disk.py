"""What cannot be written is said in one line, and the last good checkpoint stays."""

import shutil
import subprocess
import sys

import pytest

PATIENCE = 300


def largest_file(folder) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("room", ["none", "for the log", "for part of a checkpoint"])
def test_file_size_limit(micro, trained, tmp_path, room):
    """As on a full disk, writes fail at some size; nothing the process does can take the limit away."""
    limit = {
        "none": 0,
        # Appended to: more than all other files that training writes.
        "for the log": (trained / "metrics.jsonl").stat().st_size + 1000,
        "for part of a checkpoint": largest_file(trained / "checkpoints") // 2,
    }[room]
    (trained / "metrics.jsonl").write_text("")
    setting = ("train.num_steps=90", "train.checkpoint_every=10")
    done = micro.call(*micro.train(trained, *setting), largest_file_bytes=limit)
    assert done.returncode == 2, done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("pathways-lm: ")]
    assert len(ours) == 1
    assert str(trained) in ours[0]
    assert "Traceback" not in done.stderr
    assert 60 in micro.steps(trained)
    # With room again, it goes on where it stood.
    assert micro.main(*micro.train(trained, *setting)) == 0
    assert micro.steps(trained)[-1] == 90


SMALL_DISK = """
mount -t tmpfs -o size=1m small {folder}
cp -r {run} {folder}/run
# All but a few blocks are taken.
dd if=/dev/zero of={folder}/ballast bs=4096 status=none 2>/dev/null
truncate -s -{free} {folder}/ballast
{train}; echo $? > {out}/code
cp -r {folder}/run {out}/run
"""


@pytest.mark.slow
@pytest.mark.parametrize("free", [0, 16384, 65536])
def test_full_disk(micro, trained, tmp_path, free):
    """A real one, which needs a mount of its own."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    command = micro.train(tmp_path / "disk" / "run", "train.num_steps=90")
    train = " ".join(f"'{word}'" for word in [sys.executable, "-m", "pathways_lm", *command, "--cpu-devices", "1"])
    script = SMALL_DISK.format(folder=tmp_path / "disk", run=trained, out=tmp_path / "out", train=train, free=free)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    if not (tmp_path / "out" / "code").exists():
        pytest.skip(f"no mount of one's own on this machine: {done.stderr}")
    assert (tmp_path / "out" / "code").read_text() == "2\n", done.stderr
    assert done.stderr.count("pathways-lm: ") == 1
    assert "Traceback" not in done.stderr
    shutil.rmtree(trained)
    shutil.copytree(tmp_path / "out" / "run", trained)
    assert 60 in micro.steps(trained)
    assert micro.main(*micro.train(trained, "train.num_steps=90")) == 0
    assert micro.steps(trained)[-1] == 90
