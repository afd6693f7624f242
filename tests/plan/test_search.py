"""Layouts that suit a machine, and what would make one fit."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pathways_lm import configure
from pathways_lm.cli import main
from pathways_lm.config import from_dict, to_dict
from pathways_lm.mesh import POD, abstract_mesh
from pathways_lm.plan.analytic.plan import expected_memory, fitting_work
from pathways_lm.plan.choices import layouts
from pathways_lm.plan.compilers import available
from pathways_lm.plan.layout import laid_out, layout_of, overrides
from pathways_lm.plan.machine import parse_machine
from pathways_lm.plan.remedies import remedies
from pathways_lm.plan.search import pareto, ranked
from pathways_lm.sharding import check_fit, rules_of

TINY = str(Path("configs/palm/tiny.py").resolve())
LARGE = str(Path("configs/palm/62b.py").resolve())
WORLDS = [("palm/8b", "v5e:4x4"), ("glam/0_1b_64e", "h100:1x4"), ("t5/3b", "v4-16"), ("megatron/bert_3_9b", "a100:16")]


@pytest.mark.parametrize(("path", "name"), WORLDS, ids=[path for path, _ in WORLDS])
def test_candidates_are_configs(path, name):
    """Every layout that is ranked is one that a run would take: all devices, dimensions that divide, room for it. Its
    overrides lead there from the config."""
    machine = parse_machine(name)
    experiment = configure.load(f"configs/{path}.py")
    count, found = ranked(experiment, machine)
    assert 0 < len(found) <= count
    assert [each.step_seconds for each in found] == sorted(each.step_seconds for each in found)
    for each in found[:: 1 + len(found) // 100]:
        changed = configure.override(experiment, each.changes)
        mesh = abstract_mesh(changed.mesh, machine.num_devices)
        check_fit(changed, rules_of(changed.mesh, mesh))
        assert tuple(mesh.shape.values()) == each.layout.sizes
        assert layout_of(changed, each.layout.sizes) == each.layout
        assert mesh.size == machine.num_devices
        assert each.peak <= machine.chip.memory_bytes


def test_layouts_differ():
    found = list(layouts(configure.load("configs/glam/0_1b_64e.py"), parse_machine("v5e:4x4")))
    assert len(set(found)) == len(found)
    assert {each.zero for each in found} == {0, 1, 2, 3}
    assert {each.dispatch for each in found} == {"all_to_all", "einsum"}


def test_overrides_of_a_layout_as_it_is():
    experiment = configure.load(TINY)
    layout = layout_of(experiment, (1, 1, 8, 1, 1, 1))
    assert overrides(experiment, layout) == []
    assert laid_out(experiment, layout).mesh.data == 8
    assert from_dict(to_dict(laid_out(experiment, layout))) == laid_out(experiment, layout)


def test_frontier():
    """Of all candidates, those that none beats in both."""
    _, found = ranked(configure.load("configs/palm/8b.py"), parse_machine("v5e:4x4"))
    kept = pareto(found)
    for each in found:
        beaten = [o for o in found if o.step_seconds <= each.step_seconds and o.peak < each.peak]
        beaten += [o for o in found if o.step_seconds < each.step_seconds and o.peak <= each.peak]
        assert (each in kept) == (not beaten) or any(
            (o.step_seconds, o.peak) == (each.step_seconds, each.peak) for o in kept
        )


def test_what_would_help():
    """Three single changes of different fields, the best first, each of which needs less."""
    experiment = configure.load(LARGE, ["mesh.zero=1"])
    machine = parse_machine("h100:4x8")
    now = expected_memory(fitting_work(experiment, machine), machine)
    assert not now.fits
    found = remedies(experiment, machine)
    assert len(found) == 3
    assert [each.peak for each in found] == sorted(each.peak for each in found)
    assert len({re.sub("=.*", "", each.changes[0]) for each in found}) == 3
    for each in found:
        assert len(each.changes) == 1
        changed = configure.override(experiment, each.changes)
        assert expected_memory(fitting_work(changed, machine), machine).peak == each.peak < now.peak


def test_what_is_said_of_a_plan_that_does_not_fit(tmp_path, capsys):
    arguments = ["plan", LARGE, "--machine", "h100:4x8", "--analytic", "--out", str(tmp_path)]
    assert main(arguments) == 1
    error = capsys.readouterr().err.splitlines()
    assert re.search(r"does not fit: a device would need [\d.]+ GiB and has 74.5, [\d.]+ too little", error[0])
    assert 2 <= error[1].count("--set") <= 3
    assert "GiB of a device by formulas" in error[1]


def test_a_search_by_formulas(tmp_path, capsys):
    """A table, a page with a picture, and overrides that the command takes again."""
    arguments = ["plan", TINY, "--machine", "h100:1x8", "--search", "--analytic", "--out", str(tmp_path)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "best: " in told
    page = (tmp_path / "search.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    found = json.loads((tmp_path / "search.json").read_text())
    assert found["frontier"][0]["changes"] == found["best"]
    changes = (tmp_path / "override.txt").read_text().split()
    assert changes == [f"--set={change}" for change in found["best"]]
    assert main(["plan", TINY, "--machine", "h100:1x8", "--analytic", "--out", str(tmp_path), *changes]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["roofline"]["step_seconds"] == pytest.approx(found["frontier"][0]["step_seconds"])


def test_a_machine_too_small(tmp_path, capsys):
    arguments = ["plan", LARGE, "--machine", "v5e:2x2", "--search", "--analytic", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "none fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"), [(["--price", "-1"], "--price"), (["--search", "--compile", "-2"], "--compile")]
)
def test_bad_input(arguments, words, capsys):
    assert main(["plan", TINY, "--machine", "h100:8", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("machine", ["v5e:2x2", "h100:1x4"])
def test_a_search_by_compiler(machine, tmp_path):
    if not available(parse_machine(machine)):
        pytest.skip("make compilers")
    command = [sys.executable, "-m", "pathways_lm", "plan", TINY, "--machine", machine, "--search", "--compile=1"]
    command += ["--set=model.unroll=1", "--set=model.num_layers=2", "--set=data.batch_size=8", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "search.json").read_text())
    plans = [each["plan"] for each in found["compiled"] if each["plan"]]
    assert len(plans) == 1
    assert plans[0]["memory"]["fits"]
    assert found["best"] == found["compiled"][-1]["changes"]


@pytest.mark.parametrize(
    ("machine", "pods"), [("h100:8x8", {1, 8}), ("h100:8", {1}), ("v5e:4x4", {1}), ("v4-64x2", {2})]
)
def test_islands_may_be_pods(machine, pods):
    """Slices of TPUs always are. Parameters whole everywhere are one layout, however islands are called."""
    found = list(layouts(configure.load("configs/palm/8b.py"), parse_machine(machine)))
    assert {layout[POD] for layout in found} == pods
    whole = {layout[POD] for layout in found if layout.zero == 0}
    assert whole == ({1} if 1 in pods else pods)
