"""Requests to the Hugging Face hub that are repeated where that helps, and end within a bound where it does not.

Left alone the hub's library waits up to a minute for each answer and repeats that five times, and its sessions, which
the downloads of a file, of a list and of a configuration share, know nothing of each other's troubles.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers

# The HTTP library under huggingface_hub: httpx, and httpx2 in newer versions.
_http = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
# Seconds without a byte from the hub after which it counts as silent, and those that one request waits of them.
SILENCE, _ANSWER = 30.0, 10.0
# Seconds before an answer of these kinds is asked for again; a longer wait that the hub asks for is not waited.
_WAITS, _LONGEST_WAIT = (0.5, 1.0, 2.0), 15.0
_WORTH_ASKING_AGAIN = {408, 429, 500, 502, 503, 504}
# So often the same bytes of a file are asked for.
TRIES = 4
# Several lines for every attempt; what comes of them is one line of ours.
for _name in ("file_download", "repocard"):
    logging.getLogger(f"huggingface_hub.{_name}").setLevel(logging.ERROR)
disable_progress_bars()
# Its transfers wait and repeat by rules of their own, which nothing here can bound. Read from the environment when
# huggingface_hub is imported, which others may have done before us.
constants.HF_HUB_DISABLE_XET = True
_NETWORK = "check the network"


class HubTrouble(Exception):
    """The hub cannot serve for now; the message says how that showed. Not an error of the HTTP library, so that nobody
    in between repeats what has been repeated here.

    advice: what to do about it; expected: nobody has to be told, for it was asked for; lasting: it is the same for
        everything else that is asked of the hub
    """

    def __init__(self, message: str, advice: str = "try again later", *, expected: bool = False, lasting: bool = False):
        super().__init__(message)
        self.advice, self.expected, self.lasting = advice, expected, lasting


class BrokeOff(HubTrouble):
    """A download ended in the middle."""


@dataclass
class _Patience:
    # Seconds waited for the hub since the last sign of life.
    silent: float = 0.0
    asked: Counter = field(default_factory=Counter)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        except _http.TimeoutException:
            self.silent += time.monotonic() - started
            raise


_lock = threading.Lock()
_present: ContextVar[_Patience | None] = ContextVar("patience", default=None)


@contextmanager
def patience() -> Iterator[None]:
    """Inside the block the hub's library asks patiently, within bounds; raises HubTrouble where they are reached."""
    # Not by `set_client_factory`: it would take the place of a factory that the user set for a certificate or a proxy,
    # which cannot be asked for, and httpx with a transport of ours no longer reads HTTPS_PROXY.
    session = get_session()
    with _lock:
        if not hasattr(session, "impatient_send"):
            session.impatient_send = session.send
            session.send = lambda request, **how: _send(session.impatient_send, request, **how)
    token = _present.set(_Patience())
    try:
        yield
    except (_http.TransportError, OSError) as error:
        if isinstance(error, HfHubHTTPError) or not _broke_off(error):
            raise
        # While the body was read, after the library's own attempts to go on from there.
        raise BrokeOff(f"the connection broke off ({_reason(error)})") from error
    finally:
        _present.reset(token)


def _broke_off(error: Exception) -> bool:
    return isinstance(error, _http.TransportError) or "Consistency check failed" in str(error)


def _send(send, request, **how):
    patient = _present.get()
    if patient is None:
        return send(request, **how)
    key = (str(request.url), request.method, request.headers.get("range"))
    patient.asked[key] += 1
    if request.method == "GET" and patient.asked[key] > TRIES:
        raise HubTrouble(f"a download broke off {TRIES} times at the same byte")
    for wait in (*_WAITS, None):
        left = SILENCE - patient.silent
        if left < 1.0:
            raise HubTrouble(
                f"{request.url.host} accepts connections but has not answered for {SILENCE:.0f} s", lasting=True
            )
        seconds = min(_ANSWER, left)
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        try:
            with patient.waiting():
                answer = send(request, **how)
        except (_http.ConnectTimeout, _http.ProxyError, _http.UnsupportedProtocol) as error:
            host = request.url.host or constants.ENDPOINT
            raise HubTrouble(f"{host} could not be reached ({_reason(error)})", _NETWORK, lasting=True) from error
        except _http.ConnectError as error:
            if wait is None or wait > _WAITS[0]:
                raise HubTrouble(
                    f"{request.url.host} could not be reached ({_reason(error)})", _NETWORK, lasting=True
                ) from error
            time.sleep(wait)
            continue
        except _http.TimeoutException:
            # The bound on silence ends this.
            continue
        except _http.TransportError as error:
            if wait is None:
                raise HubTrouble(f"{request.url.host} breaks connections off ({_reason(error)})") from error
            time.sleep(wait)
            continue
        if request.method != "GET" or not how.get("stream"):
            patient.silent = 0.0
        if answer.status_code not in _WORTH_ASKING_AGAIN:
            answer.stream = _Heard(answer.stream, patient)
            return answer
        asked = _asked_to_wait(answer)
        answer.close()
        if wait is None or (asked or 0.0) > _LONGEST_WAIT:
            raise _refusal(answer.status_code, asked)
        time.sleep(wait + (asked or 0.0))
    raise HubTrouble(f"{request.url.host} does not answer for long, or with errors of its own")


class _Heard(_http.SyncByteStream):
    """A body; each part of it that arrives is a sign of life."""

    def __init__(self, stream, patient: _Patience):
        self._stream, self._patient = stream, patient

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._stream)
        while True:
            with self._patient.waiting():
                part = next(parts, None)
            if part is None:
                return
            self._patient.silent = 0.0
            yield part

    def close(self) -> None:
        self._stream.close()


def _asked_to_wait(answer) -> float | None:
    """Seconds that are asked for, by the hub's own `RateLimit` or by `Retry-After`; None where neither is there."""
    limit = parse_ratelimit_headers(answer.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = answer.headers.get("retry-after", "")
    return float(text) if text.isdigit() else None


def _refusal(status: int, asked: float | None) -> HubTrouble:
    if status == 429:
        wait = f" and asks to wait for {asked:.0f} s" if asked else ""
        return HubTrouble(
            f"the hub limits the number of requests (429){wait}", "try again later; a token (HF_TOKEN) raises the limit"
        )
    return HubTrouble(
        f"the hub answers with an error of its own ({status}), {len(_WAITS) + 1} times in a row",
        "try again later (https://status.huggingface.co)",
    )


def _reason(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:120] or type(error).__name__
