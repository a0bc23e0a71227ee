"""Drives a simulated world from one seed: a seed and a commit are a bug report."""

from __future__ import annotations

import random

from localdask import messages as words
from tests.sim.world import ACTOR, BAD, FLAKY, LARGE, Recipe, World

KINDS = ["plain"] * 6 + [LARGE] * 3 + [BAD, FLAKY]


class Driver:
    """A world, a seed, and the rates that this world's faults come at."""

    def __init__(self, seed: int, n_steps: int = 400, do_validate: bool = True) -> None:
        self.random = random.Random(seed)
        self.n_steps = n_steps
        self.do_validate = do_validate
        self.world = World(allowed_failures=self.random.choice([0, 1, 3]))
        self.n_keys = 0
        draw = self.random.random
        self.rates = {
            self.submit: 0.2 * draw(),
            self.release: 0.15 * draw(),
            self.cancel: 0.03 * draw(),
            self.retry: 0.05 * draw(),
            self.fetch: 0.05 * draw(),
            self.crash: self.random.choice([0, 0.01, 0.05, 0.1]),
            self.boot: 0.1 * draw(),
            self.deliver: 0.3 + draw(),
            self.start: 0.3 + draw(),
            self.finish: 0.3 + draw(),
            self.hear: 0.3 + draw(),
            self.tick: 0.2 * draw(),
            self.stale: 0.05,
            self.secede: 0.03 * draw(),
            self.scatter: 0.03 * draw(),
            self.client_gone: 0.003,
        }
        # From numbers of their own, in half of the worlds: the others' seeds go on meaning what they meant.
        self.pressure = random.Random(f"pressure of {seed}")
        self.pressure_rate = (0.0, 0.02, 0.1, 0.0)[seed % 4]
        self.clients = ["a", "b"]
        for client in self.clients:
            self.world.connect(client)
        for name in self.names[: self.random.randint(0, 4)]:
            self.world.boot(name, self.random.randint(1, 3), self.resources())

    names = ("w0", "w1", "w2", "w3")

    def resources(self) -> tuple[tuple[str, float], ...]:
        return (("gpu", float(self.random.randint(1, 2))),) if self.random.random() < 0.5 else ()

    def run(self) -> str:
        """Run the world to its end and return the hash of all that was said."""
        actions, rates = list(self.rates), list(self.rates.values())
        for _ in range(self.n_steps):
            self.random.choices(actions, rates)[0]()
            if self.pressure.random() < self.pressure_rate and self.world.workers:
                name = self.pressure.choice(list(self.world.workers))
                what = self.pressure.randrange(5)
                if what < 2:
                    self.world.pause(name, what == 0)
                else:
                    (self.world.spill if what < 4 else self.world.lose_file)(name)
            if self.do_validate:
                self.world.validate()
        world = self.world
        for name in self.names:
            if name in world.workers and not world.workers[name].state.resources:
                world.crash(name, 10**6, is_expected=True)
            if name not in world.workers:
                world.boot(name, 1, (("gpu", 2.0),))
        world.settle()
        world.validate()
        world.check_promises()
        world.check_nothing_left()
        return world.transcript.hexdigest()

    def any_worker(self) -> str | None:
        names = list(self.world.workers)
        return self.random.choice(names) if names else None

    def some_key(self) -> tuple[str, str] | None:
        client = self.random.choice(self.clients)
        keys = list(self.world.told[client])
        return (client, self.random.choice(keys)) if keys else None

    # ── what can happen ──────────────────────────────────────────────────────

    def submit(self) -> None:
        client = self.random.choice(self.clients)
        alive = [key for key in self.world.told[client] if key in self.world.state.tasks and key in self.world.recipes]
        recipes: list[Recipe] = []
        for _ in range(self.random.choice([1, 1, 2, 5, 12])):
            if self.random.random() < 0.1 and self.world.recipes:
                key = self.random.choice(list(self.world.recipes))
                recipe = self.world.recipes[key]
                if all(name in self.world.state.tasks for name in recipe.inputs):
                    recipes.append(recipe)
                continue
            self.n_keys += 1
            pool = alive[-6:] + [recipe.key for recipe in recipes][-4:]
            inputs = tuple(dict.fromkeys(self.random.choices(pool, k=self.random.choice([0, 1, 1, 2, 3])))) if pool else ()
            recipe = Recipe(f"k{self.n_keys}", inputs, self.random.choice(KINDS), retries=self.random.choice([0, 0, 0, 1, 3]))
            if self.random.random() < 0.1:
                recipe.workers = (self.random.choice(self.names),)
            if self.random.random() < 0.1:
                recipe.limit_s = self.random.choice([0.01, 0.2])
            if self.random.random() < 0.1:
                recipe.resources = (("gpu", 1.0),)
            if self.n_keys % 11 == 0:  # not at random: the worlds of old seeds stay as they are otherwise
                recipe.kind = ACTOR
            recipes.append(recipe)
        self.world.submit(client, recipes)

    def release(self) -> None:
        if found := self.some_key():
            self.world.release(found[0], [found[1]])

    def cancel(self) -> None:
        if found := self.some_key():
            client, key = found
            self.world.say(client, [words.CancelKeys(client, [key], force=self.random.random() < 0.5)])

    def retry(self) -> None:
        if found := self.some_key():
            client, key = found
            if key in self.world.recipes:
                self.world.say(client, [words.RetryKeys(client, [key])])

    def fetch(self) -> None:
        if found := self.some_key():
            self.world.say(found[0], [words.FetchKeys(found[0], [found[1]])])

    def scatter(self) -> None:
        client = self.random.choice(self.clients)
        self.n_keys += 1
        key = f"d{self.n_keys}"
        self.world.recipes[key] = Recipe(key, (), "data")
        self.world.told[client][key] = None
        self.world.say(client, [words.AddData(client, [(key, self.world.truth(key), 8)])])

    def crash(self) -> None:
        if name := self.any_worker():
            self.world.crash(name, self.random.randint(0, 5), is_expected=self.random.random() < 0.2)

    def boot(self) -> None:
        absent = [name for name in self.names if name not in self.world.workers]
        if absent:
            self.world.boot(self.random.choice(absent), self.random.randint(1, 3), self.resources())

    def deliver(self) -> None:
        if name := self.any_worker():
            self.world.deliver(name)

    def start(self) -> None:
        if name := self.any_worker():
            self.world.start(name)

    def finish(self) -> None:
        if name := self.any_worker():
            self.world.finish(name, self.random.choice([1e-6, 1e-3, 0.02, 5.0]), reschedule=self.random.random() < 0.01)

    def hear(self) -> None:
        if name := self.any_worker():
            self.world.hear_from(name, self.random.randint(1, 6))

    def tick(self) -> None:
        self.world.tick(self.random.choice([0.0001, 0.003, 0.1, 0.6]))

    def stale(self) -> None:
        self.world.echo_stale()

    def secede(self) -> None:
        if name := self.any_worker():
            self.world.secede(name)

    def client_gone(self) -> None:
        client = self.random.choice(self.clients)
        self.world.told[client] = {}
        self.world.say(client, [words.ClientGone(client)])
        self.world.connect(client)
