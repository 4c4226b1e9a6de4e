"""Who makes the shards: processes of this machine, or those of a Ray cluster. Order, bytes and failures are
ours either way."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from muomni.data.check.media_pool import end_with
from muomni.errors import ConfigError, MuomniError, UserError

J = TypeVar("J")
P = TypeVar("P")
AHEAD = 2  # jobs of each process that wait or are at work: so few samples are held
WAVE = 32  # jobs of each process in one data set of Ray

Work = Callable[[Any], Any]
Engine = Callable[[Work, Iterator[Any], int], Generator[Any, None, None]]


def open_engine(name: str) -> Engine:
    """The engine of a name: it takes the work, its jobs and a number of processes, and gives what each job
    gave, in the order of the jobs.

    Raises  ConfigError for another name, or where Ray is not installed.
    """
    if name == "local":
        return local
    if name != "ray":
        raise ConfigError(f"--engine: expected local or ray, got {name!r}")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--engine ray: Ray Data is not installed", hint="pip install 'muomni[scale]'"
        ) from error
    return on_ray


def local(work: Callable[[J], P], jobs: Iterator[J], processes: int) -> Generator[P, None, None]:
    """Processes of this machine; one: this process itself.

    Raises  UserError where a worker died: killed, or out of memory.
    """
    if processes < 2:
        yield from map(work, jobs)
        return
    # New processes, not forked ones: torch's threads don't stand a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        processes, context, initializer=_begin, initargs=(os.getpid(), pickle.dumps(work))
    )
    try:
        waiting: deque[Future[P]] = deque(pool.submit(_do, job) for job in islice(jobs, AHEAD * processes))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_do, job) for job in islice(jobs, 1))
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died: killed, or out of memory",
            hint="what is finished stays; run the same command again, with fewer --processes if memory is short",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_work: Work | None = None


def _begin(parent: int, work: bytes) -> None:
    global _work
    end_with(parent)
    _work = pickle.loads(work)


def _do(job: Any) -> Any:
    assert _work is not None
    return _work(job)


def on_ray(work: Callable[[J], P], jobs: Iterator[J], processes: int) -> Generator[P, None, None]:
    """Actors of a Ray cluster, through Ray Data, a wave of jobs at a time; the folder of the shards must be
    one for all machines.

    A shard is whole or absent and depends on nothing but its job, so a task that Ray repeats after a lost
    machine gives the same bytes.
    A failure of ours comes back as a value and is raised here: Ray neither repeats it nor wraps it.
    """
    import ray
    import ray.data

    packed = pickle.dumps(work)
    while wave := list(islice(jobs, WAVE * processes)):
        rows = [{"place": place, "job": pickle.dumps(job)} for place, job in enumerate(wave)]
        done = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map(
                _Actor,
                fn_constructor_args=(packed,),
                compute=ray.data.ActorPoolStrategy(size=min(processes, len(rows))),
            )
            .take_all()
        )
        for row in sorted(done, key=lambda row: row["place"]):
            found = pickle.loads(row["piece"])
            if isinstance(found, MuomniError):
                raise found
            yield found


class _Actor:
    """What Ray starts on its machines."""

    def __init__(self, work: bytes) -> None:
        self._work = pickle.loads(work)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            found = self._work(pickle.loads(row["job"]))
        except MuomniError as error:
            found = error
        return {"place": row["place"], "piece": pickle.dumps(found)}
