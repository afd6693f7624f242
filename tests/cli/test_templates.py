"""The templates of launch/: that they can be read, and that what they run is a command line."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from pathways_lm.cli import parse
from pathways_lm.configure import load

TEMPLATES = Path(__file__).parents[2] / "launch"
SCRIPTS = ("slurm.sh", "tpu_vm.sh")


def command_lines(text: str) -> list[list[str]]:
    """What stands behind `pathways-lm`, variables as numbers, which every option takes."""
    found = []
    for line in text.splitlines():
        _, begins, rest = line.partition("pathways-lm train ")
        if begins and not line.startswith("#"):
            found.append(["train", *shlex.split(re.sub(r"\$\{?\w+\}?", "1", rest))])
    return found


def test_all_are_tested():
    assert {path.name for path in TEMPLATES.iterdir()} == {*SCRIPTS, "jobset.yaml"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name):
    path = TEMPLATES / name
    assert subprocess.run(["bash", "-n", path], capture_output=True).stderr == b""
    [line] = command_lines(path.read_text())
    parsed = parse(line)
    assert parsed.run
    assert parsed.coordinator is None
    # The first line says how it is called, the next what is to be filled in.
    head = path.read_text().splitlines()
    assert f"launch/{name} configs/palm/8b.py" in head[1]
    assert "Fill in" in path.read_text()


@pytest.mark.parametrize(("code", "starts"), [(0, 1), (2, 1), (143, 1), (75, 3)])
@pytest.mark.parametrize("name", SCRIPTS)
def test_which_codes_start_again(tmp_path, name, code, starts):
    """With commands of the cluster that run here what they are given, and a program that ends as it is told."""
    log = tmp_path / "log"
    commands = {
        "srun": 'shift; exec "$@"',
        "scontrol": f"echo scontrol $* >> {log}",
        "gcloud": 'last="${@: -1}"; exec bash -c "${last#--command=}"',
        "pathways-lm": f"echo $* >> {log}; exit {code}",
        "sleep": "",
    }
    for command, body in commands.items():
        (tmp_path / command).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / command).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RESTARTS": "2", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", TEMPLATES / name, "c.py", "place"], env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    lines = log.read_text().splitlines()
    assert sum(line.startswith("train c.py") for line in lines) == starts
    assert ("scontrol requeue 7" in lines) == (name == "slurm.sh" and code == 143)


def test_jobset():
    yaml = pytest.importorskip("yaml")
    text = (TEMPLATES / "jobset.yaml").read_text()
    whole = yaml.safe_load(text)
    assert whole["kind"] == "JobSet"
    [job] = whole["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    [container] = spec["template"]["spec"]["containers"]
    environment = {each["name"]: each["value"] for each in container["env"]}
    # What must be the same in three places; and the name of the first pod in the set's own network.
    assert spec["parallelism"] == spec["completions"] == int(environment["NUM_PROCESSES"])
    name = whole["metadata"]["name"]
    host, _, port = environment["COORDINATOR"].partition(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"
    assert [int(port)] == [each["containerPort"] for each in container["ports"]]
    [rule] = spec["podFailurePolicy"]["rules"]
    assert (rule["onExitCodes"]["values"], rule["onExitCodes"]["containerName"]) == ([2], container["name"])
    [line] = command_lines(container["command"][-1])
    parsed = parse(line)
    assert (parsed.coordinator, parsed.num_processes, parsed.process_id) == ("1", 1, 1)
    config = Path(__file__).parents[2] / parsed.config
    assert load(str(config), parsed.overrides, []).train.checkpoint_dir.startswith("gs://")
