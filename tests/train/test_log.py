"""What a run writes down can be read back, also after it was cut off."""

import io
import json
import struct

import pytest
from rich.console import Console

from pathways_lm.train.log import Log

FIGURES = {"loss": 2.5, "tokens_per_second": 1000.0, "learning_rate": 0.01}


def open_log(folder, step=0, terminal=False) -> tuple[Log, io.StringIO]:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=100)
    log = Log(folder / "metrics.jsonl", folder / "samples.jsonl", folder / "tensorboard", console, 100, step)
    return log, shown


def write_some(folder, step=1) -> str:
    log, shown = open_log(folder, step)
    with log:
        log.event(0, "start", "a: 1 -> 2")
        log.train(step, FIGURES)
        log.validation(step, {"loss": 2.25, "bits_per_byte": 1.5}, {"gzip -9": 3.0})
        log.sample(step, "def ", "näh:\n")
    return shown.getvalue()


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_and_samples(tmp_path):
    shown = write_some(tmp_path, 7)
    event, train, validation = rows(tmp_path / "metrics.jsonl")
    assert {**event, "time": 0} == {"kind": "event", "step": 0, "time": 0, "what": "start", "detail": "a: 1 -> 2"}
    assert {**train, "time": 0} == {"kind": "train", "step": 7, "time": 0, **FIGURES}
    assert {**validation, "time": 0} == {"kind": "validation", "step": 7, "time": 0, "loss": 2.25, "bits_per_byte": 1.5}
    (sample,) = rows(tmp_path / "samples.jsonl")
    assert {**sample, "time": 0} == {"step": 7, "time": 0, "prompt": "def ", "text": "näh:\n"}
    assert "step 7  loss 2.500  1,000 tokens/s" in shown
    assert "1.5000 bits/byte" in shown
    assert "gzip -9 3.000" in shown


@pytest.mark.parametrize("piece", ['{"kind": "train", "st', "{", '{"kind": "train", "step": 9, "loss": 1.0}', "\xff"])
def test_a_line_that_was_cut_off_is_dropped(tmp_path, piece):
    write_some(tmp_path)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (tmp_path / name).open("a", encoding="latin-1") as file:
            file.write(piece)
    write_some(tmp_path, 2)
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [0, 1, 1, 0, 2, 2]
    assert [row["step"] for row in rows(tmp_path / "samples.jsonl")] == [1, 2]


def test_only_a_cut_off_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind"')
    write_some(tmp_path)
    assert len(rows(tmp_path / "metrics.jsonl")) == 3


def test_rows_are_there_at_once(tmp_path):
    """A kill takes nothing away that was logged before it."""
    log, _ = open_log(tmp_path)
    with log:
        log.train(1, FIGURES)
        assert rows(tmp_path / "metrics.jsonl")[0]["step"] == 1
        assert events(tmp_path)[-1][0] == 1


def crc32c(data: bytes) -> int:
    """CRC-32C (RFC 3720, B.4), bit by bit, masked as TFRecord has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def fields(message: bytes) -> list[tuple[int, bytes | int]]:
    """The numbered fields of a protocol buffer."""

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    at, found = 0, []
    while at < len(message):
        tag = varint()
        if tag & 7 == 0:
            found.append((tag >> 3, varint()))
            continue
        size = {1: 8, 5: 4}.get(tag & 7) or varint()
        found.append((tag >> 3, message[at : at + size]))
        at += size
    return found


def events(folder) -> list[tuple[int, dict[str, float]]]:
    """Step and scalars of each event; its fields are 2 step, 3 version, 5 summary, and of a value 1 tag, 2 number."""
    found = []
    for path in sorted((folder / "tensorboard").iterdir()):
        assert "tfevents" in path.name
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            message = data[12 : 12 + length]
            assert struct.unpack("<I", data[8:12])[0] == crc32c(data[:8])
            assert struct.unpack("<I", data[12 + length : 16 + length])[0] == crc32c(message)
            data = data[16 + length :]
            event = dict(fields(message))
            values = {}
            for _, value in fields(event.get(5, b"")):
                parts = dict(fields(value))
                values[parts[1].decode()] = struct.unpack("<f", parts[2])[0] if 2 in parts else parts
            found.append((event.get(2, 0), values or event.get(3)))
    return found


def test_tensorboard_events(tmp_path):
    write_some(tmp_path, 7)
    write_some(tmp_path, 300)
    first = events(tmp_path)[:4]
    assert first[0] == (0, b"brain.Event:2")
    step, figures = first[1]
    assert (step, figures) == (7, {f"train/{name}": pytest.approx(value) for name, value in FIGURES.items()})
    assert first[2] == (7, {"validation/loss": 2.25, "validation/bits_per_byte": 1.5})
    ((tag, text),) = first[3][1].items()
    assert tag == "sample/text_summary"
    assert "näh:".encode() in text[8]
    # Each process that works on a run writes a file of its own.
    assert [step for step, _ in events(tmp_path)] == [0, 7, 7, 7, 0, 300, 300, 300]


def test_full_disk_is_an_os_error(tmp_path):
    """Once, where it is written: closing tries nothing again."""
    log, _ = open_log(tmp_path)
    log._metrics._file.close()
    log._metrics._file = open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    with log, pytest.raises(OSError, match="No space left"):
        log.train(1, FIGURES)


def test_on_a_terminal_there_is_a_bar(tmp_path):
    log, shown = open_log(tmp_path, terminal=True)
    with log:
        log.train(50, {**FIGURES, "mfu": 0.5})
        log._progress.refresh()
    assert "50/100" in shown.getvalue()
    assert "MFU 50.0%" in shown.getvalue()
