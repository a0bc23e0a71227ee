"""What a call that makes no sense is told, before anything of it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from localdask import Client, LocalCluster, annotate, as_completed
from localdask.errors import UsageError

pytestmark = pytest.mark.shared


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda client: client.submit(abs, -1, priority="high"), UsageError, "priority='high'; it is a number"),
        (lambda client: client.submit(abs, -1, retries="x"), UsageError, "retries='x'; it is a whole number"),
        (lambda client: client.submit(abs, -1, workers=1.5), TypeError, "workers=1.5; give a worker's name"),
        (lambda client: client.submit(abs, -1, key=object()), TypeError, "a key is a text, a number or bytes"),
        (lambda client: client.map(abs, 3), TypeError, "map runs over iterables, and 3 is none"),
        (lambda client: client.map(abs), TypeError, "map takes an iterable"),
        (lambda client: client.map(abs, [1, 2], key=["a"]), ValueError, "2 calls and 1 keys"),
        (lambda client: client.map(abs, [1], key=3), TypeError, "key=3; give a text"),
        (lambda client: as_completed([3]), TypeError, "as_completed yields futures, and 3 is none"),
        (lambda client: client.who_has([object]), TypeError, "is no future and no key"),
        (lambda client: client.get({"a": 1}, "b"), KeyError, "'b' is no key of the graph"),
        (lambda client: LocalCluster(n_workers=1, env={3: "A"}), UsageError, "3 cannot be set in an environment"),
        (lambda client: LocalCluster(n_workers=1, env={"A=B": "C"}), UsageError, "'A=B' cannot be set"),
        (lambda client: LocalCluster(n_workers=1, env=3), UsageError, "env=3; it is a mapping"),  # type: ignore[arg-type]
    ],
)
def test_it_names_the_argument_and_the_mend(client: Client, call: Callable[[Client], Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call(client)
    assert client.submit(abs, -3).result(timeout=20) == 3


def test_blocks_are_judged_each_for_itself(client: Client) -> None:
    with annotate(allow_other_workers=True):
        with annotate(retries=1):
            assert client.submit(abs, -4, workers="w0").result(timeout=20) == 4
        with annotate(workers="w0"):
            assert client.submit(abs, -5).result(timeout=20) == 5
        with pytest.raises(ValueError, match="goes with workers"):
            client.submit(abs, -6)
    with pytest.raises(UsageError, match="retries='x'"), annotate(retries="x"):
        pass
