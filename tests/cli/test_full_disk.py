"""What cannot be written is said in one line, and the last good checkpoint stays."""

import shutil
import subprocess
import sys
import time

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
    # How much of a checkpoint goes into one file depends on timing: some may fit.
    kept = micro.steps(trained)
    assert 60 <= kept[-1] < 90
    assert room == "for the log" or 60 in kept
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


READ_ONLY = """
mkdir -p {run}/checkpoints
mount --bind {run}/checkpoints {run}/checkpoints
{train} & pid=$!
until test -d {run}/checkpoints/20; do sleep 0.05; kill -0 $pid || break; done
# Not while a file there is being written.
until mount -o remount,bind,ro {run}/checkpoints 2>/dev/null; do sleep 0.05; done
wait $pid; echo $? > {out}/code
ls {run}/checkpoints > {out}/left
"""


@pytest.mark.slow
def test_read_only(micro, tmp_path):
    """Checkpoints can't be written any more, also not by root: their folder is mounted anew while a run goes on."""
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    command = micro.train(run, "train.num_steps=100000")
    train = " ".join(f"'{word}'" for word in [sys.executable, "-m", "pathways_lm", *command, "--cpu-devices", "1"])
    script = READ_ONLY.format(run=run, out=out, train=train)
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE)
    if not (out / "code").exists():
        pytest.skip(f"no mount of one's own on this machine: {done.stderr}")
    assert (out / "code").read_text() == "2\n", done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("pathways-lm: ")]
    assert f"could not be written to '{run / 'checkpoints'}'" in line
    assert "Read-only file system" in line
    assert "Traceback" not in done.stderr
    last = micro.steps(run)[-1]
    assert str(last) in (out / "left").read_text().split()
    # Nothing that was written is lost: it goes on from there.
    assert micro.main(*micro.train(run, f"train.num_steps={last + 1}")) == 0
    assert micro.steps(run)[-1] == last + 1


def test_the_folder_of_checkpoints_is_gone(micro, tmp_path):
    """A file in its place, as when a disk under it went away; the run was started before."""
    run, aside = tmp_path / "run", tmp_path / "aside"
    with micro.start(*micro.train(run, "train.num_steps=100000")) as process:
        while 20 not in micro.steps(run):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        (run / "checkpoints").rename(aside)
        (run / "checkpoints").write_text("")
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    [line] = [line for line in err.splitlines() if line.startswith("pathways-lm: ")]
    assert "Traceback" not in err
    assert f"could not be written to '{run / 'checkpoints'}'" in line
    (run / "checkpoints").unlink()
    aside.rename(run / "checkpoints")
    last = micro.steps(run)[-1]
    assert last >= 20
    assert micro.main(*micro.train(run, f"train.num_steps={last + 1}")) == 0
    assert micro.steps(run)[-1] == last + 1
