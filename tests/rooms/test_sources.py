"""Reading preloads: what a name is, what is refused and with which words."""

from __future__ import annotations

import http.server
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localdask.errors import LocaldaskError, PreloadError, UsageError
from localdask.preloads import trust, urls
from localdask.preloads.sources import Helper, Source, hash_code, may_be_click, read_source, read_sources, renew_source, spread_argv
from localdask.processes.source_book import SourceBook
from tests.conftest import write


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


# ── what a string is ─────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("ready_made.py", "file"),
        ("./ready_made.py", "file"),
        ("with blank.py", "file"),
        ("no_extension", "file"),
        ("json", "module"),
        ("json.tool", "module"),
        ("package_here", "module"),
        ("package_here.inside", "module"),
        ("x=1", "text"),
        ("x = a/b", "text"),
        ("import os; os.environ['A'] = 'b'", "text"),
        ("pass", "text"),
        ("import json\nimport os", "text"),
        ("print()", "text"),
    ],
)
def test_a_string_is_taken_for_a_file_a_module_or_text_by_its_look(folder: Path, spec: str, kind: str) -> None:
    for name in ("ready_made.py", "with blank.py", "no_extension", "package_here/__init__.py", "package_here/inside.py"):
        write(folder / name)
    assert read_source(spec).kind == kind


def test_a_path_object_is_a_file(folder: Path) -> None:
    path = write(folder / "odd_name.txt", "x = 1")
    source = read_source(path)
    assert (source.kind, source.path, source.code) == ("file", str(path), b"x = 1")


def test_home_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    write(folder / "at_home.py")
    assert read_source("~/at_home.py").path == str(folder / "at_home.py")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("missing_file.py", ["no such file", "missing_file.py", "seen from"]),
        ("some/where", ["no such file", "some/where"]),
        ("/no/such/thing", ["no such file"]),
        ("./lone\ud800surrogate.py", ["can be no file", "surrogates not allowed", "UTF-8"]),
        ("a_folder/", ["is a directory", "name a .py file in it"]),
        ("./a_package", ["is a directory", "name it as a module"]),
        ("no_such_module_here", ["no module that can be found", "installed"]),
        ("no.such.module", ["no module that can be found"]),
        ("beside.it", ["did you mean beside/it.py?"]),
        ("json.tool:main", ["names a function", "'json.tool'", "dask_setup"]),
        ("a_folder", ["without __init__.py", "name a file in it"]),
        ("book.ipynb", ["notebook"]),
        ("old.pyc", ["compiled"]),
        ("a_package/__init__.py", ["name the package as a module", "a_package"]),
        ("__main__", ["every process"]),
        ("", ["empty string"]),
        ("  ", ["empty string"]),
    ],
)
def test_a_name_that_makes_no_sense_is_told_with_its_mend(
    folder: Path, spec: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a_folder/x.txt", "a_package/__init__.py", "beside/it.py", "book.ipynb", "old.pyc"):
        write(folder / name)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(folder)] + ([str(folder)] if spec == "a_folder" else []))
    with pytest.raises(UsageError) as caught:
        read_source(spec)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(("spec", "word"), [(os, "'os'"), (len, "dask_setup"), (3, "path"), (b"x.py", "path")])
def test_what_is_neither_string_nor_path_is_refused_with_what_to_write(spec: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        read_source(spec)


def test_a_module_is_found_without_running_it_or_its_parents(folder: Path) -> None:
    write(folder / "loud_parent/__init__.py", "raise SystemExit('the parent ran')")
    path = write(folder / "loud_parent/loud_child.py", "raise SystemExit('the child ran')")
    source = read_source("loud_parent.loud_child")
    assert (source.kind, source.path, source.module_name) == ("module", str(path), "loud_parent.loud_child")
    assert not {"loud_parent", "loud_parent.loud_child"} & sys.modules.keys()


def test_an_installed_module_is_not_shipped_nor_watched() -> None:
    source = read_source("json.tool")
    assert (source.hash, source.code, source.is_watched) == ("", b"", False)


def test_an_indented_text_is_read_as_it_was_meant() -> None:
    assert read_source("\n    import os\n    x = 1\n").code == b"\nimport os\nx = 1\n"


# ── reading ──────────────────────────────────────────────────────────────────


def test_a_syntax_error_names_file_line_and_column_and_points_at_it(folder: Path) -> None:
    path = write(folder / "broken.py", "import os\ndef f(:\n    pass\n")
    with pytest.raises(PreloadError) as caught:
        read_source("broken.py")
    assert caught.value.where == f"{path}:2:7"
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:2:7: SyntaxError: ")
    assert lines[1:] == ["    def f(:", "          ^"]


def test_a_caret_stands_right_under_tabs_and_in_long_lines(folder: Path) -> None:
    write(folder / "tabbed.py", "if 1:\n\tx = = 1\n")
    with pytest.raises(PreloadError) as caught:
        read_source("tabbed.py")
    line, caret = caught.value.detail.splitlines()
    assert line[: len(caret.rstrip("^"))].count("\t") == caret.count("\t")
    write(folder / "wide.py", "x = '" + "a" * 5000 + "' = = 1\n")
    with pytest.raises(PreloadError) as caught:
        read_source("wide.py")
    assert max(map(len, caught.value.detail.splitlines())) < 130


@pytest.mark.parametrize(
    "code", [b"\xff\xfe\x00", b"x = '\xe4'\n", b"x = 1\0\n", b"# coding: no-such-codec\n", b"(" * 5000, b"if 1:\n  x\n y\n"]
)
def test_what_is_no_python_source_is_refused(folder: Path, code: bytes) -> None:
    (folder / "garbage.py").write_bytes(code)
    with pytest.raises(PreloadError, match=r"garbage\.py") as caught:
        read_source("garbage.py")
    assert len(str(caught.value).splitlines()) <= 12


def test_a_declared_encoding_is_heard(folder: Path) -> None:
    (folder / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe4'\n")
    assert b"\xe4" in read_source("latin.py").code


def test_an_empty_file_is_a_preload_without_hooks(folder: Path) -> None:
    write(folder / "nothing_in_it.py")
    assert read_source("nothing_in_it.py").code == b""


def test_what_is_no_regular_file_is_refused_without_waiting(folder: Path) -> None:
    os.mkfifo(folder / "pipe.py")
    with pytest.raises(UsageError, match="no regular file"):
        read_source("pipe.py")


def test_nothing_is_compiled_to_disk(folder: Path) -> None:
    read_source(write(folder / "no_cache.py", "x = 1"))
    assert [path.name for path in folder.iterdir()] == ["no_cache.py"]


def test_a_source_travels_as_plain_data(folder: Path) -> None:
    source = read_source(write(folder / "traveller.py", "x = 1"), ["--a", "b"])
    row = Source(**{**{name: getattr(source, name) for name in source.__slots__}, "helpers": (Helper("h", "/h.py", b"", ""),)}).to_wire()
    again = Source.from_wire(row)
    assert again.to_wire() == row
    assert again.argv == ("--a", "b") and again.helpers[0].path == "/h.py"
    assert again.hash == hash_code(b"x = 1")


def test_a_renewed_source_has_what_the_file_holds_now(folder: Path) -> None:
    path = write(folder / "edited.py", "x = 1")
    source = read_source(path, ["--a"])
    assert renew_source(source) == source
    write(path, "x = 2")
    newer = renew_source(source)
    assert (newer.code, newer.argv, newer.generation) == (b"x = 2", ("--a",), 1) and newer.hash != source.hash
    with pytest.raises(PreloadError, match="SyntaxError"):
        renew_source(source, b"x = = 2")
    path.unlink()
    with pytest.raises(UsageError, match="no such file"):
        renew_source(source)


def test_a_label_is_short_and_harmless(folder: Path) -> None:
    assert read_source("x=1\nimport os\n" + "#" * 500).label.isprintable()
    assert len(read_source("x=1\nimport os\n" + "#" * 500).label) < 80
    hostile = write(folder / "esc\x1b[31m.py")
    assert "\x1b" not in read_source(hostile).label


# ── names that clash ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["time.py", "calendar.py", "sys.py", "click.py", "localdask.py", "__main__.py"])
def test_a_file_that_would_hide_another_module_is_refused_and_says_which(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(folder)])
    write(folder / name)
    with pytest.raises(UsageError, match=r"would hide .*rename the file"):
        read_source(name)


def test_a_file_that_is_importable_already_hides_nothing(folder: Path) -> None:
    write(folder / "importable_itself.py", "x = 1")
    __import__("importable_itself")
    try:
        assert read_source("importable_itself.py").module_name == "importable_itself"
    finally:
        del sys.modules["importable_itself"]


def test_two_preloads_of_one_module_name_are_refused_with_both_names(folder: Path) -> None:
    write(folder / "one/twin.py")
    write(folder / "two/twin.py")
    folder_two = str(folder / "two" / "twin.py")
    with pytest.raises(UsageError, match=r"one/twin\.py and .*two/twin\.py.*rename"):
        read_sources(["one/twin.py", folder_two])
    with pytest.raises(UsageError, match="name it once"):
        read_sources(["one/twin.py", "./one/twin.py"])


# ── trust ────────────────────────────────────────────────────────────────────


def test_a_file_that_others_can_write_is_refused_unless_trusted(folder: Path) -> None:
    path = write(folder / "anyones.py")
    path.chmod(0o666)
    with pytest.raises(UsageError, match=r"anyones\.py.*other users can write it.*chmod go-w.*--trust-preload"):
        read_source("anyones.py")
    assert read_source("anyones.py", trust=True).code == b""


def test_a_file_in_a_folder_that_anyone_can_write_is_refused_unless_sticky(folder: Path) -> None:
    write(folder / "open_house/inner/guest.py")
    (folder / "open_house").chmod(0o777)
    with pytest.raises(UsageError, match=r"anyone can replace files in .*open_house"):
        read_source("open_house/inner/guest.py")
    (folder / "open_house").chmod(0o1777)
    assert read_source("open_house/inner/guest.py").kind == "file"


def test_every_hop_of_a_symbolic_link_is_looked_at(folder: Path) -> None:
    write(folder / "open_house/real.py")
    (folder / "closed").mkdir()
    (folder / "closed/link.py").symlink_to("../middle/hop.py")
    (folder / "middle").mkdir()
    (folder / "middle/hop.py").symlink_to("../open_house/real.py")
    assert read_source("closed/link.py").kind == "file"
    for hop in ("open_house", "middle", "closed"):
        (folder / hop).chmod(0o777)
        with pytest.raises(UsageError, match=rf"anyone can replace files in .*{hop}"):
            read_source("closed/link.py")
        (folder / hop).chmod(0o755)


def test_a_link_to_a_folder_is_followed_too(folder: Path) -> None:
    write(folder / "around/real_folder/inside/it.py")
    (folder / "alias").symlink_to("around/real_folder")
    (folder / "around").chmod(0o777)
    assert "around (mode 777" in trust.explain_distrust(str(folder / "alias/inside/it.py"))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(folder: Path) -> None:
    path = write(folder / "foreign.py")
    os.chown(path, 4321, -1)
    with pytest.raises(UsageError, match=r"belongs to another user \(uid 4321\)"):
        read_source(path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_file_that_a_group_of_others_can_write_is_refused_and_a_private_group_is_not(folder: Path) -> None:
    path = write(folder / "grouped.py")
    path.chmod(0o664)
    assert read_source(path).kind == "file"
    os.chown(path, -1, 4321)
    with pytest.raises(UsageError, match="other users can write it"):
        read_source(path)


# ── arguments ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("argvs", "expected"),
    [
        (None, [(), ()]),
        ([], [(), ()]),
        ("", [(), ()]),
        (["--a", "1"], [("--a", "1"), ("--a", "1")]),
        ("--name 'two words'", [("--name", "two words"), ("--name", "two words")]),
        ([[], ["--a", 3]], [(), ("--a", "3")]),
        ([["--a"], "--b c"], [("--a",), ("--b", "c")]),
        ([None, ["--a"]], [(), ("--a",)]),
    ],
)
def test_arguments_are_spread_over_preloads(argvs: Any, expected: list[tuple[str, ...]]) -> None:
    assert spread_argv(2, argvs) == expected


def test_lists_of_arguments_must_match_in_number_in_dasks_words() -> None:
    with pytest.raises(ValueError, match=r"preload and preload_argv have mismatched lengths 2 != 1; give one list"):
        read_sources(["x=1", "y=1"], [["--a"]])


@pytest.mark.parametrize("argvs", ["--a 'open", [["--a", {}]], [{}, []]])
def test_arguments_that_are_no_strings_are_refused(argvs: Any) -> None:
    with pytest.raises(UsageError, match="arguments"):
        spread_argv(2, argvs)


def test_an_entry_may_carry_its_own_arguments(folder: Path) -> None:
    sources = read_sources([{"script": "x=1", "argv": "--a b"}, "y=1"])
    assert [source.argv for source in sources] == [("--a", "b"), ()]
    with pytest.raises(UsageError, match="keep one of the two"):
        read_sources([{"script": "x=1", "argv": ["--a"]}], ["--b"])
    with pytest.raises(UsageError, match="'script'"):
        read_sources([{"scirpt": "x=1"}])


def test_one_preload_or_none_need_no_list() -> None:
    assert [source.name for source in read_sources("x=1")] == ["x=1"]
    assert read_sources(None) == [] and read_sources(()) == []
    with pytest.raises(UsageError):
        read_sources(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import click\n@click.command()\n@click.option('--a')\ndef dask_setup(s, a): pass", True),
        ("import click\n@click.option('--a')\ndef dask_setup(s, a): pass", True),
        ("from click import command\n@command()\nasync def dask_setup(s): pass", True),
        ("import click\ndef f(s): pass\ndask_setup = click.command()(f)", True),
        ("from mine import dask_setup", True),
        ("def dask_setup(s): pass", False),
        ("import click\ndef dask_setup(s): pass", False),
        ("import click\n@click.command()\ndef other(s): pass", False),
        ("import functools\n@functools.lru_cache\ndef dask_setup(s): pass", False),
        ("x = 1", False),
    ],
)
def test_a_click_preload_is_told_without_running_it(folder: Path, code: str, expected: bool) -> None:
    source = read_source(write(folder / "maybe_click.py", f"{code}\nraise SystemExit"))
    assert may_be_click(source) is expected


# ── addresses ────────────────────────────────────────────────────────────────


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with what the test put into ``plan``, one entry a request."""

    plan: list[tuple[int, bytes, dict[str, str]]]

    def do_GET(self) -> None:
        status, body, headers = type(self).plan.pop(0)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005})
    thread.start()

    def plan(*answers: tuple[int, bytes, dict[str, str]]) -> str:
        Answers.plan = list(answers)
        return f"http://127.0.0.1:{server.server_port}/dir/x.py"

    yield plan
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_address_is_refused_until_allowed() -> None:
    with pytest.raises(UsageError, match="--allow-url-preload"):
        read_source("https://user:secret@example.com/x.py?token=secret") and None
    with pytest.raises(UsageError) as caught:
        read_source("https://user:secret@example.com/x.py?token=secret")
    assert "secret" not in str(caught.value)


def test_plain_http_is_for_this_machine_alone() -> None:
    with pytest.raises(UsageError, match="use https"):
        read_source("http://example.com/x.py", allow_url=True)


def test_an_address_is_read_once_and_compiled(serve: Callable[..., str]) -> None:
    url = serve((200, b"x = 1\n", {}))
    source = read_source(url, allow_url=True)
    assert (source.kind, source.code, source.is_watched) == ("url", b"x = 1\n", False)
    with pytest.raises(PreloadError, match=r"x\.py:1:"):
        read_source(serve((200, b"x = = 1\n", {})), allow_url=True)


def test_a_passing_failure_is_asked_again_with_growing_pauses(serve: Callable[..., str]) -> None:
    pauses: list[float] = []
    url = serve((503, b"", {}), (429, b"", {}), (502, b"", {}), (200, b"x = 1", {}))
    assert urls.fetch_url(url, pause=pauses.append) == b"x = 1"
    assert pauses == [0.2, 0.4, 0.8]
    url = serve(*[(504, b"", {})] * 4)
    with pytest.raises(PreloadError, match="504"):
        urls.fetch_url(url, pause=pauses.append)


def test_another_failure_is_told_at_once(serve: Callable[..., str]) -> None:
    with pytest.raises(PreloadError, match="404"):
        urls.fetch_url(serve((404, b"", {})), pause=lambda _: pytest.fail("it waited"))


def test_a_pinned_address_must_hold_what_was_pinned(serve: Callable[..., str]) -> None:
    pin = hash_code(b"x = 1")
    assert urls.fetch_url(serve((200, b"x = 1", {})) + f"#sha256={pin}") == b"x = 1"
    with pytest.raises(PreloadError, match="was asked for"):
        urls.fetch_url(serve((200, b"x = 2", {})) + f"#sha256={pin}")
    with pytest.raises(UsageError, match="64 hexadecimal digits"):
        urls.fetch_url("https://example.com/x.py#sha256=abc")


def test_an_address_that_holds_too_much_too_little_or_sends_elsewhere_is_refused(serve: Callable[..., str]) -> None:
    with pytest.raises(PreloadError, match="larger than"):
        urls.fetch_url(serve((200, b"#" * (urls.MAX_NBYTES + 1), {})))
    with pytest.raises(PreloadError, match="only 5 of 9 bytes"):
        urls.fetch_url(serve((200, b"x = 1", {"Content-Length": "9", "Connection": "close"})))
    with pytest.raises(LocaldaskError, match="unprotected"):
        urls.fetch_url(serve((302, b"", {"Location": "http://example.com/x.py"})))
    with pytest.raises(PreloadError, match="refused"):
        urls.fetch_url("http://127.0.0.1:1/x.py")


@pytest.mark.parametrize(
    ("n_helpers", "cause"),
    [
        (1, "preload_of_many.py, m0.py changed (+2 −2) → other_preload.py"),
        (3, "preload_of_many.py, m0.py, m1.py, m2.py changed (+4 −4) → other_preload.py"),
        (30, "preload_of_many.py, m0.py, m1.py and 28 more changed (+31 −31) → other_preload.py"),
    ],
)
def test_why_a_reload_came_names_the_preloads_first_and_not_hundreds_of_files(folder: Path, n_helpers: int, cause: str) -> None:
    for name in ("preload_of_many", "other_preload", *(f"m{index}" for index in range(n_helpers))):
        write(folder / f"{name}.py", "x = 1\n")
    sources = read_sources(["preload_of_many.py", "other_preload.py"])
    book = SourceBook({"worker": sources, "nanny": [], "scheduler": []})
    helpers = [(f"m{index}", str(folder / f"m{index}.py")) for index in range(n_helpers)]
    book.note_helpers("worker", [(place, name, path, hash_code(b"x = 1\n")) for place in (0, 1) for name, path in helpers])
    paths = list(book.watched())  # which reads what runs
    saved = {path: b"x = 2\n" for path in reversed(paths) if path.name != "other_preload.py"}
    assert book.take_saved(saved).cause == cause
