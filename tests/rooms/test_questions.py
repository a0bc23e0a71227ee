"""Questions: each gets one answer, wherever the client is, and none is left waiting for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from localdask import Client, LocalCluster, get_client
from localdask.errors import ClosedClientError, ClosedClusterError, UsageError
from localdask.messages import Answered, Ask, Withdraw
from localdask.processes.questions import Question, Questions
from tests.conftest import wait_until


class Desk:
    """Questions with a note of all that is said."""

    def __init__(self, **answerers: Any) -> None:
        self.said: list[tuple[str, Answered]] = []
        self.questions = Questions(answerers, lambda client, word: self.said.append((client, word)))

    def ask(self, what: str, *arguments: Any, request: int = 1) -> None:
        self.questions.put(self.questions.open(Ask("c", request, what, arguments)))


def test_a_question_is_answered_once() -> None:
    kept: list[Question] = []
    desk = Desk(keep=kept.append)
    desk.ask("keep", 1, "two")
    assert kept[0].arguments == (1, "two") and not desk.said
    kept[0].answer([3])
    kept[0].answer([4])
    kept[0].fail(ValueError())
    assert desk.said == [("c", Answered(1, [3]))]


def test_what_an_answerer_raises_is_the_answer() -> None:
    def raises(question: Question) -> None:
        raise KeyError("no such thing")

    desk = Desk(raises=raises)
    desk.ask("raises")
    desk.ask("unheard of", request=2)
    assert [word.error is not None for _, word in desk.said] == [True, True]


def test_a_withdrawn_question_is_told_to_who_kept_it_and_not_answered() -> None:
    kept: list[Question] = []
    withdrawn: list[int] = []

    def keep(question: Question) -> None:
        kept.append(question)
        question.on_withdrawn = lambda: withdrawn.append(question.request)

    desk = Desk(keep=keep)
    desk.ask("keep", request=1)
    desk.ask("keep", request=2)
    desk.ask("keep", request=3)
    kept[2].answer()
    desk.questions.withdraw(Withdraw("c", 1))
    desk.questions.withdraw(Withdraw("c", 1))
    desk.questions.client_gone("c")
    desk.questions.client_gone("somebody else")
    kept[0].answer()
    assert withdrawn == [1, 2] and [word.request for _, word in desk.said] == [3]


def test_closing_fails_what_is_open_and_takes_in_no_more() -> None:
    kept: list[Question] = []
    desk = Desk(keep=kept.append)
    desk.ask("keep")
    desk.questions.close()
    assert len(desk.said) == 1 and desk.said[0][1].error
    with pytest.raises(ClosedClusterError):
        desk.ask("keep", request=2)


# ── with a cluster ───────────────────────────────────────────────────────────


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        cluster.scheduler.answerers["sum"] = lambda question: question.answer(sum(question.arguments))
        yield cluster


def ask_sum(*numbers: int) -> Any:
    return get_client()._ask("sum", *numbers)


def test_clients_in_the_process_and_in_tasks_ask_alike(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        assert client._ask("sum", 1, 2) == 3
        assert client.submit(ask_sum, 3, 4).result() == 7
        with pytest.raises(TypeError):
            client._ask("sum", "text")
        with pytest.raises(UsageError, match="no answer to 'nothing'"):
            client._ask("nothing")


def test_an_answer_that_does_not_come_in_time_is_withdrawn(cluster: LocalCluster) -> None:
    withdrawn = threading.Event()

    def keep(question: Question) -> None:
        question.on_withdrawn = withdrawn.set

    cluster.scheduler.answerers["keep"] = keep
    with Client(cluster) as client, pytest.raises(TimeoutError, match="'keep'"):
        client._ask("keep", timeout=0.05)
    assert withdrawn.wait(10)


@pytest.mark.parametrize("closes", ["client", "cluster"])
def test_closing_ends_the_wait_for_an_answer(closes: str) -> None:
    raised: list[BaseException] = []
    kept: list[Question] = []
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        cluster.scheduler.answerers["keep"] = kept.append

        def ask() -> None:
            try:
                client._ask("keep")
            except (ClosedClientError, ClosedClusterError) as error:
                raised.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: kept)
        (client if closes == "client" else cluster).close()
        thread.join()
        assert len(raised) == 1
        with pytest.raises((ClosedClientError, ClosedClusterError)):
            client._ask("keep")


def test_news_reach_who_listens(cluster: LocalCluster) -> None:
    heard: list[Any] = []
    with Client(cluster) as client:
        client._on_told["weather"] = heard.append
        cluster.scheduler.tell_client(client.id, "weather", {"sun": True})
        cluster.scheduler.tell_client(client.id, "nobody listens", 1)
        wait_until(lambda: heard)
    assert heard == [{"sun": True}]
