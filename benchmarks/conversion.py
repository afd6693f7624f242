"""Memory of a conversion: GPT-2 medium's shape with random weights into a run folder, and out of it.

    python -m benchmarks.conversion

Needs `make peers` and Linux, which tells a process's memory in /proc. Prints a table in Markdown of peaks in MiB:
anonymous memory, which the process must have, and all that is resident, where files mapped into memory count too, which
the system drops when it needs the room. "Above small" is less the peak of a model of one narrow layer: Python and the
libraries. The bar is the model once and 1.3 times its largest tensor.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 2**20
SHAPES = {"small": (1, 64, 1, 512), "medium": (24, 1024, 16, 50257)}


def publish(folder: Path, layers: int, width: int, heads: int, vocab: int) -> tuple[float, float]:
    """A checkpoint as transformers writes it. MiB of the whole and of its largest tensor in fp32."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=width, n_head=heads, vocab_size=vocab, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    sizes = [tensor.numel() * 4 / MIB for tensor in model.parameters()]
    return sum(sizes), max(sizes)


def peaks(source: Path, target: Path) -> tuple[float, float]:
    """MiB of anonymous and of all resident memory at the peak of `pathways-lm convert`."""
    command = [sys.executable, "-m", "pathways_lm", "convert", str(source), str(target)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = {"RssAnon": 0, "VmHWM": 0}
    while process.poll() is None:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            field, _, value = line.partition(":")
            if field in peak:
                peak[field] = max(peak[field], int(value.split()[0]))
        time.sleep(0.005)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    return peak["RssAnon"] / 1024, peak["VmHWM"] / 1024


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| model | what | anonymous | above small | resident |\n|---|---|---|---|---|")
    base: dict[str, float] = {}
    for name, shape in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            published, run, back = (Path(folder, part) for part in ("published", "run", "back"))
            whole, largest = publish(published, *shape)
            for what, source, target in (("import", published, run), ("export", run, back)):
                anonymous, resident = peaks(source, target)
                above = anonymous - base.setdefault(what, anonymous)
                print(f"| {name} | {what} | {anonymous:,.0f} | {above:,.0f} | {resident:,.0f} |", flush=True)
    print(f"\n{whole:,.0f} MiB of parameters, the largest {largest:,.0f}: the bar is {whole + 1.3 * largest:,.0f}.")


if __name__ == "__main__":
    main()
