"""The scheduler under hypothesis: any order of events, with a model that knows the truth."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from localdask import messages as words
from tests.sim.world import BAD, FLAKY, LARGE, Recipe, World

NAMES = st.sampled_from(["w0", "w1", "w2"])
CLIENTS = st.sampled_from(["a", "b"])
#: A choice among things that exist only when the rule runs.
PICK = st.integers(0, 10_000)


def pick(number: int, things: list[Any]) -> Any:
    return things[number % len(things)] if things else None


class SchedulerMachine(RuleBasedStateMachine):
    """Two clients that share keys, up to three workers that crash, and pipes that lag."""

    @initialize(allowed_failures=st.sampled_from([0, 1, 3]), n_workers=st.integers(0, 3))
    def begin(self, allowed_failures: int, n_workers: int) -> None:
        self.world = World(allowed_failures)
        for client in ("a", "b"):
            self.world.connect(client)
        for index in range(n_workers):
            self.world.boot(f"w{index}", index % 2 + 1)

    @rule(
        client=CLIENTS,
        graph=st.lists(
            st.tuples(
                st.sampled_from(["plain", "plain", LARGE, BAD, FLAKY]),
                st.lists(PICK, max_size=3),
                st.integers(0, 2),
                st.sampled_from(["", "", "", "w1"]),
            ),
            min_size=1,
            max_size=6,
        ),
    )
    def submit(self, client: str, graph: list[tuple[str, list[int], int, str]]) -> None:
        known = [key for key in self.world.told[client] if key in self.world.state.tasks]
        recipes: list[Recipe] = []
        for kind, inputs, retries, worker in graph:
            pool = known[-5:] + [recipe.key for recipe in recipes]
            chosen = tuple(dict.fromkeys(pick(number, pool) for number in inputs)) if pool else ()
            key = f"k{len(self.world.recipes) + len(recipes)}"
            recipes.append(Recipe(key, chosen, kind, retries, (worker,) if worker else ()))
        self.world.submit(client, recipes)

    @rule(client=CLIENTS, number=PICK)
    def share(self, client: str, number: int) -> None:
        recipe = pick(
            number, [recipe for recipe in self.world.recipes.values() if all(key in self.world.state.tasks for key in recipe.inputs)]
        )
        if recipe is not None:
            self.world.submit(client, [recipe])

    @rule(client=CLIENTS, number=PICK)
    def release(self, client: str, number: int) -> None:
        key = pick(number, list(self.world.told[client]))
        if key is not None:
            self.world.release(client, [key])

    @rule(client=CLIENTS, number=PICK)
    def cancel(self, client: str, number: int) -> None:
        key = pick(number, list(self.world.told[client]))
        if key is not None:
            self.world.say(client, [words.CancelKeys(client, [key])])

    @rule(client=CLIENTS, number=PICK)
    def retry(self, client: str, number: int) -> None:
        key = pick(number, list(self.world.told[client]))
        if key is not None:
            self.world.say(client, [words.RetryKeys(client, [key])])

    @rule(client=CLIENTS, number=PICK)
    def fetch(self, client: str, number: int) -> None:
        key = pick(number, list(self.world.told[client]))
        if key is not None:
            self.world.say(client, [words.FetchKeys(client, [key])])

    @rule(name=NAMES, nthreads=st.integers(1, 2))
    def boot(self, name: str, nthreads: int) -> None:
        if name not in self.world.workers:
            self.world.boot(name, nthreads)

    @rule(name=NAMES, n_heard=st.integers(0, 4), is_expected=st.booleans())
    def crash(self, name: str, n_heard: int, is_expected: bool) -> None:
        if name in self.world.workers:
            self.world.crash(name, n_heard, is_expected)

    @rule(name=NAMES, is_paused=st.booleans())
    def pause(self, name: str, is_paused: bool) -> None:
        if name in self.world.workers:
            self.world.pause(name, is_paused)

    @rule(name=NAMES)
    def spill(self, name: str) -> None:
        if name in self.world.workers:
            self.world.spill(name)

    @rule(name=NAMES)
    def lose_file(self, name: str) -> None:
        if name in self.world.workers:
            self.world.lose_file(name)

    @rule(name=NAMES, n=st.integers(1, 8))
    def deliver(self, name: str, n: int) -> None:
        if name in self.world.workers:
            for _ in range(n):
                self.world.deliver(name)

    @rule(name=NAMES)
    def start(self, name: str) -> None:
        if name in self.world.workers:
            self.world.start(name)

    @rule(name=NAMES, duration_s=st.sampled_from([1e-6, 0.01, 3.0]), reschedule=st.integers(0, 20))
    def finish(self, name: str, duration_s: float, reschedule: int) -> None:
        if name in self.world.workers:
            self.world.start(name)
            self.world.finish(name, duration_s, reschedule == 0)

    @rule(name=NAMES, n=st.integers(1, 5))
    def hear(self, name: str, n: int) -> None:
        if name in self.world.workers:
            self.world.hear_from(name, n)

    @rule(name=NAMES)
    def secede(self, name: str) -> None:
        if name in self.world.workers:
            self.world.secede(name)

    @rule(seconds=st.sampled_from([0.0001, 0.006, 1.0]))
    def tick(self, seconds: float) -> None:
        self.world.tick(seconds)

    @rule()
    def echo_stale(self) -> None:
        self.world.echo_stale()

    @invariant()
    def the_laws_hold(self) -> None:
        if hasattr(self, "world"):
            self.world.validate()

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        for name in ("w0", "w1", "w2"):
            if name not in self.world.workers:
                self.world.boot(name)
        self.world.settle()
        self.world.validate()
        self.world.check_promises()
        self.world.check_nothing_left()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
