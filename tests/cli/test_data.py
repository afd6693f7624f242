"""A corpus written to a folder, shown and checked from the command line; and what goes wrong on the way."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pathways_lm.cli.show import Words, parts
from pathways_lm.config import DataConfig
from pathways_lm.data.build import write_cache
from pathways_lm.data.cache import plan_cache
from pathways_lm.models.batch import Batch

PATIENCE_SECONDS = 120
SHARDS = 5


@pytest.fixture(scope="module")
def large(tmp_path_factory, micro) -> DataConfig:
    """Random words that make some shards; their vocabulary is learned."""
    folder = tmp_path_factory.mktemp("large")
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(3_000)]
    for file in range(25):
        (folder / f"{file:02}.txt").write_text("\n".join(" ".join(draw.choices(words, k=12)) for _ in range(5_500)))
    return DataConfig(files=f"{folder}/*.txt", sequence_length=32, batch_size=8, cache_dir=str(folder / "cache"))


@pytest.fixture(scope="module")
def uninterrupted(large, tmp_path_factory) -> dict[str, bytes]:
    """Every file of its cache, written by this process alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    plan = plan_cache(large, 512)
    assert len([job for job in plan.jobs if job.split == "train"]) == SHARDS
    write_cache(folder, plan, 0, lambda advance: None)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


def command(micro, large: DataConfig, out: Path) -> list[str]:
    settings = [f"data.{name}={getattr(large, name)}" for name in ("files", "cache_dir")]
    return ["data", "cache", str(micro.config), "--out", str(out), "--workers", "2", *(f"--set={s}" for s in settings)]


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that write, by Linux's list of children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def wait_until(happened, process: subprocess.Popen | None = None) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)


def writing(out: Path) -> Callable[[], bool]:
    """Whether a shard has been begun since now, and is not finished."""
    old = set(out.glob(".begun*"))
    return lambda: not old.issuperset(out.glob(".begun*"))


def gone(workers: list[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers)


def finished(out: Path) -> dict[str, int]:
    """Shards by name, with the time at which each was written."""
    return {path.name: path.stat().st_mtime_ns for path in out.glob("*.array_record")}


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_sigkill(micro, large, uninterrupted, tmp_path, kills):
    """At random moments while shards are written; what was finished is not made again."""
    draw, out = random.Random(kills), tmp_path / "out"
    for number in range(kills):
        before = finished(out)
        with micro.start(*command(micro, large, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            wait_until(writing(out), process)
            workers = workers_of(process)
            wait_seconds = draw.uniform(0, 2)
            time.sleep(wait_seconds if number % 2 else wait_seconds / 50)
            assert process.poll() is None
            process.kill()
        assert process.returncode == -signal.SIGKILL
        # Those that wrote notice, and end.
        wait_until(gone(workers))
        assert not (out / "manifest.json").exists()
        assert finished(out).items() >= before.items()
    before = finished(out)
    done = micro.call(*command(micro, large, out))
    assert done.returncode == 0, done.stderr
    assert files(out) == uninterrupted
    # The journal may lack those that were finished in the moment of a kill, one of each worker.
    kept = [name for name, written in before.items() if finished(out)[name] == written]
    assert len(kept) >= len(before) - 2 * kills


def test_a_killed_worker_and_ctrl_c(micro, large, uninterrupted, tmp_path):
    """The worker is named by its shard; after each, the same command goes on, and ends as one that was left alone."""
    out = tmp_path / "out"
    with micro.start(*command(micro, large, out)) as process:
        wait_until(writing(out), process)
        os.kill(workers_of(process)[0], signal.SIGKILL)
        _, err = process.communicate()
    assert process.returncode == 2
    [said] = [line for line in err.splitlines() if line.startswith("pathways-lm: ")]
    assert "Traceback" not in err
    named = said.split("'")[1]
    assert named in uninterrupted
    assert not (out / named).exists()
    assert "was killed by SIGKILL; run the same command again" in said
    assert not list(out.glob(".begun*")) or not (out / "manifest.json").exists()

    with micro.start(*command(micro, large, out)) as process:
        wait_until(writing(out), process)
        workers = workers_of(process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err
    assert gone(workers)()
    assert not (out / "manifest.json").exists()

    done = micro.call(*command(micro, large, out))
    assert done.returncode == 0, done.stderr
    assert files(out) == uninterrupted


def test_full_disk(micro, large, uninterrupted, tmp_path):
    out = tmp_path / "out"
    done = micro.call(*command(micro, large, out), largest_file_bytes=100_000)
    assert done.returncode == 2
    [said] = [line for line in done.stderr.splitlines() if line.startswith("pathways-lm: ")]
    assert said == f"pathways-lm: --out='{out}' cannot be written: write() failed: File too large"
    assert "Traceback" not in done.stderr
    assert not list(out.glob("*.array_record"))


@pytest.fixture(scope="module")
def packed(micro, undisturbed, tmp_path_factory) -> Path:
    """The micro corpus in a folder."""
    out = tmp_path_factory.mktemp("packed") / "out"
    done = micro.call("data", "cache", str(micro.config), "--out", str(out), "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert f"train on it with --set data.cache={out}" in done.stdout
    return out


def test_training_on_it_is_training_on_the_corpus(micro, undisturbed, packed, tmp_path):
    run = tmp_path / "run"
    assert micro.main(*micro.train(run, f"data.cache={packed}", f"data.cache_dir={tmp_path / 'another'}")) == 0
    micro.assert_same_bits(run, undisturbed)


def test_a_run_goes_on_with_it(micro, trained, packed):
    assert micro.main(*micro.train(trained, f"data.cache={packed}", "train.num_steps=62")) == 0
    assert micro.steps(trained)[-1] == 62


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.sequence_length=16", "data.sequence_length=32, not 16"),
        ("model.vocab_size=400", "vocabulary='512 pieces learned from the corpus', not '400 pieces learned"),
        ("data.objective=prefix", "data.objective='causal', not 'prefix'"),
        ("data.files=other/*.txt", "data.files="),
        ("data.batch_size=5000", "less than one batch of data.batch_size=5000"),
    ],
)
@pytest.mark.usefixtures("no_compile")
def test_a_cache_for_something_else(micro, refused, packed, tmp_path, setting, words):
    message = refused(*micro.train(tmp_path / "run", f"data.cache={packed}", setting))
    assert words in message


def test_check(micro, refused, packed, capfd, tmp_path):
    assert micro.main("data", "check", str(packed)) == 0
    assert f"'{packed}' is whole" in capfd.readouterr().out.replace("\n", "")
    shard = packed / "files-train-00000-of-00001.array_record"
    whole = shard.read_bytes()
    try:
        shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert f"'{shard}' is damaged" in refused("data", "check", str(packed))
        # The command that wrote it mends it.
        assert micro.call("data", "cache", str(micro.config), "--out", str(packed)).returncode == 0
        assert shard.read_bytes() == whole
    finally:
        shard.write_bytes(whole)
    assert f"'{tmp_path}' holds no cache" in refused("data", "check", str(tmp_path))


def test_folders_that_cannot_be_written(micro, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    cache = ("data", "cache", str(micro.config), "--out")
    message = refused(*cache, f"{tmp_path}/file/below")
    assert f"--out='{tmp_path}/file/below' cannot be written: Not a directory" in message
    assert f"--out='{tmp_path}' holds files that are no cache's" in refused(*cache, str(tmp_path))
    assert "--workers must be at least 1, not 0" in refused(*cache, f"{tmp_path}/new", "--workers", "0")
    assert "--step must be at least 1, not 0" in refused("data", "show", str(micro.config), "--step", "0")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("of_run", [False, True])
def test_show(micro, undisturbed, packed, capfd, of_run):
    """The rows of a batch are text of the corpus, and the same each time."""
    target = [str(undisturbed)] if of_run else [str(micro.config), f"--set=data.cache={packed}"]
    capfd.readouterr()
    assert micro.main("data", "show", *target, "--step", "1000000", "--rows", "3") == 0
    out = capfd.readouterr().out
    assert out.startswith("step 1,000,000 reads rows 7,999,992 to 7,999,999: causal\n")
    assert [line.split(" ─")[0].split(":")[0] for line in out.splitlines() if line.startswith("row")] == [
        f"row 7,999,99{place} of files" for place in (2, 3, 4)
    ]
    texts = "".join(path.read_text() for path in sorted(micro.corpus.iterdir()))
    for part in out.split("  asked:\n")[1:]:
        lines = [line[4:] for line in part.splitlines() if line.startswith("    ")]
        # The first and the last line may be cut, and a mark stands where a document ends.
        assert all(line in texts for line in lines[1:-1] if "<eod>" not in line)


class Letters:
    """A vocabulary in which ids 2 to 27 are letters."""

    size, eod_id = 28, 1

    def decode(self, ids) -> str:
        return "".join(chr(ord("a") + token - 2) for token in ids)


def ids(text: str) -> np.ndarray:
    """Letters; `.` ends a document, digits 0 to 3 are extra ids, `_` is padding."""
    special = {".": 1, "_": 0}
    return np.array([special.get(c, 28 + int(c) if c.isdigit() else ord(c) - ord("a") + 2) for c in text])


@pytest.mark.parametrize(
    ("objective", "row", "expected"),
    [
        (
            "causal",
            Batch(ids("_ab_cd_"), ids("ab.cd.x"), np.array([1, 1, 1, 2, 2, 2, 3])),
            [("asked", "ab<eod>"), ("asked", "cd<eod>"), ("asked", "x")],
        ),
        (
            "prefix",
            Batch(ids("_abcd_"), ids("__cd._"), np.array([1, 1, 1, 1, 1, 0])),
            [("given", "ab"), ("asked", "cd<eod>")],
        ),
        (
            "span_corruption",
            Batch(ids("_3bc2e"), ids("3bc2e."), np.ones(6), encoder_tokens=ids("a3d2f._"), encoder_segments=ids("a")),
            [("read", "a<extra_id_0>d<extra_id_1>f<eod>"), ("asked", "<extra_id_0>bc<extra_id_1>e<eod>")],
        ),
        (
            "masked",
            Batch(ids("a0cx._"), ids("_b_d__"), np.array([1, 1, 1, 1, 1, 0])),
            [("read", "a<mask>cx<eod>"), ("asked", "1: 'b', 3: 'd'")],
        ),
    ],
)
def test_what_is_read_and_what_is_asked(objective, row, expected):
    row = row._replace(segments=row.segments.astype(np.int32))
    words = Words(Letters(), DataConfig(objective=objective, extra_ids=4))
    assert list(parts(row, words)) == expected
