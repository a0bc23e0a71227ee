"""The book of plugins: whatever is asked, answered, born or dies when, all holders end with the same plugins.

The model plays the holders: each keeps what it was told, in order, and its words arrive one
after the other, as on a pipe. A *poisoned* plugin cannot be set up by some holders.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from localdask.state.plugins import (
    AnswerChange,
    BeginHolder,
    ChangeAsked,
    ChangeHolder,
    GiveUpHolder,
    HolderAnswered,
    HolderCame,
    HolderLeft,
    PluginBook,
    step,
)

NAMES = ("a", "b", "c")
HOLDERS = ("w0", "w1", "w2")


class Holder:
    """One life of a worker: its plugins in order, and the words that it has not read yet."""

    def __init__(self, name: str, life: int) -> None:
        self.name = name
        self.life = life
        self.plugins: dict[str, bytes] = {}
        self.inbox: deque[ChangeHolder] = deque()

    def cannot(self, pickled: bytes) -> bool:
        return f"!{self.name}".encode() in pickled

    def read(self) -> HolderAnswered:
        word = self.inbox.popleft()
        error = None
        self.plugins.pop(word.name, None)
        if word.pickled is not None:
            if self.cannot(word.pickled):
                error = "no"
            else:
                self.plugins[word.name] = word.pickled
        return HolderAnswered(self.name, self.life, word.change, error)


class BookMachine(RuleBasedStateMachine):
    """Asks, births, deaths and answers in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.book = PluginBook()
        self.holders: dict[str, Holder] = {}
        self.n_lives = 0
        self.n_requests = 0
        self.asked: dict[int, ChangeAsked] = {}
        self.answers: dict[int, AnswerChange] = {}
        #: What is registered, as the answers tell it.
        self.truth: dict[str, bytes] = {}

    def take(self, event: Any) -> None:
        pending = [event]
        while pending:
            for command in step(self.book, pending.pop(0)):
                if isinstance(command, BeginHolder):
                    holder = self.holders[command.holder]
                    assert holder.life == command.life and not holder.inbox
                    holder.plugins = dict(command.rows)
                    assert not any(holder.cannot(pickled) for pickled in holder.plugins.values()), "began with what it cannot do"
                elif isinstance(command, ChangeHolder):
                    self.holders[command.holder].inbox.append(command)
                elif isinstance(command, GiveUpHolder):
                    del self.holders[command.holder]
                    pending.append(HolderLeft(command.holder, command.life, True))
                else:
                    self.note(command)
        self.book.validate()

    def note(self, answer: AnswerChange) -> None:
        assert answer.request not in self.answers, "answered twice"
        self.answers[answer.request] = answer
        asked = self.asked[answer.request]
        if answer.outcome == "kept":
            assert asked.keeps_old and asked.name in self.truth
        elif answer.outcome == "unknown":
            assert asked.pickled is None and asked.name not in self.truth
        elif asked.pickled is None:
            assert answer.outcome == "done"
            del self.truth[asked.name]
        elif answer.outcome == "done":
            self.truth.pop(asked.name, None)
            self.truth[asked.name] = asked.pickled
        else:
            assert answer.failed
            if asked.name in self.truth:
                self.truth[asked.name] = self.truth.pop(asked.name)  # set up again, after the others

    def ask(self, name: str, pickled: bytes | None, keeps_old: bool = False) -> None:
        self.n_requests += 1
        asked = self.asked[self.n_requests] = ChangeAsked(self.n_requests, name, pickled, keeps_old)
        self.take(asked)

    @rule(name=st.sampled_from(NAMES), poison=st.sampled_from(("", "", "!w0", "!w1!w2")), keeps_old=st.booleans())
    def register(self, name: str, poison: str, keeps_old: bool) -> None:
        # What nobody is there to refuse, or refuses later, is another matter (``begin`` fails): every holder must be here.
        if poison and len(self.holders) < len(HOLDERS):
            poison = ""
        self.ask(name, f"{name}{self.n_requests}{poison}".encode(), keeps_old)

    @rule(name=st.sampled_from(NAMES))
    def unregister(self, name: str) -> None:
        self.ask(name, None)

    @rule(name=st.sampled_from(HOLDERS))
    def come(self, name: str) -> None:
        if name not in self.holders:
            self.n_lives += 1
            self.holders[name] = Holder(name, self.n_lives)
            self.take(HolderCame(name, self.n_lives))

    @precondition(lambda self: any(holder.inbox for holder in self.holders.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        holder = data.draw(st.sampled_from([holder for holder in self.holders.values() if holder.inbox]))
        self.take(holder.read())

    @precondition(lambda self: self.holders and not self.is_poisonous())
    @rule(data=st.data(), was_asked=st.booleans())
    def die(self, data: st.DataObject, was_asked: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.holders)))
        self.take(HolderLeft(name, self.holders.pop(name).life, was_asked))

    def is_poisonous(self) -> bool:
        """Whether a plugin is under way that its refuser might miss by dying."""
        under_way = [asked for request, asked in self.asked.items() if request not in self.answers]
        return any(b"!" in (asked.pickled or b"") for asked in under_way)

    @rule(name=st.sampled_from(HOLDERS))
    def stale_echo(self, name: str) -> None:
        self.take(HolderAnswered(name, 0, self.book.n_changes, "late"))
        self.take(HolderLeft(name, 0))

    @invariant()
    def a_quiet_holder_has_what_is_registered_in_order(self) -> None:
        if self.book.change is None:
            assert list(self.book.rows.items()) == list(self.truth.items())
            for holder in self.holders.values():
                assert list(holder.plugins.items()) == list(self.book.rows.items())

    def teardown(self) -> None:
        while any(holder.inbox for holder in self.holders.values()):
            for holder in list(self.holders.values()):
                if holder.inbox:
                    self.take(holder.read())
        assert self.answers.keys() == self.asked.keys(), "somebody waits for ever"
        self.a_quiet_holder_has_what_is_registered_in_order()


TestBook = BookMachine.TestCase
TestBook.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def played(book: PluginBook, *events: Any) -> list[Any]:
    return [command for event in events for command in step(book, event)]


def test_a_worker_that_dies_over_a_plugin_ends_the_attempt_and_its_successor_begins_without() -> None:
    book = PluginBook()
    played(book, HolderCame("w0", 1), HolderCame("w1", 2), ChangeAsked(1, "x", b"deadly"), HolderAnswered("w1", 2, 1))
    words = played(book, HolderLeft("w0", 1), HolderCame("w0", 3))
    assert [(word.holder, getattr(word, "pickled", word)) for word in words] == [("w1", None), ("w0", BeginHolder("w0", 3, []))]
    (answer,) = played(book, HolderAnswered("w1", 2, words[0].change))
    assert (answer.outcome, answer.failed) == ("died", (("w0", None),)) and book.rows == {}


def test_one_that_goes_because_it_was_asked_to_blames_nobody() -> None:
    book = PluginBook()
    played(book, HolderCame("w0", 1), HolderCame("w1", 2), ChangeAsked(1, "x", b"good"), HolderAnswered("w1", 2, 1))
    assert played(book, HolderLeft("w0", 1, True)) == [AnswerChange(1, "done", ("w1",))]


def test_one_that_cannot_go_back_is_given_up() -> None:
    book = PluginBook(rows={"x": b"old"})
    played(book, HolderCame("w0", 1), ChangeAsked(1, "x", b"new"))
    (undo,) = played(book, HolderAnswered("w0", 1, 1, "cannot"))
    assert undo.pickled == b"old"
    words = played(book, HolderAnswered("w0", 1, undo.change, "neither"))
    assert words == [GiveUpHolder("w0", 1), AnswerChange(1, "failed", (), (("w0", "cannot"),))]


def test_who_comes_while_a_plugin_is_removed_never_has_it() -> None:
    book = PluginBook(rows={"x": b"1", "y": b"2"})
    words = played(book, HolderCame("w0", 1), ChangeAsked(1, "x", None), HolderCame("w1", 2))
    assert words[-1] == BeginHolder("w1", 2, [("y", b"2")])
