"""Each transition by hand: one test, one sentence of what the scheduler promises."""

from __future__ import annotations

from typing import Any

from localdask import messages as words
from localdask.state import clients, pausing, placement, scheduler
from localdask.state.tasks import MOVES, STATES, SchedulerState, WorkerState
from localdask.state.validation import validate

FUNCTION = words.Function("f", "f", b"f")


class Desk:
    """A state with one client, and shorthand for what is said to and by it."""

    def __init__(self, **workers: int) -> None:
        self.state = SchedulerState()
        self.now = 0.0
        scheduler.connect_client(self.state, "c")
        self.workers: dict[str, WorkerState] = {}
        for name, nthreads in workers.items():
            self.join(name, nthreads)

    def join(self, name: str, nthreads: int = 1, life: int = 1, **resources: float) -> None:
        self.workers[name] = WorkerState(name, life, 1, nthreads, tuple(resources.items()))
        scheduler.worker_joined(self.state, self.workers[name], self.now)

    def submit(self, key: str, *inputs: str, client: str = "c", **options: Any) -> None:
        scheduler.client_said(self.state, [words.SubmitTasks(client, [words.TaskSpec(key, FUNCTION, b"", inputs, **options)])], self.now)

    def client(self, *messages: Any) -> None:
        scheduler.client_said(self.state, messages, self.now)

    def worker(self, name: str, *messages: Any) -> None:
        scheduler.worker_said(self.state, self.workers[name], messages, self.now)

    def done(self, key: str, *, large: bool = False, duration_s: float = 0.001, nbytes: int = 5) -> None:
        task = self.state.tasks[key]
        assert task.worker is not None
        self.worker(task.worker.name, words.TaskDone(task.attempt, None if large else b"value", nbytes, duration_s))

    def erred(self, key: str) -> None:
        task = self.state.tasks[key]
        assert task.worker is not None
        self.worker(task.worker.name, words.TaskErred(task.attempt, b"error", 0.001))

    def leave(self, name: str, *executing: str, is_expected: bool = False) -> None:
        attempts = tuple(self.state.tasks[key].attempt for key in executing)
        scheduler.worker_left(self.state, self.workers[name], self.now, is_expected=is_expected, executing=attempts, exit_text="SIGKILL")

    def said(self) -> list[tuple[str, Any]]:
        validate(self.state)
        self.state.wake_forgets()
        to_workers, to_clients = self.state.drain()
        return [(worker.name, word) for worker, batch in to_workers for word in batch] + [
            (c, word) for c, batch in to_clients for word in batch
        ]

    def kinds(self) -> list[tuple[str, str, str]]:
        return [
            (who, type(word).__name__, getattr(word, "key", ""))
            for who, word in self.said()
            if not isinstance(word, words.DefineFunction | words.ForgetKeys)
        ]

    def at(self, key: str) -> str:
        return self.state.tasks[key].state


def learned(desk: Desk, duration_s: float = 1e-6) -> None:
    """Let the desk know how long the function takes."""
    desk.submit("warm-up")
    desk.done("warm-up", duration_s=duration_s)
    desk.said()


def test_a_task_without_inputs_goes_to_an_idle_worker() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    assert desk.kinds() == [("w0", "RunTask", "a")] and desk.at("a") == "processing"


def test_a_result_reaches_the_client_and_stays_until_it_is_released() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.said()
    desk.done("a")
    assert desk.kinds() == [("c", "KeyInMemory", "a")]
    desk.client(words.ReleaseKeys("c", ["a"]))
    assert ("w0", words.ForgetKeys(("a",))) in desk.said() and not desk.state.tasks


def test_a_function_is_sent_to_each_worker_once() -> None:
    desk = Desk(w0=2)
    desk.submit("a")
    desk.submit("b")
    assert sum(isinstance(word, words.DefineFunction) for _, word in desk.said()) == 1


def test_without_any_worker_a_task_waits_in_no_worker_until_one_joins() -> None:
    desk = Desk()
    desk.submit("a")
    assert desk.at("a") == "no-worker"
    desk.join("w0")
    assert desk.at("a") == "processing"


def test_an_unknown_function_is_not_sent_ahead_of_a_busy_worker() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.submit("b")
    assert (desk.at("a"), desk.at("b")) == ("processing", "queued")


def test_a_fast_function_is_sent_ahead_by_the_millisecond() -> None:
    desk = Desk(w0=1)
    learned(desk)
    for index in range(100):
        desk.submit(f"t{index}")
    assert {desk.at(f"t{index}") for index in range(100)} == {"processing"}


def test_a_slow_function_is_sent_one_ahead_of_each_thread() -> None:
    desk = Desk(w0=2)
    learned(desk, duration_s=10.0)
    for index in range(6):
        desk.submit(f"t{index}")
    assert [desk.at(f"t{index}") for index in range(6)] == ["processing"] * 4 + ["queued"] * 2


def test_queued_tasks_go_by_priority_and_then_by_order() -> None:
    desk = Desk(w0=1)
    desk.submit("first")
    desk.submit("low", priority=-1)
    desk.submit("high", priority=1)
    desk.submit("high too", priority=1)
    sent = []
    for key in ("first", "high", "high too", "low"):
        sent += [word.key for _, word in desk.said() if isinstance(word, words.RunTask)]
        desk.done(key, duration_s=100.0)
    assert sent[0] == "first" and sent[1:3] == ["high", "high too"]


def test_a_small_input_travels_with_its_reader() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", workers=("w0",))
    desk.done("a")
    desk.said()
    desk.submit("b", "a", workers=("w1",))
    runs = [word for who, word in desk.said() if who == "w1" and isinstance(word, words.RunTask)]
    assert runs[0].inputs == (("a", b"value"),)


def test_an_input_that_the_worker_holds_is_not_sent() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.done("a")
    desk.submit("b", "a")
    runs = [word for _, word in desk.said() if isinstance(word, words.RunTask) and word.key == "b"]
    assert runs[0].inputs == (("a", None),)


def test_what_continues_a_running_task_is_staged_behind_it() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a")
    desk.submit("b", "a")
    desk.submit("c", "b")
    assert (desk.at("a"), desk.at("b"), desk.at("c")) == ("processing", "staged", "staged")
    desk.done("a")
    assert desk.at("b") == "processing"


def test_a_failed_task_fails_what_was_staged_behind_it_and_takes_it_back() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.submit("b", "a")
    attempt = desk.state.tasks["b"].attempt
    desk.said()
    desk.erred("a")
    said = desk.said()
    assert ("w0", words.TakeBack((attempt,))) in said
    assert [word.key for who, word in said if isinstance(word, words.KeyErred)] == ["a", "b"]


def test_a_large_input_is_published_for_a_reader_elsewhere() -> None:
    desk = Desk(w0=1, w1=1)
    desk.submit("a", workers=("w0",))
    desk.done("a", large=True)
    desk.said()
    desk.submit("b", "a", workers=("w1",))
    assert desk.kinds() == [("w0", "PublishKey", "a")] and desk.at("b") == "publishing"
    desk.worker("w0", words.KeyPublished("a", ("segment", b"", ())))
    assert desk.at("b") == "processing"


def test_a_client_that_fetches_a_large_result_is_given_its_publication() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.done("a", large=True)
    desk.said()
    desk.client(words.FetchKeys("c", ["a"]))
    assert desk.kinds() == [("w0", "PublishKey", "a")]
    desk.worker("w0", words.KeyPublished("a", ("segment", b"", ())))
    assert desk.kinds() == [("c", "KeyFetched", "a")]


def test_retries_are_spent_before_a_task_errs() -> None:
    desk = Desk(w0=1)
    desk.submit("a", retries=1)
    desk.erred("a")
    assert desk.at("a") == "processing"
    desk.erred("a")
    assert desk.at("a") == "erred"


def test_only_the_tasks_that_were_executing_are_charged_with_a_death() -> None:
    desk = Desk(w0=1)
    learned(desk)
    desk.submit("guilty")
    desk.submit("innocent")
    desk.leave("w0", "guilty")
    assert desk.state.tasks["guilty"].n_deaths == 1 and desk.state.tasks["innocent"].n_deaths == 0


def test_beyond_the_allowed_deaths_a_task_errs_with_the_facts() -> None:
    desk = Desk()
    desk.submit("a")
    for life in range(4):
        desk.join("w0", life=life)
        desk.leave("w0", "a")
    assert desk.at("a") == "erred"
    assert desk.state.tasks["a"].error == ("killed", "a", "w0", 3, "SIGKILL", 0, ())


def test_an_expected_death_charges_nobody() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.leave("w0", "a", is_expected=True)
    assert desk.state.tasks["a"].n_deaths == 0 and desk.at("a") == "no-worker"


def test_a_large_result_that_died_with_its_worker_is_made_again_with_its_inputs() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.submit("b", "a")
    desk.done("a", large=True)
    desk.done("b", large=True)
    desk.client(words.ReleaseKeys("c", ["a"]))
    assert desk.at("a") == "released"
    desk.said()
    desk.leave("w0")
    assert ("c", "KeyPending", "b") in desk.kinds() and (desk.at("a"), desk.at("b")) == ("no-worker", "waiting")


def test_a_small_result_survives_its_worker() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.done("a")
    desk.leave("w0")
    assert desk.at("a") == "memory"


def test_an_answer_to_an_earlier_attempt_is_dropped() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    stale = desk.state.tasks["a"].attempt
    desk.leave("w0", "a")
    desk.join("w0", life=2)
    desk.said()
    desk.worker("w0", words.TaskDone(stale, b"late", 4, 0.1))
    assert desk.at("a") == "processing" and desk.kinds() == []


def test_cancelled_work_holds_its_thread_until_the_worker_answers() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    attempt = desk.state.tasks["a"].attempt
    desk.client(words.CancelKeys("c", ["a"], "tired"))
    assert ("c", words.KeyCancelled("a", "tired", "")) in desk.said()
    desk.submit("b")
    assert desk.at("b") == "queued"
    desk.worker("w0", words.TakenBack((attempt,)))
    assert desk.at("b") == "processing"


def test_the_late_value_of_cancelled_work_is_forgotten_by_its_worker() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    attempt = desk.state.tasks["a"].attempt
    desk.client(words.CancelKeys("c", ["a"]))
    desk.said()
    desk.worker("w0", words.TaskDone(attempt, None, 10**6, 0.1))
    assert ("w0", words.ForgetKeys(("a",))) in desk.said()


def test_resources_bound_what_runs_at_once() -> None:
    desk = Desk()
    desk.join("w0", 4, gpu=1.0)
    desk.submit("a", resources=(("gpu", 1.0),))
    desk.submit("b", resources=(("gpu", 1.0),))
    assert (desk.at("a"), desk.at("b")) == ("processing", "queued")
    desk.done("a")
    assert desk.at("b") == "processing"


def test_a_task_for_a_named_worker_waits_for_it() -> None:
    desk = Desk(w0=1)
    desk.submit("a", workers=("w7",))
    assert desk.at("a") == "no-worker"
    desk.join("w7")
    assert desk.state.tasks["a"].worker is desk.workers["w7"]


def test_a_preferred_worker_that_is_absent_does_not_hold_a_task_up() -> None:
    desk = Desk(w0=1)
    desk.submit("a", workers=("w7",), allow_other_workers=True)
    assert desk.state.tasks["a"].worker is desk.workers["w0"]


def test_an_idle_worker_is_given_what_a_busy_one_has_queued() -> None:
    desk = Desk(w0=1)
    learned(desk, duration_s=1.0)
    desk.submit("a")
    desk.submit("b")
    attempt = desk.state.tasks["b"].attempt
    desk.said()
    desk.join("w1")
    assert ("w0", words.TakeBack((attempt,))) in desk.said()
    desk.worker("w0", words.TakenBack((attempt,)))
    assert desk.state.tasks["b"].worker is desk.workers["w1"]


def test_an_idle_worker_looks_again_when_a_queue_does_not_move() -> None:
    desk = Desk(w0=1)
    learned(desk, duration_s=1e-4)
    desk.submit("a")
    desk.submit("b")
    desk.said()
    desk.join("w1")
    assert not [word for _, word in desk.said() if isinstance(word, words.TakeBack)]
    assert desk.state.next_deadline is not None
    scheduler.tick(desk.state, desk.now + 1.0)
    assert [word for _, word in desk.said() if isinstance(word, words.TakeBack)]


def busy_holder(nbytes: int) -> Desk:
    """Return a desk where w0 holds a large value that lies nowhere else and has a task of 0.1 s to run; w1 idles."""
    desk = Desk(w0=1)
    learned(desk, duration_s=0.1)
    desk.submit("large")
    desk.done("large", large=True, duration_s=0.1, nbytes=nbytes)
    desk.submit("busy")
    desk.submit("ahead")
    desk.join("w1")
    attempt = desk.state.tasks["ahead"].attempt
    desk.worker("w0", words.TakenBack((attempt,)))
    desk.done("ahead", duration_s=0.1)
    desk.said()
    return desk


def test_a_task_waits_for_a_busy_worker_if_moving_its_input_would_take_longer() -> None:
    desk = busy_holder(200_000_000)
    desk.submit("reads", "large")
    assert desk.state.tasks["reads"].worker is desk.workers["w0"] and desk.at("reads") == "processing"
    desk = busy_holder(50_000_000)
    desk.submit("reads", "large")
    assert desk.kinds() == [("w0", "PublishKey", "large")] and desk.at("reads") == "publishing"


def test_what_waits_for_its_input_is_taken_back_once_the_wait_is_longer_than_the_move() -> None:
    desk = busy_holder(200_000_000)
    desk.submit("reads", "large")
    attempt = desk.state.tasks["reads"].attempt
    desk.said()
    for desk.now in (0.05, 0.15):  # the idle worker looks, and leaves it where it is
        scheduler.tick(desk.state, desk.now)
        assert desk.said() == []
    desk.now = 0.25
    scheduler.tick(desk.state, desk.now)
    assert desk.said() == [("w0", words.TakeBack((attempt,)))]
    desk.worker("w0", words.TakenBack((attempt,)))
    assert desk.kinds() == [("w0", "PublishKey", "large")] and desk.at("reads") == "publishing"
    desk.worker("w0", words.KeyPublished("large", ("segment", b"", ())))
    assert desk.state.tasks["reads"].worker is desk.workers["w1"]


def test_a_worker_that_comes_later_is_not_given_what_is_quicker_where_its_input_is() -> None:
    for nbytes, place in [(1_000_000_000, "processing"), (100_000_000, "publishing")]:
        desk = Desk(w0=1)
        learned(desk, duration_s=0.1)
        desk.submit("large")
        desk.done("large", large=True, duration_s=0.1, nbytes=nbytes)
        for key in ("running", "ahead"):
            desk.submit(key)
        desk.submit("reads", "large")
        desk.said()
        desk.join("w1")
        assert desk.at("reads") == place


def test_what_is_read_together_is_made_on_one_worker() -> None:
    desk = Desk(w0=1, w1=1)
    learned(desk, duration_s=0.02)
    for key in ("r0", "r1", "r2", "r3"):
        desk.submit(key)
    leaves = [words.TaskSpec(key, FUNCTION, b"") for key in ("a0", "b0", "a1", "b1")]
    joined = [words.TaskSpec(key, FUNCTION, b"", inputs) for key, inputs in {"ab": ("a0", "a1"), "ba": ("b0", "b1")}.items()]
    desk.client(words.SubmitTasks("c", [*leaves, *joined], ("ab", "ba")))
    assert {desk.at(spec.key) for spec in leaves} == {"queued"}
    desk.done("r0", duration_s=0.02)
    desk.done("r1", duration_s=0.02)
    places = {spec.key: desk.state.tasks[spec.key].worker for spec in leaves}
    assert places["a0"] is places["a1"] and places["b0"] is places["b1"] and places["a0"] is not places["b0"]


def test_what_many_read_together_is_made_wherever_there_is_room() -> None:
    desk = Desk(w0=1, w1=1)
    learned(desk, duration_s=0.02)
    for key in ("r0", "r1", "r2", "r3"):
        desk.submit(key)
    leaves = [words.TaskSpec(f"a{index}", FUNCTION, b"") for index in range(10)]
    desk.client(words.SubmitTasks("c", [*leaves, words.TaskSpec("all", FUNCTION, b"", tuple(spec.key for spec in leaves))], ("all",)))
    desk.done("r0", duration_s=0.02)
    assert [spec.key for spec in leaves if desk.at(spec.key) == "processing"] == ["a0"]


def test_a_task_waits_for_the_worker_of_its_input_if_it_would_wait_elsewhere_too() -> None:
    desk = busy_holder(150_000_000)
    for key in ("more", "most", "even more"):
        desk.submit(key)
    desk.submit("reads", "large")
    assert desk.at("reads") == "queued"  # either worker has one running and one ahead
    desk.done("more", duration_s=0.1)
    assert desk.state.tasks["reads"].worker is desk.workers["w0"] and desk.at("reads") == "processing"


def test_what_may_not_wait_in_a_worker_s_queue_does_not_wait_for_its_input_there() -> None:
    desk = busy_holder(200_000_000)
    desk.submit("timed", "large", limits=(1.0, b""))
    assert desk.at("timed") == "publishing"


def test_fire_and_forget_keeps_a_task_until_it_is_done() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.client(words.FireAndForget("c", ["a"]), words.ReleaseKeys("c", ["a"]))
    assert desk.at("a") == "processing"
    desk.done("a")
    assert not desk.state.tasks


def test_a_client_that_is_gone_wants_nothing() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.client(words.ClientGone("c"))
    assert not desk.state.tasks


def test_a_key_that_two_clients_want_lives_until_both_let_go() -> None:
    desk = Desk(w0=1)
    scheduler.connect_client(desk.state, "d")
    desk.submit("a")
    desk.submit("a", client="d")
    desk.done("a")
    assert [(who, kind) for who, kind, _ in desk.kinds() if kind == "KeyInMemory"] == [("c", "KeyInMemory"), ("d", "KeyInMemory")]
    desk.client(words.ReleaseKeys("c", ["a"]))
    assert desk.at("a") == "memory"
    desk.client(words.ReleaseKeys("d", ["a"]))
    assert not desk.state.tasks


def test_a_hundred_thousand_long_chain_is_submitted_run_and_let_go() -> None:
    desk = Desk()
    n = 100_000
    specs = [words.TaskSpec(f"k{i}", FUNCTION, b"", (f"k{i - 1}",) if i else ()) for i in range(n)]
    desk.client(words.SubmitTasks("c", specs), words.ReleaseKeys("c", [f"k{i}" for i in range(n - 1)]))
    assert len(desk.state.tasks) == n
    desk.client(words.ReleaseKeys("c", [f"k{n - 1}"]))
    assert not desk.state.tasks


def test_the_table_of_moves_names_every_state() -> None:
    assert set(MOVES) == set(STATES)
    assert all(finish in STATES for finishes in MOVES.values() for finish in finishes)


def test_the_queue_ahead_of_a_worker_is_bounded() -> None:
    desk = Desk(w0=1)
    learned(desk)
    for index in range(placement.IN_FLIGHT_MAX + 50):
        desk.submit(f"t{index}")
    assert len(desk.workers["w0"].in_flight) <= placement.IN_FLIGHT_MAX


def test_a_task_that_gave_up_its_slot_is_not_taken_for_queued_work() -> None:
    desk = Desk(w0=1)
    learned(desk, duration_s=1.0)
    desk.submit("waits for others")
    desk.worker("w0", words.TaskSeceded(desk.state.tasks["waits for others"].attempt))
    desk.submit("runs beside it")
    desk.said()
    desk.join("w1")
    desk.now += 10.0
    scheduler.tick(desk.state, desk.now)
    assert not [word for _, word in desk.said() if isinstance(word, words.TakeBack)]


def test_only_what_no_worker_was_sent_is_cancelled_as_unsent() -> None:
    desk = Desk(w0=1)
    for key in ("runs", "queued", "also queued", "other's"):
        desk.submit(key)
    desk.submit("fed", "queued")
    scheduler.connect_client(desk.state, "d")
    desk.submit("other's", client="d")
    desk.said()
    keys = ["runs", "queued", "fed", "other's", "unknown"]
    assert clients.unsent(desk.state, keys) == ["queued", "fed", "other's"]
    assert clients.cancel_unsent(desk.state, "c", keys) == ["queued", "fed", "other's"]
    told = {word.key for _, word in desk.said() if isinstance(word, words.KeyCancelled)}
    assert told == {"queued", "fed", "other's"}
    assert set(desk.state.tasks) == {"runs", "also queued", "other's"}, "another client still wants it"


def test_data_that_was_let_go_may_be_given_again_while_its_reader_is_known() -> None:
    desk = Desk(w0=1)
    desk.client(words.AddData("c", [("data", b"1", 1)]))
    desk.submit("read", "data")
    desk.client(words.ReleaseKeys("c", ["data"]))
    desk.done("read")
    assert desk.state.tasks["data"].payload is None, "nobody needs it"
    desk.client(words.AddData("c", [("data", b"2", 1)]))
    desk.submit("read again", "data")
    desk.done("read again")
    assert not [word for _, word in desk.said() if isinstance(word, words.KeyCancelled)]


def test_of_a_graph_only_what_is_wanted_is_told_and_kept() -> None:
    desk = Desk(w0=1)
    specs = [words.TaskSpec(key, FUNCTION, b"", inputs) for key, inputs in {"a": (), "b": ("a",), "c": ("b",), "lone": ()}.items()]
    desk.client(words.SubmitTasks("c", specs, ("c",)))
    assert set(desk.state.tasks) == {"a", "b", "c"}, "what nothing wanted needs is forgotten"
    for key in "abc":
        desk.done(key)
    told = {word.key for _, word in desk.said() if isinstance(word, words.KeyInMemory)}
    assert told == {"c"}
    assert [task.key for task in desk.state.tasks.values() if task.state == "memory"] == ["c"]
    desk.client(words.ReleaseKeys("c", ["c"]))
    assert not desk.state.tasks


def test_a_long_chain_is_let_go_a_link_at_a_time() -> None:
    desk = Desk(w0=1)
    n = 300
    for number in range(n):
        desk.submit(f"k{number}", *([f"k{number - 1}"] if number else []))
        if number:
            desk.client(words.ReleaseKeys("c", [f"k{number - 1}"]))
    looks = [0]

    class Counting(tuple[Any, ...]):
        def __iter__(self) -> Any:
            looks[0] += 1
            return super().__iter__()

    for task in desk.state.tasks.values():
        task.dependencies = Counting(task.dependencies)
    for number in range(n):
        desk.done(f"k{number}")
    assert looks[0] < 20 * n
    assert [desk.at(f"k{number}") for number in range(n)] == ["released"] * (n - 1) + ["memory"]


def test_a_given_up_attempts_value_goes_with_the_next_attempt_that_never_ran() -> None:
    desk = Desk(w0=1)
    learned(desk)
    attempts = []
    for _ in range(2):
        desk.submit("a")
        attempts.append(desk.state.tasks["a"].attempt)
        if len(attempts) == 2:
            desk.worker("w0", words.TaskDone(attempts[0], None, 10**6, 0.1))  # kept: the second attempt makes it anew
        desk.client(words.CancelKeys("c", ["a"]))
    desk.said()
    desk.worker("w0", words.TakenBack((attempts[1],)))
    assert ("w0", words.ForgetKeys(("a",))) in desk.said()


def test_a_paused_worker_gives_back_what_it_has_not_started_and_goes_on_when_resumed() -> None:
    desk = Desk(w0=1)
    learned(desk)
    desk.submit("running")
    desk.submit("queued")
    running, queued = (desk.state.tasks[key].attempt for key in ("running", "queued"))
    desk.said()
    scheduler.set_paused(desk.state, desk.workers["w0"], True, desk.now)
    assert ("w0", words.TakeBack((running, queued))) in desk.said()
    desk.worker("w0", words.TakenBack((queued,)))
    desk.submit("new")
    assert (desk.at("queued"), desk.at("new")) == ("no-worker", "no-worker") and desk.workers["w0"].status == "paused"
    desk.done("running")
    assert desk.kinds() == [("c", "KeyInMemory", "running")]
    scheduler.set_paused(desk.state, desk.workers["w0"], False, desk.now)
    assert (desk.at("queued"), desk.at("new")) == ("processing", "processing") and desk.workers["w0"].status == "running"


def test_what_a_paused_worker_gives_back_goes_to_one_that_runs() -> None:
    desk = Desk(w0=1)
    learned(desk)
    desk.submit("running")
    desk.submit("queued", workers=("w0",), allow_other_workers=True)
    queued = desk.state.tasks["queued"].attempt
    desk.said()
    scheduler.set_paused(desk.state, desk.workers["w0"], True, desk.now)
    desk.join("w1")
    desk.worker("w0", words.TakenBack((queued,)))
    assert desk.state.tasks["queued"].worker is desk.workers["w1"]


def test_a_leaving_worker_does_not_come_back_when_its_memory_does() -> None:
    desk = Desk(w0=1)
    worker = desk.workers["w0"]
    scheduler.set_paused(desk.state, worker, True, desk.now)
    scheduler.set_leaving(desk.state, worker, desk.now)
    scheduler.set_paused(desk.state, worker, False, desk.now)
    desk.submit("a")
    assert desk.at("a") == "no-worker" and worker.status == "closing_gracefully"


def test_a_worker_that_joins_paused_waits() -> None:
    desk = Desk()
    desk.submit("a")
    worker = desk.workers["w0"] = WorkerState("w0", 1, 1, 1)
    worker.is_paused = True
    scheduler.worker_joined(desk.state, worker, desk.now)
    assert desk.at("a") == "no-worker"
    scheduler.set_paused(desk.state, worker, False, desk.now)
    assert desk.at("a") == "processing"


def test_only_a_worker_that_runs_nothing_look_after_look_is_paused_for_good() -> None:
    desk = Desk(w0=1)
    worker = desk.workers["w0"]
    for key in ("small", "large"):
        desk.submit(key)
        task = desk.state.tasks[key]
        desk.worker("w0", words.TaskDone(task.attempt, None, len(key) * 100, 0.001))
    desk.submit("running")
    scheduler.set_paused(desk.state, worker, True, desk.now)
    pause = pausing.Pause(worker)
    assert [pausing.look(desk.state, pause) for _ in range(pausing.LOOKS)] == [None] * pausing.LOOKS
    desk.worker("w0", words.TaskSeceded(desk.state.tasks["running"].attempt))  # it waits for others, which may have nobody
    assert [pausing.look(desk.state, pause) for _ in range(pausing.LOOKS)] == [None, pausing.Hoard(2, 1000, "small", 500)]
    assert not pausing.is_over(desk.state, pause)
    scheduler.set_paused(desk.state, worker, False, desk.now)
    assert pausing.is_over(desk.state, pause)


def test_to_forget_about_a_task_that_was_cancelled_keeps_nothing() -> None:
    desk = Desk(w0=1)
    desk.submit("a")
    desk.submit("b", "a")
    desk.done("a")
    desk.done("b")
    desk.client(words.ReleaseKeys("c", ["a"]), words.FireAndForget("c", ["a"]))
    assert desk.at("a") == "released" and desk.said()
    desk.client(words.ReleaseKeys("c", ["b"]))
    assert not desk.state.tasks
