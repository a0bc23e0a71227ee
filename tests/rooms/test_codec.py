"""What is pickled comes back the same, quickly, and what cannot be pickled is named."""

from __future__ import annotations

import collections
import fnmatch
import functools
import gc
import math
import operator
import os.path
import pickle
import subprocess
import sys
import threading
import timeit
import types
import weakref
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdask.errors import SerializationError
from localdask.system import codec


class Future:
    """A future as the codec knows it."""

    __localdask_future__ = True

    def __init__(self, key: str) -> None:
        self.key = key

    def __reduce__(self) -> Any:
        codec.note_future(self)
        return (Future, (self.key,))


class Holder:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class Slotted:
    __slots__ = ("handle",)


class Grumpy:
    """Raises what it is told when it is pickled, and again when it is loaded."""

    def __init__(self, at_pickle: BaseException | None = None, at_load: type[BaseException] | None = None) -> None:
        self.at_pickle = at_pickle
        self.at_load = at_load

    def __reduce__(self) -> Any:
        if self.at_pickle is not None:
            raise self.at_pickle
        return (_raise, (self.at_load,))


def _raise(kind: type[BaseException]) -> None:
    raise kind("not here")


def notebook(text: str, **names: Any) -> dict[str, Any]:
    """Return the namespace of code that ran as a notebook's or script's ``__main__``."""
    namespace = {"__name__": "__main__", **names}
    exec(text, namespace)
    return namespace


def call(function: Any, *args: Any) -> Any:
    """Call a function as a worker would: from its pickle."""
    return codec.loads(codec.dumps_function(function).pickled)(*args)


def failure(obj: Any, what: str = "the argument") -> str:
    with pytest.raises(SerializationError) as caught:
        codec.dumps(obj, what)
    assert caught.value.__cause__ is not None
    return str(caught.value)


# ── anything ─────────────────────────────────────────────────────────────────

ATOMS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
NESTED = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.frozensets(st.integers() | st.text())
        | st.sets(st.integers())
    ),
)


@settings(max_examples=50)
@given(NESTED)
def test_plain_values_come_back_equal(value: Any) -> None:
    assert codec.loads(codec.dumps(value)) == value


@settings(max_examples=50)
@given(NESTED)
def test_small_results_travel_inline_and_come_back_equal(value: Any) -> None:
    data, nbytes = codec.dumps_result(value, 1 << 20)
    assert data is not None
    assert nbytes == len(data)
    assert codec.loads(data) == value


def test_plain_values_are_pickled_without_cloudpickle() -> None:
    script = (
        "import sys; from localdask.system import codec, outcomes; codec.dumps([1]); codec.dumps_function(len); codec.dumps_result('x');"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", script + "print('cloudpickle' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert loaded.stdout == "False\n"


def test_importing_the_codec_loads_nothing_dear() -> None:
    script = "import sys; import localdask.system.codec; dear = {'asyncio', 'cloudpickle', 'hashlib', 'socket', 'tempfile'};"
    loaded = subprocess.run([sys.executable, "-c", script + "print(dear & set(sys.modules))"], capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"


def test_warming_imports_cloudpickle_once() -> None:
    assert codec.warm() is cloudpickle
    assert codec.warm() is cloudpickle


def test_what_lives_in_main_travels_by_value() -> None:
    script = "class A:\n  x = 5\nfrom localdask.system import codec\nimport sys\nsys.stdout.buffer.write(codec.dumps([A(), lambda: A.x]))"
    data = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    instance, function = codec.loads(data)
    assert instance.x == function() == 5


def test_a_cached_function_of_main_travels_with_what_it_wraps() -> None:
    fib = notebook("import functools\n@functools.lru_cache(maxsize=3)\ndef fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)")["fib"]
    loaded = codec.loads(codec.dumps(fib))
    assert loaded(80) == 23416728348467685
    assert loaded.cache_parameters() == {"maxsize": 3, "typed": False}
    assert call(fib, 10) == 55
    importable = fnmatch._compile_pattern  # type: ignore[attr-defined]
    assert codec.loads(codec.dumps([lambda: 1, importable]))[1] is importable


def test_code_of_main_travels_with_the_file_that_it_was_written_in() -> None:
    cell: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("def outer():\n    return lambda: 1", "/home/ann/analysis.py", "exec"), cell)
    outer = codec.loads(codec.dumps(cell["outer"]))
    assert outer.__code__.co_filename == outer().__code__.co_filename == "/home/ann/analysis.py"


def test_text_that_only_mentions_main_still_travels() -> None:
    assert codec.loads(codec.dumps("if __name__ == '__main__':")) == "if __name__ == '__main__':"


def test_a_module_registered_by_value_travels_by_value() -> None:
    module = types.ModuleType("planted_by_value")
    sys.modules[module.__name__] = module
    try:
        exec("def f():\n    return 7", module.__dict__)
        assert len(codec.dumps(module.f)) < 100
        cloudpickle.register_pickle_by_value(module)
        try:
            data = codec.dumps(module.f)
            packed = codec.dumps_function(module.f)
        finally:
            cloudpickle.unregister_pickle_by_value(module)
    finally:
        del sys.modules[module.__name__]
    assert codec.loads(data)() == 7
    assert codec.loads(packed.pickled)() == 7


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, RecursionError, MemoryError, AttributeError])
def test_whatever_pickling_code_raises_becomes_a_serialization_error(kind: type[BaseException]) -> None:
    text = failure([Grumpy(at_pickle=kind("no"))])
    assert kind.__name__ in text


@pytest.mark.parametrize("kind", [ValueError, SystemExit, GeneratorExit, RecursionError, MemoryError])
def test_whatever_loading_code_raises_becomes_a_serialization_error(kind: type[BaseException]) -> None:
    with pytest.raises(SerializationError, match=f"cannot unpickle the value: {kind.__name__}: not here"):
        codec.loads(codec.dumps(Grumpy(at_load=kind)))


def test_an_interrupt_while_pickling_stays_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        codec.dumps(Grumpy(at_pickle=KeyboardInterrupt()))


def test_a_missing_module_at_the_reader_is_told_with_the_mend() -> None:
    data = codec.dumps(Holder()).replace(b"tests.rooms.test_codec", b"tests.rooms.test_cedoc")
    with pytest.raises(SerializationError, match=r"upload_file, or .*register_pickle_by_value"):
        codec.loads(data)


# ── culprits ─────────────────────────────────────────────────────────────────

LOCK = threading.Lock()


def uses_lock() -> Any:
    return LOCK


uses_lock.__module__ = "__main__"  # as if it had been written in a script
uses_lock.__qualname__ = "uses_lock"


def closes_over(thing: Any) -> Any:
    def inner() -> Any:
        return thing

    return inner


def test_the_culprit_is_named_with_its_path_in_the_arguments() -> None:
    with pytest.raises(SerializationError) as caught:
        codec.dumps_arguments(({"lock": LOCK},), {})
    assert str(caught.value).startswith(
        "cannot pickle the arguments: args[0]['lock'] is a _thread.lock; create it inside the task, or in a preload"
    )


def test_the_culprit_is_named_with_its_path_in_the_keywords() -> None:
    with pytest.raises(SerializationError, match=r"kwargs\['x'\]\[1\]\.lock is a _thread\.lock"):
        codec.dumps_arguments((1,), {"x": (0, Holder(lock=LOCK))})


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: closes_over([LOCK]), "closure variable thing[0] is a _thread.lock"),
        (lambda: uses_lock, "uses_lock → global LOCK is a _thread.lock"),
        (lambda: lambda x=LOCK: x, "→ default 0 is a _thread.lock"),
        (lambda: closes_over(closes_over({"a": LOCK})), "closure variable thing → closure variable thing['a'] is a _thread.lock"),
        (lambda: functools.partial(operator.add, LOCK), ".args[0] is a _thread.lock"),
        (lambda: functools.partial(operator.add, x=LOCK), ".keywords['x'] is a _thread.lock"),
        (lambda: Holder(lock=LOCK, run=1).__init__, ".__self__.lock is a _thread.lock"),
    ],
)
def test_the_culprit_is_named_with_its_path_in_a_function(make: Any, path: str) -> None:
    with pytest.raises(SerializationError) as caught:
        codec.dumps_function(make())
    assert path in str(caught.value)
    assert str(caught.value).startswith("cannot pickle the function ")


def test_the_culprit_is_found_in_slots_sets_keys_and_states() -> None:
    slotted = Slotted()
    slotted.handle = LOCK
    assert "argument.handle is a _thread.lock" in failure(slotted)
    assert "argument → an element.lock is a _thread.lock" in failure({Holder(lock=LOCK)})
    assert "argument → key" in failure({closes_over(LOCK): 1})
    assert "argument[0].lock" in failure(collections.deque([Holder(lock=LOCK)])) or "deque" in failure(
        collections.deque([Holder(lock=LOCK)])
    )


def test_a_culprit_by_itself_is_called_it() -> None:
    assert failure(LOCK, "the result").startswith("cannot pickle the result: it is a _thread.lock; ")


def test_each_kind_of_culprit_has_its_mend() -> None:
    assert "make a list of it first" in failure(i for i in "abc")
    with open(os.devnull, "w") as file:
        assert "pass its name and open it inside the task" in failure([file])
    assert "give it a __reduce__ that works" in failure(Grumpy(at_pickle=ValueError("no")))


def test_an_object_nested_too_deeply_is_told_as_that() -> None:
    nested: list[Any] = []
    for _ in range(200_000):
        nested = [nested]
    text = failure(nested)
    assert "nested too deeply" in text
    assert "make it flatter" in text
    while nested:  # let go of it piece by piece, or its own deletion runs deep
        nested = nested[0]


def test_the_search_for_the_culprit_survives_hostile_objects() -> None:
    class Meta(type):
        def __getattribute__(cls, name: str) -> Any:
            if name in ("fileno", "close", "__module__", "__qualname__"):
                raise SystemExit("hands off")
            return super().__getattribute__(name)

    class Hostile(metaclass=Meta):
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise SystemExit("mine")

        def __repr__(self) -> str:
            raise SystemExit("mine")

        __str__ = __repr__

    assert "SystemExit" in failure({"a": [Hostile()]})
    assert "SystemExit" in failure({Hostile(): LOCK})


def test_the_search_for_the_culprit_ends_in_a_circle_and_in_a_crowd() -> None:
    circle: list[Any] = [LOCK]
    circle.insert(0, circle)
    assert "_thread.lock" in failure(circle)
    crowd = [Holder() for _ in range(3000)] + [LOCK]
    assert "list" in failure(crowd)
    assert "argument[3000] is a _thread.lock" in failure([*range(3000), LOCK])


# ── functions ────────────────────────────────────────────────────────────────


class Callable:
    def __call__(self, x: int) -> int:
        return x + 1

    def method(self, x: int) -> int:
        return x + 2


@pytest.mark.parametrize(
    ("function", "name", "argument", "expected"),
    [
        (math.sqrt, "sqrt", 9, 3),
        (os.path.basename, "basename", "a/b", "b"),
        (int, "int", "5", 5),
        (Callable(), "Callable", 1, 2),
        (Callable().method, "method", 1, 3),
        (functools.partial(functools.partial(operator.add, 5)), "add", 1, 6),
        (operator.itemgetter(1), "itemgetter", "ab", "b"),
        ("abc".index, "index", "c", 2),
        (lambda x: x * 2, "<lambda>", 4, 8),
    ],
)
def test_every_kind_of_callable_travels_with_its_name(function: Any, name: str, argument: Any, expected: Any) -> None:
    packed = codec.dumps_function(function)
    assert packed.name == name
    assert codec.loads(packed.pickled)(argument) == expected


def test_a_function_has_the_same_id_each_time_and_others_have_others() -> None:
    one, two = notebook("f = lambda x: x + 1")["f"], notebook("f = lambda x: x + 2")["f"]
    assert codec.dumps_function(one).function_id == codec.dumps_function(one).function_id
    assert codec.dumps_function(one).function_id != codec.dumps_function(two).function_id
    assert codec.dumps_function(math.sqrt).function_id == codec.dumps_function(math.sqrt).function_id


def test_a_plain_lambda_is_pickled_once() -> None:
    function = notebook("f = lambda x: len(x) + 1")["f"]
    assert codec.dumps_function(function) is codec.dumps_function(function)


def test_a_cached_function_costs_a_fraction_of_its_pickling() -> None:
    function = notebook("f = lambda x: x + 1")["f"]
    codec.dumps_function(function)
    cached = min(timeit.repeat(lambda: codec.dumps_function(function), number=500, repeat=5))
    pickled = min(timeit.repeat(lambda: cloudpickle.dumps(function, 5), number=500, repeat=5))
    assert cached * 3 < pickled


def test_an_importable_function_is_pickled_once_and_by_name() -> None:
    packed = codec.dumps_function(os.path.join)
    assert packed is codec.dumps_function(os.path.join)
    assert len(packed.pickled) < 60


def test_a_redefined_global_is_seen() -> None:
    cell = notebook("factor = 2\ndef f(x):\n    return x * factor")
    assert call(cell["f"], 10) == 20
    exec("factor = 3", cell)
    assert call(cell["f"], 10) == 30


def test_a_global_defined_after_the_first_submit_is_seen() -> None:
    cell = notebook("def f():\n    return late()")
    with pytest.raises(NameError):
        call(cell["f"])
    exec("def late():\n    return 4", cell)
    assert call(cell["f"]) == 4


def test_a_redefined_helper_is_seen_also_two_calls_away() -> None:
    cell = notebook("def c():\n    return 1\ndef b():\n    return c()\ndef a():\n    return b()")
    assert call(cell["a"]) == 1
    assert codec.dumps_function(cell["a"]) is codec.dumps_function(cell["a"])
    exec("def c():\n    return 2", cell)
    assert call(cell["a"]) == 2


def test_a_changed_global_of_a_helper_is_seen() -> None:
    cell = notebook("n = 1\ndef b():\n    return n\ndef a():\n    return b()")
    assert call(cell["a"]) == 1
    cell["n"] = 5
    assert call(cell["a"]) == 5


@pytest.mark.parametrize("make", [list, dict, set, Holder, bytearray])
def test_a_mutable_thing_that_is_captured_is_pickled_afresh_each_time(make: Any) -> None:
    thing = make()
    cell = notebook("def f():\n    return thing", thing=thing)
    first = codec.dumps_function(cell["f"])
    assert codec.dumps_function(cell["f"]) is not first
    assert codec.dumps_function(closes_over(thing)) is not codec.dumps_function(closes_over(thing))


def test_a_mutated_captured_list_is_seen() -> None:
    data = [1]
    function = closes_over(data)
    assert call(function) == [1]
    data.append(2)
    assert call(function) == [1, 2]


def test_a_mutated_default_is_seen() -> None:
    cell = notebook("def f(x=[]):\n    return x\ndef g(*, y=[]):\n    return y")
    assert call(cell["f"]) == call(cell["g"]) == []
    cell["f"].__defaults__[0].append(1)
    assert call(cell["f"]) == [1]
    cell["g"].__kwdefaults__["y"].append(2)
    assert call(cell["g"]) == [2]


@pytest.mark.parametrize("body", ["(lambda: n)()", "[n for _ in 'a'][0]", "next(n for _ in 'a')", "(lambda: (lambda: n)())()"])
def test_a_changed_global_that_only_inner_code_uses_is_seen(body: str) -> None:
    cell = notebook(f"n = 1\ndef f():\n    return {body}")
    assert call(cell["f"]) == 1
    assert codec.dumps_function(cell["f"]) is codec.dumps_function(cell["f"])
    cell["n"] = 2
    assert call(cell["f"]) == 2


def test_a_list_inside_a_captured_tuple_is_seen() -> None:
    data = ([1],)
    function = closes_over(data)
    assert call(function) == ([1],)
    data[0].append(2)
    assert call(function) == ([1, 2],)


def test_a_changed_closure_variable_is_seen() -> None:
    value = 1

    def function() -> int:
        return value

    function.__module__ = "__main__"
    assert call(function) == 1
    value = 2
    assert call(function) == 2


def test_a_changed_class_of_the_notebook_is_seen() -> None:
    cell = notebook("class Config:\n    x = 1\ndef f():\n    return Config.x")
    data = codec.dumps_function(cell["f"]).pickled
    cell["Config"].x = 2
    assert codec.dumps_function(cell["f"]).pickled != data


@pytest.mark.parametrize(
    "change",
    [
        "f.__code__ = (lambda x=0: 2).__code__",
        "f.__defaults__ = (2,)",
        "f.__kwdefaults__ = {'y': 2}",
        "f.__kwdefaults__['y'] = 2",
        "f.note = 2",
        "f.__name__ = 'g'",
    ],
)
def test_a_changed_part_of_the_function_itself_is_seen(change: str) -> None:
    cell = notebook("def f(x=1, *, y=1):\n    return x + y")
    first = codec.dumps_function(cell["f"])
    assert codec.dumps_function(cell["f"]) is first
    exec(change, cell)
    changed = codec.dumps_function(cell["f"])
    assert changed.pickled != first.pickled
    assert changed.name == cell["f"].__name__


def test_a_submodule_imported_later_is_seen() -> None:
    script = """if 1:
        import sys
        from localdask.system import codec
        codec.warm()
        import xml
        f = lambda: xml.sax.__name__
        first = codec.dumps_function(f)
        assert codec.dumps_function(f) is first
        import xml.sax
        assert codec.dumps_function(f) is not first
        sys.stdout.buffer.write(codec.dumps_function(f).pickled)
    """
    data = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert codec.loads(data)() == "xml.sax"


def test_an_importable_function_whose_name_was_taken_by_another_travels_by_value() -> None:
    module = types.ModuleType("planted_reloaded")
    sys.modules[module.__name__] = module
    try:
        exec("def f():\n    return 1", module.__dict__)
        old = module.f
        assert call(old) == 1
        exec("def f():\n    return 2", module.__dict__)
        assert call(old) == 1
        assert call(module.f) == 2
    finally:
        del sys.modules[module.__name__]


def test_the_cache_keeps_no_function_alive() -> None:
    cell = notebook("def f(n):\n    return n and g(n - 1)\ndef g(n):\n    return f(n)\nclass A: pass")
    function = cell["f"]
    assert codec.dumps_function(function) is codec.dumps_function(function)
    gone = [weakref.ref(function), weakref.ref(cell["g"])]
    del function
    cell.clear()
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_functions_that_capture_more_than_is_worth_comparing_still_travel() -> None:
    text = "\n".join(f"def f{number}():\n    return f{number + 1}()" for number in range(40)) + "\ndef f40():\n    return 1"
    assert call(notebook(text)["f0"]) == 1


def test_threads_that_pickle_the_same_functions_get_whole_ones() -> None:
    cell = notebook("n = 0\ndef f():\n    return n, n")
    wrong: list[Any] = []

    def pickle_often() -> None:
        for _ in range(200):
            one, two = call(cell["f"])
            if one != two:
                wrong.append((one, two))
            cell["n"] += 1

    threads = [threading.Thread(target=pickle_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert call(cell["f"]) == (cell["n"], cell["n"])


def test_a_callable_that_lies_about_its_name_has_its_types_name() -> None:
    class Liar:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    class Number(Callable):
        __name__ = 5  # type: ignore[assignment]

    assert codec.function_name(Liar()) == "Liar"
    assert codec.function_name(Number()) == "Number"


# ── arguments ────────────────────────────────────────────────────────────────


def through(args: tuple[Any, ...], kwargs: dict[str, Any], **values: Any) -> tuple[Any, ...]:
    """Send arguments to a worker that has these values of their futures; return them and the futures' keys."""
    data, futures = codec.dumps_arguments(args, kwargs)
    return (*codec.loads_arguments(data, values), [future.key for future in futures])


def test_arguments_without_futures_come_back_as_they_were() -> None:
    assert through((1, "a", [2]), {"x": {3}}) == ((1, "a", [2]), {"x": {3}}, [])


def test_arguments_without_futures_cost_little_more_than_their_pickle() -> None:
    args = ([*range(20_000)],)
    bare = min(timeit.repeat(lambda: pickle.dumps((args, {}), 5), number=5, repeat=5))
    ours = min(timeit.repeat(lambda: codec.dumps_arguments(args, {}), number=5, repeat=5))
    assert ours < bare * 2


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((Future("a"),), {}, ((1,), {})),
        ((0, Future("a"), Future("b"), Future("a")), {"x": 0}, ((0, 1, 2, 1), {"x": 0})),
        (([Future("a")],), {}, (([1],), {})),
        ((Future("b"), [Future("a")]), {}, ((2, [1]), {})),
        (({"k": (Future("a"), [Future("b")])},), {}, (({"k": (1, [2])},), {})),
        (({Future("a")}, frozenset({Future("b")})), {}, (({1}, frozenset({2})), {})),
        (({Future("a"): Future("b")},), {}, (({1: 2},), {})),
        ((), {"x": Future("a"), "y": [Future("b")]}, ((), {"x": 1, "y": [2]})),
        ((*range(20), Future("a")), {}, ((*range(20), 1), {})),
    ],
)
def test_futures_in_plain_containers_are_replaced_by_their_values(args: Any, kwargs: Any, expected: Any) -> None:
    loaded_args, loaded_kwargs, keys = through(args, kwargs, a=1, b=2)
    assert (loaded_args, loaded_kwargs) == expected
    assert set(keys) <= {"a", "b"}
    assert len(keys) == len(set(keys))


FUTURES = st.builds(Future, st.sampled_from("abc"))


@settings(max_examples=60)
@given(
    st.recursive(
        FUTURES | st.integers() | st.frozensets(FUTURES | st.integers()),
        lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(max_size=2), inner),
    )
)
def test_any_nesting_of_futures_is_found_and_filled(structure: Any) -> None:
    found: set[str] = set()

    def filled(obj: Any) -> Any:
        if isinstance(obj, Future):
            found.add(obj.key)
            return ("value of", obj.key)
        if isinstance(obj, dict):
            return {key: filled(value) for key, value in obj.items()}
        return type(obj)(map(filled, obj)) if isinstance(obj, (list, tuple, frozenset)) else obj

    expected = filled(structure)
    (loaded,), kwargs, keys = through((structure,), {}, **{key: ("value of", key) for key in "abc"})
    assert (loaded, kwargs, set(keys)) == (expected, {}, found)


def test_a_future_inside_another_object_stays_a_future() -> None:
    (holder,), _kwargs, keys = through((Holder(inner=Future("a")),), {})
    assert isinstance(holder.inner, Future)
    assert keys == []


def test_a_list_subclass_is_not_looked_into() -> None:
    class_of_lists = collections.deque
    (found,), _kwargs, keys = through((class_of_lists([Future("a")]),), {})
    assert isinstance(found[0], Future)
    assert keys == []


def test_the_callers_own_containers_are_not_changed() -> None:
    inner = [Future("a"), 5]
    through((inner, {"x": inner}), {}, a=1)
    assert isinstance(inner[0], Future)


def test_a_container_inside_itself_ends_the_walk() -> None:
    circle: list[Any] = [Future("a")]
    circle.append(circle)
    (found,), _kwargs, keys = through((circle,), {}, a=1)
    assert found[0] == 1
    assert keys == ["a"]


def test_containers_shared_a_billion_times_are_walked_once() -> None:
    shared: list[Any] = [Future("a")]
    for _ in range(60):
        shared = [shared, shared]
    (found,), _kwargs, _keys = through((shared,), {}, a=1)
    for _ in range(60):
        found = found[0]
    assert found == [1]


def test_an_input_that_is_not_there_is_a_key_error() -> None:
    data, _futures = codec.dumps_arguments((Future("a"),), {})
    with pytest.raises(KeyError, match="a"):
        codec.loads_arguments(data, {"b": 1})


def test_arguments_are_collected_for_the_call_and_the_thread_that_pickles_them() -> None:
    class Submits:
        """An object that submits a task of its own while it is pickled."""

        def __reduce__(self) -> Any:
            nested.append(codec.dumps_arguments((Future("inner"),), {})[1])
            return (int, ())

    nested: list[Any] = []
    _data, futures = codec.dumps_arguments((Submits(), [Future("outer")]), {})
    assert [future.key for future in futures] == ["outer"]
    assert {future.key for found in nested for future in found} == {"inner"}
    codec.note_future(Future("nobody asked"))
    assert codec.dumps_arguments((1,), {})[1] == []


def test_a_failed_pickling_leaves_no_collector_behind() -> None:
    with pytest.raises(SerializationError):
        codec.dumps_arguments((Future("a"), LOCK), {})
    assert codec._collector.met is None


# ── results and buffers ──────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [lambda n: b"x" * n, lambda n: "x" * n, bytearray, lambda n: np.zeros(n, "u1"), lambda n: [b"x" * n]])
def test_results_up_to_the_limit_travel_inline_and_larger_ones_are_measured(make: Any) -> None:
    data, nbytes = codec.dumps_result(make(500), 1000)
    assert data is not None
    assert nbytes == len(data)
    data, nbytes = codec.dumps_result(make(5000), 1000)
    assert data is None
    assert 5000 <= nbytes < 5500


def test_a_large_array_is_measured_without_being_copied() -> None:
    array = np.zeros(1 << 20)

    class Counting:
        """Hands out its buffer as an array does, and says when somebody wants it in the stream."""

        def __reduce_ex__(self, protocol: int) -> Any:
            return (bytes, (pickle.PickleBuffer(array),))

    header, buffers = codec.dumps_buffers(Counting())
    assert len(header) < 200
    assert np.shares_memory(np.frombuffer(buffers[0], "f8"), array)
    assert codec.dumps_result(array)[0] is None


def test_a_result_that_cannot_be_pickled_is_named() -> None:
    for inline_max in (0, 1 << 20):
        with pytest.raises(SerializationError, match=r"cannot pickle the result: result\['lock'\] is a _thread\.lock"):
            codec.dumps_result({"lock": LOCK, "large": np.zeros(1000)}, inline_max)


def test_a_result_that_only_cloudpickle_takes_travels() -> None:
    data, _nbytes = codec.dumps_result(lambda: 5)
    assert data is not None
    assert codec.loads(data)() == 5
    data, nbytes = codec.dumps_result((lambda: 5, np.zeros(100_000)))
    assert data is None
    assert nbytes > 800_000


STRUCTURED = np.dtype([("a", "i4"), ("b", "f8", (2,)), ("c", "S5")])
BIG = np.arange(6000)
ZOO: dict[str, Any] = {
    "contiguous": BIG,
    "fortran": np.asfortranarray(BIG.reshape(60, 100)),
    "strided": BIG[::3],
    "reversed": BIG[::-1],
    "transposed slice": BIG.reshape(60, 100)[5:50, ::7].T,
    "empty": np.zeros((0, 5)),
    "scalar array": np.array(5.0),
    "structured": np.zeros(500, STRUCTURED),
    "objects": np.array([{"a": 1}, None, "x"], dtype=object),
    "dates": np.arange("2020-01", "2021-01", dtype="datetime64[D]"),
    "bools": np.ones(3000, bool),
    "bytes": b"b" * 5000,
    "bytearray": bytearray(5000),
    "empty bytes": b"",
    "nested": {"x": [BIG, (BIG[::2], b"y" * 3000)], "y": "text"},
    "read-only": np.frombuffer(b"z" * 4000, "u1"),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


@pytest.mark.parametrize("name", ZOO)
def test_arrays_and_bytes_come_back_from_their_buffers(name: str) -> None:
    header, buffers = codec.dumps_buffers(ZOO[name])
    copies = [bytearray(buffer) for buffer in buffers]
    assert same(ZOO[name], codec.loads_buffers(header, copies))


@pytest.mark.parametrize("name", ZOO)
def test_arrays_and_bytes_come_back_inline(name: str) -> None:
    data, _nbytes = codec.dumps_result(ZOO[name], 1 << 30)
    assert data is not None
    assert same(ZOO[name], codec.loads(data))


def test_small_buffers_stay_in_the_pickle_and_large_ones_do_not() -> None:
    header, buffers = codec.dumps_buffers([np.zeros(4)] * 5 + [BIG])
    assert [buffer.nbytes for buffer in buffers] == [BIG.nbytes]
    assert len(header) < 2000


def test_buffers_met_before_plain_pickling_fails_are_not_sent_twice() -> None:
    header, buffers = codec.dumps_buffers([BIG, lambda: 5])
    assert len(buffers) == 1
    array, function = codec.loads_buffers(header, buffers)
    assert same(array, BIG)
    assert function() == 5


def test_large_bytes_are_not_copied_into_the_pickle() -> None:
    for value in (b"x" * 100_000, bytearray(b"x" * 100_000)):
        header, buffers = codec.dumps_buffers(value)
        assert len(header) < 100
        loaded = codec.loads_buffers(header, buffers)
        assert type(loaded) is type(value)
        assert loaded == value
        assert loaded is not value


def test_a_buffer_with_holes_which_no_pickle_can_hold_is_named() -> None:
    class Holes:
        def __reduce_ex__(self, protocol: int) -> Any:
            return (bytes, (pickle.PickleBuffer(memoryview(bytes(range(200)))[::2]),))

    with pytest.raises(SerializationError, match="cannot pickle the value: .*non-contiguous"):
        codec.dumps_buffers(Holes())


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3000), max_size=6), st.integers(0, 4000))
def test_any_mixture_of_sizes_comes_back_whatever_stays_in_band(sizes: list[int], inline_max: int) -> None:
    value = [np.arange(size, dtype="u1") for size in sizes]
    header, buffers = codec.dumps_buffers(value)
    assert same(value, codec.loads_buffers(header, buffers))
    data, nbytes = codec.dumps_result(value, inline_max)
    assert nbytes >= sum(sizes)
    assert (data is None) == (nbytes > inline_max)
    assert data is None or same(value, codec.loads(data))


def test_functions_are_pickled_while_another_thread_imports_the_pickler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cloudpickle.cloudpickle", types.ModuleType("half-imported"))
    assert codec.loads(codec.dumps([1])) == [1] and codec.dumps_function(functools.wraps).name == "wraps"
