"""Records are dataclasses with slots to all who look at them."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import pytest

from localdask.records import as_dict, as_tuple, field, record, replace

T = TypeVar("T")


@record
class Point:
    """A point."""

    x: int
    y: int = 0

    @property
    def sum(self) -> int:
        return self.x + self.y


@record
class Marked(Point):
    marks: list[str] = field(default_factory=list)
    name: str = "p"


@record(frozen=True)
class Fixed(Generic[T]):
    value: T
    marks: tuple[T, ...] = ()


@record
class Empty:
    pass


@dataclasses.dataclass(slots=True)
class Twin:
    x: int
    y: int = 0


def test_a_record_is_made_as_a_dataclass_is() -> None:
    assert Point(1) == Point(x=1, y=0) != Point(1, 1)
    assert Point(1, y=2).sum == 3
    assert repr(Point(1)) == "Point(x=1, y=0)"
    assert repr(Empty()) == "Empty()" and Empty() == Empty() != Point(1)
    assert inspect.signature(Point) == inspect.signature(lambda x, y=0: None)
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


@pytest.mark.parametrize("call", [lambda cls: cls(), lambda cls: cls(1, 2, 3), lambda cls: cls(1, z=2), lambda cls: cls(1, x=2)])
def test_what_does_not_fit_is_refused_in_the_words_of_a_function(call: Any) -> None:
    with pytest.raises(TypeError) as ours:
        call(Point)
    with pytest.raises(TypeError) as theirs:
        call(Twin)
    assert str(ours.value).partition("()")[1:] == str(theirs.value).partition("()")[1:]
    assert "__init__" in str(ours.value)


def test_it_has_slots_and_no_hash() -> None:
    with pytest.raises(AttributeError):
        Point(1).z = 2  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(1))


def test_fields_are_inherited_and_made_anew_for_each() -> None:
    one, two = Marked(1), Marked(1)
    one.marks.append("a")
    assert (two.marks, two.name, one.sum) == ([], "p", 1)
    assert Marked(1, 2, ["b"], "q") == Marked(name="q", marks=["b"], y=2, x=1)
    assert Marked(1, 0, []) == Marked(1) != Point(1)


def test_a_frozen_one_stays_as_it_is_and_can_be_a_key() -> None:
    one = Fixed("a", ("b",))
    for change in (lambda: setattr(one, "value", "c"), lambda: delattr(one, "value")):
        with pytest.raises(AttributeError, match="value"):
            change()
    assert {one: 1}[Fixed(marks=("b",), value="a")] == 1


@pytest.mark.parametrize("made", [Point(1, 2), Marked(1, marks=["a"]), Fixed(1, (2,)), Empty()])
def test_it_is_copied_and_pickled(made: Any) -> None:
    assert pickle.loads(pickle.dumps(made)) == made == copy.copy(made) == copy.deepcopy(made) == replace(made)


def test_the_dataclasses_module_takes_it_for_one_of_its_own() -> None:
    made = Marked(1, marks=["a"])
    assert dataclasses.is_dataclass(made)
    assert [each.name for each in dataclasses.fields(made)] == ["x", "y", "marks", "name"]
    assert dataclasses.asdict(made) == as_dict(made) == {"x": 1, "y": 0, "marks": ["a"], "name": "p"}
    assert dataclasses.astuple(made) == as_tuple(made)
    assert dataclasses.replace(made, y=3) == replace(made, y=3) == Marked(1, 3, ["a"])
    assert dataclasses.replace(Fixed(1), value=2) == Fixed(2)


def test_a_field_without_a_default_comes_first() -> None:
    with pytest.raises(TypeError, match="Late has a field without a default"):

        @record
        class Late(Point):
            z: int


def test_no_source_is_run_for_a_message_and_dataclasses_stay_out() -> None:
    code = "import sys, localdask.messages, localdask.state.scheduler, localdask.state.reload; assert 'dataclasses' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_init_is_made_when_the_first_record_is_and_is_one_for_all_threads() -> None:
    @record
    class Once:
        x: int
        y: list[int] = field(default_factory=list)

    @record(frozen=True)
    class Under(Once):
        z: int = 0

    assert not inspect.isfunction(vars(Once)["__init__"])
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda x: Under(x, z=1), range(100)))
    assert [each.x for each in made] == list(range(100))
    assert Once(1) == Once(1, []) and inspect.isfunction(vars(Once)["__init__"])
    assert inspect.isfunction(vars(Under)["__init__"])


def test_forked_children_find_every_init_compiled() -> None:
    code = """
        from localdask import records
        import localdask.messages
        records.warm()
        before = records._template.cache_info().misses
        for made in vars(localdask.messages).values():
            if hasattr(made, "__record_defaults__"):
                made.__init__
        assert before > 5 and records._template.cache_info().misses == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
