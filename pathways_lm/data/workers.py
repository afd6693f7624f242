"""Shards written by several processes, each with one shard at a time.

A worker that is killed is told by the shard it was at. Workers end with the process that started them, also when that
one is killed: what they report then goes nowhere.
"""

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

from pathways_lm.data.manifest import Shard
from pathways_lm.data.shards import Advance, Job, Report, Row, write_shard
from pathways_lm.data.vocabulary import Vocabulary
from pathways_lm.errors import DataError, UserError


class _Worker(NamedTuple):
    process: SpawnProcess
    pipe: Connection


def write_in_processes(
    folder: Path,
    jobs: Sequence[Job],
    vocabulary: Vocabulary,
    row: Row,
    workers: int,
    report: Report,
    done: Callable[[Shard], None],
) -> None:
    """Writes all shards. `done` is called with each as soon as it is finished, in any order.

    Raises what failed in a worker, and DataError where a worker ended by itself.
    """
    waiting = deque(jobs)
    with _started(min(workers, len(jobs)), folder, vocabulary, row) as idle:
        busy: dict[Connection, tuple[_Worker, Job]] = {}
        while waiting or busy:
            while waiting and idle:
                worker, job = idle.pop(), waiting.popleft()
                busy[worker.pipe] = worker, job
                _send(worker, job)
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker, job = busy[pipe]
                answer = _receive(worker, job)
                if isinstance(answer, Exception):
                    raise answer
                if isinstance(answer, Shard):
                    done(answer)
                    idle.append(busy.pop(pipe)[0])
                else:
                    report(answer)


@contextlib.contextmanager
def _started(count: int, folder: Path, vocabulary: Vocabulary, row: Row) -> Iterator[list[_Worker]]:
    # A forked copy of a process in which JAX or tensorflow have threads may hang.
    context = multiprocessing.get_context("spawn")
    workers = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, folder, vocabulary.model, row), daemon=True)
            process.start()
            theirs.close()  # else its end would not be noticed here
            workers.append(_Worker(process, ours))
        yield list(workers)
    finally:
        for worker in workers:
            worker.pipe.close()
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _send(worker: _Worker, job: Job) -> None:
    try:
        worker.pipe.send(job)
    except OSError:
        raise _ended(worker, job) from None


def _receive(worker: _Worker, job: Job) -> Advance | Shard | Exception:
    try:
        answer: Advance | Shard | Exception = worker.pipe.recv()
    except (EOFError, OSError):
        raise _ended(worker, job) from None
    return answer


def _ended(worker: _Worker, job: Job) -> DataError:
    worker.process.join()
    code = worker.process.exitcode or 0
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return DataError(
        f"the process that wrote '{job.file}' {how}; run the same command again: it keeps the finished shards"
    )


def _work(pipe: Connection, folder: Path, model: bytes, row: Row) -> None:
    """A worker's life: jobs come, reports and a shard go, until the pipe is closed."""
    # Ctrl-C reaches every process of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    vocabulary = Vocabulary(model)
    # The pipe ends when the first process does, in whatever way.
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            pipe.send(_answer(folder, pipe.recv(), vocabulary, row, pipe.send))


def _answer(folder: Path, job: Job, vocabulary: Vocabulary, row: Row, report: Report) -> Shard | Exception:
    try:
        return write_shard(folder, job, vocabulary, row, report)
    except ConnectionError:
        raise
    except (OSError, UserError) as error:
        return error
