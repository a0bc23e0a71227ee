"""Fetching a preload that is named by its address.

Runs in the cluster's process, once, before anything is started, and only when URL preloads
were allowed. It speaks https, and plain http with this machine alone; it never fetches more
than a megabyte, never follows a redirect to where it would not have gone itself, and never
prints what stands in an address as a password.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

from localdask.errors import PreloadError, UsageError

__all__ = ["fetch_url", "shown_url"]

MAX_NBYTES = 2**20
TIMEOUT_S = 10.0
#: The pauses before the second, third and fourth attempt.
PAUSES_S = (0.2, 0.4, 0.8)
_PASSING = (429, 502, 503, 504)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def shown_url(url: str) -> str:
    """Return an address as it may be printed: without user, password and query."""
    return re.sub(r"//[^/@?#]*@", "//", re.sub(r"[?#].*", "", url))


def fetch_url(url: str, *, pause: Callable[[float], None] = time.sleep) -> bytes:
    """Return what ``url`` holds, or raise ``UsageError`` or ``PreloadError`` that says why not.

    A fragment ``#sha256=HEX`` pins the content. An answer of 429, 502, 503 or 504 is
    asked for again, three times, with growing pauses.
    """
    # urllib costs 20 ms, and few preloads are addresses.
    from http.client import HTTPException  # noqa: PLC0415
    from urllib.error import HTTPError, URLError  # noqa: PLC0415
    from urllib.parse import urldefrag  # noqa: PLC0415
    from urllib.request import HTTPRedirectHandler, Request, build_opener  # noqa: PLC0415

    class CheckedRedirect(HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
            _refuse_open_road(newurl)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    address, fragment = urldefrag(url)
    wanted = _wanted_hash(url, fragment)
    _refuse_open_road(address)
    opener = build_opener(CheckedRedirect())
    for wait_s in (*PAUSES_S, None):
        try:
            with opener.open(Request(address, headers={"User-Agent": "localdask"}), timeout=TIMEOUT_S) as answer:
                return _checked(_read(answer), wanted, url)
        except HTTPError as error:
            error.close()
            if error.code not in _PASSING or wait_s is None:
                raise _failure(url, f"the server answered {error.code} {error.reason}; open the address in a browser") from None
            pause(wait_s)
        except URLError as error:
            raise _failure(url, f"{error.reason}; is the address right, and the network up?") from None
        except (OSError, HTTPException, ValueError) as error:
            raise _failure(url, f"{error or type(error).__name__} (the time limit is {TIMEOUT_S:g} s)") from None
    raise AssertionError("the last attempt returns or raises")


def _refuse_open_road(address: str) -> None:
    from urllib.parse import urlsplit  # noqa: PLC0415 — see fetch_url

    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise UsageError(
            f"the preload {shown_url(address)} would travel unprotected, and what arrives is run; use https "
            f"(plain http is for this machine alone), or download it and name the file"
        )


def _wanted_hash(url: str, fragment: str) -> str:
    if not fragment:
        return ""
    name, _, digest = fragment.partition("=")
    if name != "sha256" or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise UsageError(f"the preload {shown_url(url)} ends in #{fragment}; a pin is written #sha256= and 64 hexadecimal digits")
    return digest.lower()


def _read(answer: Any) -> bytes:
    # The socket's time limit holds for each piece; a server that drips is ended by this one.
    deadline = time.monotonic() + TIMEOUT_S
    pieces, nbytes = [], 0
    while piece := answer.read1(65536):
        nbytes += len(piece)
        if nbytes > MAX_NBYTES:
            raise OSError(f"it is larger than {MAX_NBYTES} bytes; download it and name the file")
        if time.monotonic() > deadline:
            raise TimeoutError("it did not arrive in time")
        pieces.append(piece)
    promised = answer.headers.get("Content-Length")
    if promised is not None and int(promised) != nbytes:
        raise OSError(f"only {nbytes} of {promised} bytes arrived")
    return b"".join(pieces)


def _checked(code: bytes, wanted: str, url: str) -> bytes:
    import hashlib  # noqa: PLC0415 — see sources.py

    found = hashlib.sha256(code).hexdigest()
    if wanted and found != wanted:
        raise _failure(url, f"its sha256 is {found}, and {wanted} was asked for; see what changed before you pin the new one")
    return code


def _failure(url: str, why: str) -> PreloadError:
    shown = shown_url(url)
    return PreloadError(f"the preload {shown} cannot be fetched: {why}", preload=shown, where=shown)
