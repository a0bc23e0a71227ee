"""Queues, variables and flags: no value is lost or taken twice, in order, and keys are kept as long as a value that names them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from localdask.state.flags import Flags
from localdask.state.items import Item, KeptKeys
from localdask.state.leases import Ticket
from localdask.state.pipelines import Pipelines
from localdask.state.variables import Variables

STEPS = ["put", "put", "take", "take", "take some", "take all", "withdraw", "arrived", "take_back", "lose"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 12)), max_size=40), st.integers(0, 2))
def test_what_is_put_is_taken_once_and_its_keys_are_kept_until_it_arrived(steps: list[tuple[str, int]], maxsize: int) -> None:
    kept = KeptKeys()
    queues = Pipelines(kept)
    queues.use("q", "c0", maxsize)
    wanted: set[str] = set()
    open_puts: dict[Ticket, str] = {}
    inside: set[str] = set()
    on_the_way: dict[Ticket, list[str]] = {}
    for number, (what, choice) in enumerate(steps):
        ticket = (f"c{choice % 3}", number)
        if what == "put":
            open_puts[ticket] = f"key{number}"
            queues.put(ticket, "q", Item(f"key{number}", (f"key{number}",)))
        elif what.startswith("take") and what != "take_back":
            queues.take(ticket, "q", {"take": 1, "take some": 2, "take all": 0}[what])
        elif what == "withdraw":
            queues.withdraw((f"c{choice % 3}", choice))
            open_puts.pop((f"c{choice % 3}", choice), None)
        elif what == "lose":
            client = f"c{choice % 3}"
            queues.lose_client(client)
            queues.use("q", "c0", maxsize)
            for lost in [lost for lost in on_the_way if lost[0] == client]:
                inside.update(on_the_way.pop(lost))
        elif on_the_way:
            old = sorted(on_the_way)[choice % len(on_the_way)]
            (queues.arrived if what == "arrived" else queues.take_back)(old)
            items = on_the_way.pop(old)
            if what == "take_back":
                inside.update(items)
        while queues.answers:
            answered, payloads = queues.answers.popleft()
            if answered in open_puts:
                inside.add(open_puts.pop(answered))
            else:
                assert answered not in on_the_way and inside.issuperset(payloads), "taken twice, or never put"
                inside.difference_update(payloads)
                on_the_way[answered] = payloads
        queues.validate()
        begun, ended = kept.take_changes()
        assert not wanted.intersection(begun) and wanted.issuperset(ended)
        wanted = wanted.union(begun).difference(ended)
        assert wanted == inside | {*open_puts.values()} | {key for keys in on_the_way.values() for key in keys}
    queues.close("q", "c0")
    for ticket in on_the_way:
        queues.arrived(ticket)
    assert not len(kept)


def test_values_come_in_order_also_after_one_came_back() -> None:
    queues = Pipelines(KeptKeys())
    queues.use("q", "c", 0)
    for number in range(4):
        queues.put(("c", number), "q", Item(number))
    queues.answers.clear()
    queues.take(("c", 10), "q", 2)
    queues.take_back(("c", 10))
    queues.take(("c", 11), "q", 0)
    assert [payloads for _, payloads in queues.answers] == [[0, 1], [0, 1, 2, 3]]


def test_a_queue_is_forgotten_when_the_last_who_used_it_closes_it() -> None:
    kept = KeptKeys()
    queues = Pipelines(kept)
    for client in ("one", "two"):
        queues.use("q", client, 1)
    for number in range(2):
        queues.put(("one", number), "q", Item(number, (f"key{number}",)))
    assert queues.close("q", "one") == [] and queues.size("q") == 1
    assert queues.close("q", "two") == [("one", 1)] and not len(kept)
    queues.withdraw(("one", 1))


def test_a_variable_keeps_what_it_is_and_what_is_on_its_way() -> None:
    kept = KeptKeys()
    variables = Variables(kept)
    variables.get(("c", 1), "v")
    variables.set("v", Item("first", ("a",)))
    assert list(variables.answers) == [(("c", 1), ["first"])]
    variables.set("v", Item("second", ("b",)))
    assert kept.take_changes() == (["a", "b"], [])
    assert variables.arrived(("c", 1)) == ("a",)
    variables.get(("d", 1), "v")
    variables.delete("v")
    assert kept.take_changes() == ([], ["a"])
    variables.lose_client("d")
    assert kept.take_changes() == ([], ["b"])
    variables.get(("d", 2), "v")
    variables.withdraw(("d", 2))
    variables.set("v", Item("third"))
    assert len(variables.answers) == 2


def test_a_flag_answers_all_who_wait_and_who_comes_while_it_is_set() -> None:
    flags = Flags()
    for number in range(3):
        flags.wait(("c", number), "f")
    flags.withdraw(("c", 1))
    flags.set("f")
    flags.wait(("c", 3), "f")
    flags.clear("f")
    flags.wait(("c", 4), "f")
    assert [ticket[1] for ticket, _ in flags.answers] == [0, 2, 3] and not flags.is_set("f")
