"""A plausible run folder, written by hand and not by the trainer."""

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

START = 1_780_000_000.0
YARDSTICKS = {"gzip -9": 2.214, "xz -9": 1.973}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_row(step: int, time: float, loss: float, rate: float = 0.01) -> dict[str, Any]:
    return {
        "kind": "train",
        "step": step,
        "time": time,
        "loss": loss,
        "z_loss": 0.002,
        "grad_norm": 0.3 + 4 / math.sqrt(step + 1),
        "learning_rate": rate,
        "param_norm": 120 + math.sqrt(step),
        "tokens": step * 4096,
        "tokens_per_second": 14_000.0 + step % 7 * 100,
        "step_seconds": 0.29,
        "mfu": 0.31,
    }


def metrics() -> list[dict[str, Any]]:
    """2,000 steps, killed at 1,230 and resumed from 1,000 an hour later."""
    noise = random.Random(0)

    def part(first: int, last: int, begin: float) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for step in range(first + 10, last + 1, 10):
            time = begin + 3 + (step - first) * 0.29
            loss = 2.1 + 7 * math.exp(-step / 60) + 18 / math.sqrt(step + 20)
            rate = 0.02 / max(1, math.sqrt(step / 400))
            rows.append(
                train_row(step, time, loss + noise.gauss(0, 0.08), rate)
                | {"grad_norm": noise.lognormvariate(-0.5, 0.3)}
            )
            if step % 250 == 0:
                rows.append(
                    {
                        "kind": "validation",
                        "step": step,
                        "time": time,
                        "loss": loss + 0.05,
                        "bits_per_byte": (loss + 0.05) * 0.68,
                        "seconds": 2.5,
                    }
                )
                rows.append(
                    {"kind": "event", "step": step, "time": time, "what": "checkpoint", "detail": f"checkpoints/{step}"}
                )
        return rows

    start = {"kind": "event", "step": 0, "time": START, "what": "start", "detail": "fresh"}
    resume = {"kind": "event", "step": 1000, "time": START + 3600, "what": "resume", "detail": "from checkpoints/1000"}
    untrained = {
        "kind": "validation",
        "step": 0,
        "time": START + 2,
        "loss": 15.9,
        "bits_per_byte": 10.8,
        "seconds": 2.0,
    }
    second = part(1000, 2000, START + 3600)
    stop = {"kind": "event", "step": 2000, "time": second[-1]["time"], "what": "stop", "detail": "all steps done"}
    return [start, untrained, *part(0, 1230, START), resume, *second, stop]


def samples() -> list[dict[str, Any]]:
    texts = (
        "e  e t\n\n   se r(o  n   ,e  s",
        "self the of\n    the self.return(self)\n\n    def the = self",
        "get(self, name):\n        return self._name\n\n    def set(self, name):\n        self._self = name",
        'get(self, key, default=None):\n        """Return the value of key."""\n        if key not in self:\n'
        "            return default\n        return self._data[key]\n\n"
        "    def __len__(self):\n        return len(self._data)",
    )
    return [{"step": 250 * i, "time": START, "prompt": "def ", "text": texts[min(3, i // 2)]} for i in range(1, 9)]


CONFIG = {
    "name": "palm-tiny",
    "model": {
        "num_layers": 8,
        "embed_dim": 256,
        "num_heads": 4,
        "head_dim": 64,
        "mlp_dim": 1024,
        "vocab_size": 4096,
        "remat": "none",
    },
    "mesh": {"data": -1, "tensor": 1, "rules": "palm_2d"},
    "data": {
        "mixture": "python_text",
        "files": "",
        "sequence_length": 256,
        "batch_size": 16,
        "cache_dir": "~/.cache/pathways_lm",
    },
    "optimizer": {"name": "adafactor", "schedule": "rsqrt", "learning_rate": 0.02, "hold_steps": 400},
    "train": {"num_steps": 2000, "seed": 0, "precision": "fp32", "z_loss": 1e-4},
    "sample": {"prompt": "def ", "num_tokens": 64, "temperature": 0.7},
}

FACTS = {
    "version": "0.1.0",
    "jax": "0.10.2",
    "flax": "0.12.8",
    "python": "3.11.7",
    "device_kind": "cpu",
    "num_devices": 8,
    "num_processes": 2,
    "mesh": {"data": 4, "tensor": 2},
    "num_params": 8_126_720,
    "vocab_fingerprint": "5f0c21ab9e",
    "corpus": {
        "tasks": {
            "python_docs": {
                "train": {"documents": 75, "bytes": 460_120, "tokens": 131_077, "sequences": 512},
                "validation": {"documents": 3, "bytes": 9_830, "tokens": 2_790, "sequences": 11},
            },
            "python_stdlib": {
                "train": {"documents": 640, "bytes": 11_520_400, "tokens": 3_491_030, "sequences": 13_637},
                "validation": {"documents": 14, "bytes": 221_377, "tokens": 67_084, "sequences": 262},
            },
        },
        "validation_bytes": 231_207,
        "yardsticks": YARDSTICKS,
    },
}

PARAMETERS = [
    {
        "path": "embedding/table",
        "shape": [4096, 256],
        "spec": "P('tensor', 'data')",
        "dtype": "float32",
        "std": 1.0,
        "count": 1_048_576,
    },
    {
        "path": "blocks/attention/query",
        "shape": [8, 256, 4, 64],
        "spec": "P(None, 'data', 'tensor', None)",
        "dtype": "float32",
        "std": 0.0625,
        "count": 524_288,
    },
    {
        "path": "blocks/attention/key_value",
        "shape": [8, 256, 2, 64],
        "spec": "P(None, 'data', None, None)",
        "dtype": "float32",
        "std": 0.0625,
        "count": 262_144,
    },
    {
        "path": "blocks/mlp/up",
        "shape": [8, 256, 2, 1024],
        "spec": "P(None, 'data', None, 'tensor')",
        "dtype": "float32",
        "std": 0.0625,
        "count": 4_194_304,
    },
    {
        "path": "blocks/mlp/down",
        "shape": [8, 1024, 256],
        "spec": "P(None, 'tensor', 'data')",
        "dtype": "float32",
        "std": 0.03125,
        "count": 2_097_152,
    },
    {"path": "norm/scale", "shape": [256], "spec": "P(None)", "dtype": "float32", "std": 0.0, "count": 256},
]


def write_run(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "run.json").write_text(json.dumps(FACTS))
    (folder / "parameters.json").write_text(json.dumps(PARAMETERS))
    write_lines(folder / "metrics.jsonl", metrics())
    write_lines(folder / "samples.jsonl", samples())
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A finished run that was killed and resumed once."""
    return write_run(tmp_path / "palm-tiny")


@pytest.fixture
def plausible() -> SimpleNamespace:
    """What `run_folder` was made from, and the means to make it otherwise."""
    return SimpleNamespace(
        config=CONFIG,
        facts=FACTS,
        parameters=PARAMETERS,
        rows=metrics(),
        train_row=train_row,
        write_lines=write_lines,
    )
