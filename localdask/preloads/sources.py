"""What a preload is made of: its source, read once, in the cluster's process.

The cluster reads and compiles each preload when it is named and again at each save, and
ships the bytes; nannies, workers and the scheduler run exactly those. A source that cannot
be read, trusted or compiled is refused here, before any process is started or disturbed.
Nothing of a preload is ever run here.
"""

from __future__ import annotations

import keyword
import os
import re
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from localdask.errors import UsageError
from localdask.preloads.failures import explain_syntax
from localdask.preloads.modules import explain_shadow, find_module, is_users_own
from localdask.preloads.trust import explain_distrust
from localdask.preloads.urls import fetch_url, shown_url
from localdask.records import as_tuple, record, replace

__all__ = [
    "Helper",
    "Source",
    "Spec",
    "compile_source",
    "hash_code",
    "may_be_click",
    "read_helper",
    "read_source",
    "read_sources",
    "spread_argv",
]

#: One preload as a user may name it.
Spec: TypeAlias = "str | os.PathLike[str] | Mapping[str, Any]"

MAX_NBYTES = 16 * 2**20
_NO_SOURCE = {
    ".egg": "an archive; unpack it and name a .py file in it",
    ".ipynb": "a notebook; export it as a .py file",
    ".pyc": "compiled; name the .py file that it was made from",
    ".pyz": "an archive; unpack it and name a .py file in it",
    ".so": "a compiled extension; name it as a module",
    ".whl": "an archive; install it and name a module",
    ".zip": "an archive; unpack it and name a .py file in it",
}
_PATH_WORDS = r"(~?/|\.\.?/)[^\n]*|[\w.@%+,~-]+(/[\w.@%+,~-]*)+"


@record(frozen=True)
class Helper:
    """A module of the user's that a preload imports: tracked, and shipped when it changed.

    ``hash`` is empty when there is no such file (yet), or it could not be imported and read.
    """

    module_name: str
    path: str
    code: bytes
    hash: str


@record(frozen=True)
class Source:
    """One preload, read: everything a process needs to run it.

    Attributes
    ----------
    name : str
        The preload as it was named.
    kind : str
        ``"file"``, ``"module"``, ``"text"`` or ``"url"``.
    path : str
        Absolute path of its file; for a text or URL, what stands for it in tracebacks.
    module_name : str
        Its name in ``sys.modules``.
    code : bytes
        The source.
    argv : tuple of str
        Arguments for a ``dask_setup`` that is a click command.
    hash : str
        SHA-256 of the code; empty for an installed module, which is imported, not run from ``code``.
    generation : int
        Which generation of this preload it is, from 1.
    helpers : tuple of Helper
        Modules that it imports, as they are to be run; others are read from their files.
    """

    name: str
    kind: str
    path: str
    module_name: str
    code: bytes
    argv: tuple[str, ...] = ()
    hash: str = ""
    generation: int = 1
    helpers: tuple[Helper, ...] = ()

    @property
    def label(self) -> str:
        """The preload's name as it may be printed: short, on one line, without control characters or passwords."""
        if self.kind == "url":
            return shown_url(self.name)
        return shown_name(self.name)

    @property
    def is_watched(self) -> bool:
        """Whether it is a file of the user's, which may be edited while the cluster runs."""
        return bool(self.hash) and self.kind in ("file", "module")

    def to_wire(self) -> tuple[Any, ...]:
        """Return it as a plain tuple."""
        return (*as_tuple(self)[:-1], tuple(as_tuple(helper) for helper in self.helpers))

    @classmethod
    def from_wire(cls, row: Sequence[Any]) -> Source:
        """Return the source that a tuple stands for."""
        name, kind, path, module_name, code, argv, digest, generation, helpers = row
        return cls(name, kind, path, module_name, code, tuple(argv), digest, generation, tuple(Helper(*helper) for helper in helpers))


def shown_name(name: str) -> str:
    """Return a preload's name for a message: as it is when plain, else quoted and shortened."""
    if len(name) <= 120 and name.isprintable() and not name.isspace() and ";" not in name:
        return name
    return repr(name if len(name) <= 60 else f"{name[:57]}…")


def hash_code(code: bytes) -> str:
    """Return what a source is compared by."""
    import hashlib  # noqa: PLC0415 — 3 ms, and most processes are handed their sources

    return hashlib.sha256(code).hexdigest()


def read_sources(
    specs: Spec | Iterable[Spec] | None,
    argvs: Any = (),
    role: str = "worker",
    *,
    allow_url: bool = False,
    trust: bool = False,
) -> list[Source]:
    """Read every preload of a role, and give each its arguments.

    Parameters
    ----------
    specs : str, path, mapping or iterable of them
        ``"x.py"``, ``"my.module"``, ``"import os; os.nice(5)"``, ``"https://…"``, or ``{"script": …, "argv": …}``.
    argvs : str or list of str or list of lists
        One flat list goes to each preload, a string is split as a shell would, a list of lists has one for each.
    role : str
        ``"scheduler"``, ``"nanny"``, ``"worker"`` or ``"client"``: for messages.
    allow_url, trust : bool
        Whether an address may be fetched, and whether files may be such that other users can write them.
    """
    if specs is None:
        specs = []
    if isinstance(specs, (str, os.PathLike, Mapping)):
        specs = [specs]
    if not isinstance(specs, Iterable):
        raise _not_a_spec(specs, role)
    names, own = _split_entries(list(specs), role)
    spread = spread_argv(len(names), argvs)
    if argvs and any(words is not None for words in own):
        raise UsageError(f"{role} preloads: arguments are given with 'argv' and in preload_argv too: keep one of the two")
    words = [spread[index] if given is None else _words(given) for index, given in enumerate(own)]
    sources = [read_source(name, argv, role, allow_url=allow_url, trust=trust) for name, argv in zip(names, words, strict=True)]
    seen: dict[str, Source] = {}
    for source in sources:
        other = seen.setdefault(source.module_name, source)
        if other is not source:
            raise UsageError(
                f"the {role} preloads {other.label} and {source.label} would both be the module {source.module_name}; "
                f"{'name it once' if other.path == source.path else 'rename one of the files'}"
            )
    return sources


def _split_entries(specs: list[Any], role: str) -> tuple[list[Any], list[Any]]:
    names, own = [], []
    for spec in specs:
        words = None
        if isinstance(spec, Mapping):
            if "script" not in spec or not spec.keys() <= {"script", "argv"}:
                raise UsageError(
                    f"the {role} preload {dict(spec)!r} is not understood: an entry has the keys 'script' and, if needed, 'argv'"
                )
            spec, words = spec["script"], spec.get("argv")
        names.append(spec)
        own.append(words)
    return names, own


def spread_argv(n_preloads: int, argvs: Any) -> list[tuple[str, ...]]:
    """Return each preload's arguments, from one flat list for all, a string, or a list of lists."""
    if argvs is None or len(argvs) == 0:
        return [()] * n_preloads
    if isinstance(argvs, str) or not any(isinstance(words, (list, tuple)) for words in argvs):
        return [_words(argvs)] * n_preloads
    if len(argvs) != n_preloads:
        raise UsageError(
            f"preload and preload_argv have mismatched lengths {n_preloads} != {len(argvs)}; "
            "give one list of arguments for each preload ([] for none), or one flat list for all"
        )
    return [_words(words) for words in argvs]


def _words(argv: Any) -> tuple[str, ...]:
    if argv is None:
        return ()
    if isinstance(argv, str):
        try:
            import shlex  # noqa: PLC0415 - only arguments in one string need it

            return tuple(shlex.split(argv))
        except ValueError as error:
            raise UsageError(f"the preload arguments {argv!r} cannot be split as a shell would: {error}; close the quotes") from None
    if isinstance(argv, (list, tuple)) and all(isinstance(word, (str, int, float)) for word in argv):
        return tuple(str(word) for word in argv)
    raise UsageError(f"the preload arguments {argv!r} are no list of strings")


def read_source(
    spec: str | os.PathLike[str], argv: Sequence[str] = (), role: str = "worker", *, allow_url: bool = False, trust: bool = False
) -> Source:
    """Read one preload, once, and see that it compiles.

    Raises ``UsageError`` when the name makes no sense, ``PreloadError`` when what it names cannot be run.
    """
    words = tuple(argv)
    if not isinstance(spec, (str, os.PathLike)):
        raise _not_a_spec(spec, role)
    text = os.fsdecode(spec)
    if not text.strip():
        raise UsageError(f"a {role} preload is an empty string: name a file or a module, or leave it out")
    form = _form(spec, text)
    if form == "url":
        return _read_url(text, words, allow_url)
    if form == "file":
        return _read_file(text, words, trust)
    if form == "module":
        return _read_module(text, words, trust)
    return _read_text(text, words)


def _not_a_spec(spec: Any, role: str) -> UsageError:
    mend = "a file's path, a module's name, Python text or an address is wanted, as a string or path"
    if isinstance(spec, type(sys)):
        mend = f"name the module, as the string {spec.__name__!r}"
    elif callable(spec):
        mend = "put it into a file as dask_setup and name the file, or run it on every worker with client.register_worker_callbacks"
    return UsageError(f"a {role} preload is {spec!r:.100}: {mend}")


def _form(spec: Any, text: str) -> str:
    """Decide what a preload's name is: "url", "file", "module" or "text"."""
    if isinstance(spec, os.PathLike):
        return "file"
    if text.startswith(("http://", "https://")):
        return "url"
    if "\n" in text.strip() or "\0" in text:
        return "text"
    if text.endswith(".py"):
        return "file"
    is_dotted = all(part.isidentifier() for part in text.split("."))
    path = os.path.expanduser(text)
    if len(path) < 4096 and os.path.exists(path) and not (is_dotted and os.path.isdir(path)):
        return "file"
    if is_dotted:
        return "text" if keyword.iskeyword(text) else "module"
    if re.fullmatch(_PATH_WORDS, text) or text.endswith(tuple(_NO_SOURCE)):
        return "file"
    if found := re.fullmatch(r"([\w.]+):(\w+)(\(.*\))?", text):
        raise UsageError(f"the preload {text!r} names a function; name the module {found[1]!r} and call {found[2]} in its dask_setup")
    return "text"


def compile_source(code: bytes, filename: str, *, preload: str) -> Any:
    """Compile source that was read once, without this module's own ``from __future__``; ``PreloadError`` if it cannot be."""
    try:
        return compile(code, filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise explain_syntax(error, preload=preload, filename=filename, code=code) from None


def renew_source(source: Source, code: bytes | None = None, *, trust: bool = False) -> Source:
    """Return a file or module preload with what its file holds now (or ``code``), compiled; the generation stays.

    Raises ``PreloadError`` for source that does not compile, ``UsageError`` when the file cannot be read or trusted any more.
    """
    if not source.is_watched:
        return source
    if code is None:
        code = _read_bytes(source.path, source.label, trust)
    elif code != source.code and not trust:
        _refuse_others(source.path, source.label)
    return _checked(replace(source, code=code))


def _checked(source: Source) -> Source:
    compile_source(source.code, source.path, preload=source.label)
    return replace(source, hash=hash_code(source.code))


def _read_file(text: str, argv: tuple[str, ...], trust: bool) -> Source:
    path = os.path.abspath(os.path.expanduser(text))
    label = shown_name(text)
    folder, name = os.path.split(path)
    stem, extension = os.path.splitext(name)
    if os.path.isdir(path):
        inside = "name it as a module" if os.path.exists(os.path.join(path, "__init__.py")) else "name a .py file in it"
        raise UsageError(f"the preload {label} is a directory ({path}); {inside}")
    if extension in _NO_SOURCE:
        raise UsageError(f"the preload {label} is {_NO_SOURCE[extension]}")
    if name == "__init__.py":
        raise UsageError(f"the preload {label} is a package's inside; name the package as a module: {os.path.basename(folder)!r}")
    code = _read_bytes(path, label, trust)
    module_name = stem.replace(".", "_")
    if hidden := explain_shadow(module_name, path):
        raise UsageError(f"the preload {label} would hide {hidden} from every import of {module_name!r}; rename the file")
    return _checked(Source(text, "file", path, module_name, code, argv))


def _read_bytes(path: str, label: str, trust: bool) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a named pipe must not block
    except FileNotFoundError:
        raise UsageError(
            f"the preload {label} is no such file: {path} does not exist; is the path right, seen from {os.getcwd()}?"
        ) from None
    except OSError as error:
        raise UsageError(
            f"the preload {label} cannot be read: {error.strerror} ({path}); let yourself read it, or name another file"
        ) from None
    except ValueError as error:  # a null character, or letters that the file system's encoding (LC_ALL=C) has not
        raise UsageError(f"the preload {label} can be no file: {error}; name another, or set the locale to UTF-8") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"the preload {label} is no regular file ({path}); save the source in one")
        if status.st_size > MAX_NBYTES:
            raise UsageError(f"the preload {label} has {status.st_size} bytes, and {MAX_NBYTES} are the limit; is it Python source?")
        if not trust:
            _refuse_others(path, label)
        return file.read()


def _refuse_others(path: str, label: str) -> None:
    try:
        why = explain_distrust(path)
    except OSError as error:
        raise UsageError(f"the preload {label} cannot be read: {error.strerror} ({path}); put the file back") from None
    if why:
        raise UsageError(f"the preload {label} is refused, because what it says is run: {why}, or allow it with --trust-preload")


def _read_module(name: str, argv: tuple[str, ...], trust: bool) -> Source:
    beside = name.replace(".", os.sep) + ".py"
    guess = f"; did you mean {beside}?" if os.path.isfile(beside) else "; is it installed, and its folder on sys.path?"
    if name == "__main__":
        raise UsageError("the preload __main__ would run your script in every process; put what they need into a file of its own")
    try:
        spec = find_module(name)
    except Exception as error:
        raise UsageError(f"the module {name} of a preload cannot be looked for: {type(error).__name__}: {error}{guess}") from error
    if spec is None:
        raise UsageError(f"the preload {name} is no module that can be found{guess}")
    if spec.origin is None and spec.submodule_search_locations is not None:
        raise UsageError(
            f"the preload {name} is a directory without __init__.py ({next(iter(spec.submodule_search_locations), '')}); name a file in it"
        )
    path = spec.origin if spec.has_location and spec.origin else ""
    if not is_users_own(path):
        return Source(name, "module", path, name, b"", argv)
    return _checked(Source(name, "module", path, name, _read_bytes(path, name, trust), argv))


def _read_text(text: str, argv: tuple[str, ...]) -> Source:
    import textwrap  # noqa: PLC0415 - only a text needs it

    code = textwrap.dedent(text).encode("utf-8", "surrogatepass")
    digest = hash_code(code)[:12]
    return _checked(Source(text, "text", f"<preload text {digest[:6]}>", f"localdask_text_preload_{digest}", code, argv))


def _read_url(url: str, argv: tuple[str, ...], allow_url: bool) -> Source:
    if not allow_url:
        raise UsageError(
            f"the preload {shown_url(url)} is an address, and what stands there tomorrow would be run too; "
            "download it and name the file, or allow addresses with --allow-url-preload"
        )
    code = fetch_url(url)
    name = f"localdask_url_preload_{hash_code(url.encode())[:12]}"
    return _checked(Source(url, "url", shown_url(url), name, code, argv))


def read_helper(module_name: str, path: str) -> Helper:
    """Read a helper module as it lies on disk; without a hash when it cannot be read."""
    try:
        with open(path, "rb") as file:
            code = file.read(MAX_NBYTES)
    except OSError:
        return Helper(module_name, path, b"", "")
    return Helper(module_name, path, code, hash_code(code))


def may_be_click(source: Source) -> bool:
    """Whether ``dask_setup`` looks like a click command, without running anything.

    The body must not run in the process that routes arguments, so its syntax is all there
    is to go by: a decorated or assigned ``dask_setup`` in a module that speaks of click, or
    one that comes from elsewhere.
    """
    import ast  # noqa: PLC0415 — 2 ms, and only arguments on a command line need routing

    code = source.code if source.hash else read_helper(source.module_name, source.path).code
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        return False  # of an installed module; the user's own were compiled when they were read
    speaks_of_click = b"click" in code or b"command" in code
    for node in reversed(body):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == "dask_setup":
            return bool(node.decorator_list) and speaks_of_click
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "dask_setup" for target in node.targets):
            return not isinstance(node.value, ast.Lambda) and speaks_of_click
        if isinstance(node, ast.ImportFrom):
            names = [alias.asname or alias.name for alias in node.names]
            if "dask_setup" in names or ("*" in names and speaks_of_click):
                return True
    return False
