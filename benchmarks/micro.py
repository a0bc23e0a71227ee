"""What one step costs inside localdask, beside the least that could be paid for it.

In this process, with nothing started: a task's way through the scheduler's state, a
frame of 128 messages, and the codec. The peer is the library underneath: pickle on
bare tuples, cloudpickle on the bare object. Values are µs, per task, message or object.
"""

from __future__ import annotations

import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import cloudpickle

from benchmarks.run import Samples
from benchmarks.tasks import inc
from localdask import messages
from localdask.messages import ReleaseKeys, RunTask, SubmitTasks, TaskDone, TaskSpec
from localdask.state import scheduler
from localdask.state.tasks import SchedulerState, WorkerState
from localdask.system import codec

Job = Callable[[], object]
N_TASKS = 2_000
N_MESSAGES = 128


def schedule() -> None:
    """Submit, run, answer and release tasks: every transition of a no-op, and no pipe."""
    state = SchedulerState(allowed_failures=3)
    scheduler.connect_client(state, "client")
    for name in ("w0", "w1"):
        scheduler.worker_joined(state, WorkerState(name, 1, 1, 1, (), 0), 0.0)
    function = codec.dumps_function(inc)
    for number in range(N_TASKS):
        scheduler.client_said(state, [SubmitTasks("client", [TaskSpec(f"inc-{number}", function, b"")])], 0.0)
    n_done = 0
    while n_done < N_TASKS:
        to_workers, _ = state.drain()
        for worker, commands in to_workers:
            done = [TaskDone(word.attempt, b"1", 28, 1e-6) for word in commands if isinstance(word, RunTask)]
            scheduler.worker_said(state, worker, done, 0.0)
            n_done += len(done)
    scheduler.client_said(state, [ReleaseKeys("client", [f"inc-{number}" for number in range(N_TASKS)])], 0.0)
    assert not state.tasks


def jobs() -> Iterator[tuple[str, str, int, Job]]:
    """Yield (bench, system, how many in one call, call)."""
    run_tasks = [RunTask(number, f"inc-{number}", "inc", b"arguments") for number in range(N_MESSAGES)]
    rows = [(42, number, f"inc-{number}", "inc", b"arguments", ()) for number in range(N_MESSAGES)]
    frame, bare_frame = messages.pack(run_tasks), pickle.dumps(rows, 5)
    small = (1, "two", 3.0)
    closure = lambda x: x + len(small)  # noqa: E731
    yield "schedule", "localdask", N_TASKS, schedule
    yield "pack", "localdask", N_MESSAGES, lambda: messages.pack(run_tasks)
    yield "pack", "pickle", N_MESSAGES, lambda: pickle.dumps(rows, 5)
    yield "unpack", "localdask", N_MESSAGES, lambda: messages.unpack(frame)
    yield "unpack", "pickle", N_MESSAGES, lambda: pickle.loads(bare_frame)
    yield "dump_small", "localdask", 1, lambda: codec.dumps(small)
    yield "dump_small", "pickle", 1, lambda: pickle.dumps(small, 5)
    yield "dump_lambda", "localdask", 1, lambda: codec.dumps(closure)
    yield "dump_lambda", "cloudpickle", 1, lambda: cloudpickle.dumps(closure)
    yield "dump_again", "localdask", 1, lambda: codec.dumps_function(closure)
    yield "dump_again", "cloudpickle", 1, lambda: cloudpickle.dumps(closure)


def cost_us(n: int, call: Job, budget_s: float = 0.05) -> float:
    """Return what one of n costs, from as many calls as the budget allows."""
    n_calls = 0
    begin = now = time.perf_counter()
    while now - begin < budget_s:
        call()
        n_calls += 1
        now = time.perf_counter()
    return 1e6 * (now - begin) / n_calls / n


def run(n_samples: int = 7) -> Samples:
    samples: Samples = defaultdict(lambda: defaultdict(list))
    todo = list(jobs())
    for _ in range(n_samples):
        for bench, system, n, call in todo:
            samples[bench][system].append(cost_us(n, call))
    return samples
