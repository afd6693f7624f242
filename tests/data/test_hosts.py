"""One, two or four processes read the same batches of a cache in shards, and a far step as quickly as the first."""

import contextlib
import itertools
import socket
import subprocess
import sys

import numpy as np
import pytest

from pathways_lm.config import DataConfig
from pathways_lm.data import shards
from pathways_lm.data.cache import prepare

DEVICES, BATCH, LENGTH, VOCAB_SIZE = 4, 8, 32, 400
STEPS = (0, 5, 10**6)
LEAVES = ("tokens", "targets", "segments")

PROCESS = """
import sys, time
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from pathways_lm.config import DataConfig
from pathways_lm.data.cache import prepare
from pathways_lm.data.loader import Loader
from pathways_lm.data.objectives import make_objective

number, count, port, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", {devices} // count)
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{{port}}", count, number)
config = {config!r}
sharding = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data", None))
found = {{}}
corpus = prepare(config, {vocab_size})
for step in {steps}:
    # Each step as the first that a process reads.
    began = time.perf_counter()
    loader = Loader(corpus, config, make_objective(config, corpus.vocabulary))
    read, examples = [], loader.examples
    loader.examples = lambda numbers: read.extend(numbers) or examples(numbers)
    batch = loader.batch(step, sharding)
    found[f"seconds {{step}}"] = time.perf_counter() - began
    found[f"read {{step}}"] = np.array(read)
    for name in {leaves}:
        for shard in getattr(batch, name).addressable_shards:
            found[f"{{name}} {{step}} {{shard.index[0].start or 0}}"] = np.asarray(shard.data)
np.savez(out, **found)
"""


@pytest.fixture(scope="module")
def cached(tmp_path_factory, write_json_lines) -> DataConfig:
    """A cache of many shards."""
    folder = tmp_path_factory.mktemp("hosts")
    write_json_lines(folder / "text", files=25, lines=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "_SHARD_BYTES", 2_000)
        config = DataConfig(
            files=f"{folder}/text/*.jsonl",
            cache_dir=f"{folder}/cache",
            sequence_length=LENGTH,
            batch_size=BATCH,
            seed=3,
        )
        corpus = prepare(config, VOCAB_SIZE)
    assert len(corpus.files("files", "train")) > 6
    return DataConfig(files=config.files, cache=str(corpus.folder), sequence_length=LENGTH, batch_size=BATCH, seed=3)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def read_with(count: int, config: DataConfig, folder) -> list[dict[str, np.ndarray]]:
    """What each of `count` processes read."""
    program = PROCESS.format(devices=DEVICES, config=config, vocab_size=VOCAB_SIZE, steps=STEPS, leaves=LEAVES)
    port, outs = str(free_port()), [folder / f"{count}-{number}.npz" for number in range(count)]
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", program]
        processes = [
            stack.enter_context(subprocess.Popen([*command, str(number), str(count), port, str(out)]))
            for number, out in enumerate(outs)
        ]
    assert [process.returncode for process in processes] == [0] * count
    return [dict(np.load(out)) for out in outs]


def test_batches_on_one_two_and_four_hosts(cached, tmp_path):
    by_hosts = {count: read_with(count, cached, tmp_path) for count in (1, 2, 4)}
    [alone] = by_hosts[1]
    for count, hosts in by_hosts.items():
        together = {name: value for host in hosts for name, value in host.items() if name.split()[0] in LEAVES}
        assert together.keys() == {name for name in alone if name.split()[0] in LEAVES}
        for name, value in together.items():
            np.testing.assert_array_equal(value, alone[name], err_msg=f"{name} with {count} hosts")
        for step in STEPS:
            # Each row was read once, by one of them.
            read = [host[f"read {step}"].tolist() for host in hosts]
            assert sorted(itertools.chain(*read)) == list(range(step * BATCH, (step + 1) * BATCH))
            assert {len(rows) for rows in read} == {BATCH // count}
            assert all(host[f"seconds {step}"] < 1 for host in hosts)
