"""Tables and the figure of docs/performance.md from benchmarks/results/: python -m benchmarks.page

Between `<!-- NAME -->` and `<!-- end -->` stands what this script writes from NAME.json; nothing there is typed by
hand. A result that is missing is named.
"""

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path("docs/performance.md")
PICTURE = "performance.png"

Figures = dict[str, Any]


def table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured(figures: Figures) -> str:
    """When, where and with what."""
    machine, versions = figures.get("machine"), figures.get("versions", {})
    parts = [figures["date"]] if "date" in figures else ["date not noted"]
    if "device" in figures:
        parts.append(figures["device"])
    if isinstance(machine, dict):
        parts.append(f"{machine['cores']} cores of {machine['processor']}")
        if "load_average" in machine:
            parts.append(f"load average at the end {machine['load_average']}")
    parts += [f"{name} {version}" for name, version in versions.items()]
    return "; ".join(parts) + "."


def beside(rows: list[Figures], name: str) -> str:
    """Steps of both sides."""
    told = []
    for row in rows:
        sides = "pathways_lm", "pytorch", "pytorch keeping its memory"
        seconds = [f"{row['median_seconds'][side]:.3f} s" for side in sides]
        low, high = row["pairwise_ratio_min_max"]
        told.append([row[name], *seconds, f"**{row['ratio']:.2f}×**", f"{low:.2f} to {high:.2f}"])
    heads = "", "pathways_lm", "PyTorch eager", "keeping its memory, too", "ratio to the faster", "pair by pair"
    return table(heads, told)


def train_step(figures: Figures) -> str:
    return beside(figures["rows"], "precision")


def moe_step(figures: Figures) -> str:
    return beside(figures["rows"], "name")


def decode(figures: Figures) -> str:
    rows = []
    for row in figures["rows"]:
        speed, (low, high) = row["tokens_per_second"], row["ratios"]
        rows.append(
            [
                row.get("precision", "fp32"),
                str(row["batch"]),
                f"{speed['ours']:.1f} tokens/s",
                f"{speed['torch']:.1f} tokens/s",
                f"**{row['ratio']:.2f}×**",
                f"{low:.2f} to {high:.2f}",
                f"{row['same_tokens']:.2%}",
            ]
        )
    heads = ("", "rows", "pathways_lm", "transformers", "ratio of medians", "round by round", "same tokens")
    return table(heads, rows)


def compile_time(figures: Figures) -> str:
    ratios = figures["ratios"]
    rows = [[depth, f"{seconds:.2f} s", f"{ratios[depth]:.2f}×"] for depth, seconds in figures["medians"].items()]
    return table(("layers", "to a compiled step", "of 2 layers"), rows)


def startup(figures: Figures) -> str:
    parts = list(figures["rows"][0])[2:]
    rows = [
        [row["start"], f"**{row['first_step']:.1f} s**", *(f"{row[part]:.1f} s" for part in parts)]
        for row in figures["rows"]
    ]
    return table(("start", "first step done after", *parts), rows)


def host_overhead(figures: Figures) -> str:
    medians = figures["medians"]
    rows = [
        ["the compiled step alone", f"{medians['bare'] * 1e3:.1f} ms a step", ""],
        ["what the host does for a step", f"{medians['host'] * 1e3:.2f} ms", f"{figures['host_overhead']:.2%}"],
    ]
    if "input_wait" in figures:
        rows.append(["waiting for a batch", "", f"{figures['input_wait']:.3%}"])
    return table(("", "time", "share"), rows)


def checkpoint(figures: Figures) -> str:
    paused = figures["pause"]
    rows = [
        [
            row["name"],
            f"{row['save_seconds']:.2f} s",
            f"{row['save_mb_per_second']:,.0f} MB/s",
            f"{row['restore_seconds']:.2f} s",
            f"{row['restore_mb_per_second']:,.0f} MB/s",
        ]
        for row in figures["rows"]
    ]
    told = (
        f"{figures['parameters']:,} parameters, {figures['bytes'] / 1e6:,.0f} MB with their moments. An asynchronous "
        f"save pauses training for {paused['save_call_seconds']:.2f} s, **{paused['pause_in_steps']:.2f} steps** of "
        f"{paused['step_seconds']:.2f} s; the steps beside the writing lose "
        f"{paused['lost_beside_writing_in_steps']:.2f} steps more, as it takes cores from them."
    )
    return f"{told}\n\n{table(('', 'save', '', 'restore', ''), rows)}"


def gpu_train(figures: Figures) -> str:
    rows = []
    for row in figures["rows"]:
        seconds, shares = (
            [row[what][side] for side in ("pathways_lm", "pytorch")] for what in ("median_seconds", "mfu")
        )
        both = [f"{took * 1e3:.0f} ms, {used:.1%}" for took, used in zip(seconds, shares, strict=True)]
        memory = [f"{row[what] / 2**30:.2f} GiB" for what in ("planned_bytes", "peak_bytes")]
        rows.append([row["name"], f"{row['length']:,}", *both, f"**{row['ratio']:.2f}×**", *memory])
    heads = "model", "length", "pathways_lm, MFU", "PyTorch compiled, MFU", "ratio", "memory planned", "measured"
    return table(heads, rows)


def gpu_fp8(figures: Figures) -> str:
    rows = []
    for row in figures["rows"]:
        seconds = [f"{row['seconds'][precision] * 1e3:.1f} ms" for precision in ("bf16", "fp8")]
        rows.append([row["name"], *seconds, f"**{row['ratio']:.2f}×**"])
    return table(("model", "bf16", "fp8", "ratio"), rows)


def gpu_decode(figures: Figures) -> str:
    rows = []
    for row in figures["rows"]:
        took = f"{row['seconds'] * 1e3:.2f} ms"
        rows.append(
            [row["name"], f"{row['rows']}", took, f"{row['rows'] / row['seconds']:,.0f}", f"{row['of_bound']:.1%}"]
        )
    return table(("model", "rows", "a token of each", "tokens/s", "of what memory allows"), rows)


_PAGE = (train_step, moe_step, decode, compile_time, startup, host_overhead, checkpoint, gpu_train, gpu_fp8, gpu_decode)
SECTIONS: dict[str, Callable[[Figures], str]] = {each.__name__: each for each in _PAGE}


def fill(page: str, name: str, text: str) -> str:
    """The page with what stands between a section's marks replaced. Raises SystemExit where it has no such marks."""
    marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not marks.search(page):
        raise SystemExit(f"{PAGE} has no '<!-- {name} -->' before an '<!-- end -->'")
    return marks.sub(lambda found: f"{found[1]}{text}\n{found[2]}", page)


def ratios(found: dict[str, Figures]) -> list[tuple[str, float, float, float]]:
    """Name, ratio, lowest and highest of every comparison with a peer."""
    bars = []
    for name, title, label in (("train_step", "dense step", "precision"), ("moe_step", "MoE step", "name")):
        for row in found.get(name, {}).get("rows", ()):
            bars.append((f"{title}, {row[label]}", row["ratio"], *row["pairwise_ratio_min_max"]))
    for row in found.get("decode", {}).get("rows", ()):
        bars.append((f"decoding, {row['batch']} rows, {row.get('precision', 'fp32')}", row["ratio"], *row["ratios"]))
    return bars


def draw(bars: list[tuple[str, float, float, float]], path: Path) -> None:
    """Bars of ratios: right of 1 this project is faster. Whiskers are the spread over pairs."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 0.8 + 0.35 * len(bars)), layout="constrained")
    names, middle, low, high = (list(column) for column in zip(*bars, strict=True))
    whiskers = [
        [max(m - each, 0) for m, each in zip(middle, low, strict=True)],
        [max(each - m, 0) for m, each in zip(middle, high, strict=True)],
    ]
    colours = ["#0072b2" if ratio >= 1 else "#d55e00" for ratio in middle]
    axes.barh(names, middle, color=colours, xerr=whiskers, ecolor="#4b5362", capsize=2)
    axes.axvline(1, color="#4b5362", linewidth=1)
    axes.set(xlabel="times as fast as the peer (PyTorch eager, transformers)", xlim=(0, max(high) * 1.1))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    found = {
        name: json.loads((RESULTS / f"{name}.json").read_text())
        for name in SECTIONS
        if (RESULTS / f"{name}.json").is_file()
    }
    page = PAGE.read_text()
    for name, tell in SECTIONS.items():
        if name not in found:
            page = fill(page, name, f"Not measured yet: `python -m benchmarks.{name}`.")
            continue
        page = fill(page, name, f"{tell(found[name])}\n\n{measured(found[name])}")
    PAGE.write_text(page)
    draw(ratios(found), PAGE.with_name(PICTURE))
    print(f"wrote {PAGE} and {PAGE.with_name(PICTURE)}")


if __name__ == "__main__":
    main()
