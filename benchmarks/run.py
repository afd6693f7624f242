"""Every benchmark of the CPU, with repeats chosen for a quarter of an hour, then the page: make bench"""

import subprocess
import sys
import time

COMMANDS = (
    ("train_step", "--repeats", "8"),
    ("moe_step", "--repeats", "5", "--precision", "fp32", "bf16"),
    ("decode", "--rounds", "2"),
    ("compile_time", "--repeats", "2"),
    ("startup", "--repeats", "1"),
    ("host_overhead", "--repeats", "2", "--steps", "15"),
    ("checkpoint", "--repeats", "2"),
    ("page",),
)


def main() -> None:
    began = time.perf_counter()
    for name, *arguments in COMMANDS:
        since = time.perf_counter()
        print(f"== {name} {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=True)
        print(f"== {name}: {time.perf_counter() - since:.0f} s\n", flush=True)
    print(f"all: {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
