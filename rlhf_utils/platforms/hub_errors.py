"""Asking the Hugging Face hub: repeated where that helps, within a bound, and one clear line for every other answer."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import disable_progress_bars, parse_ratelimit_headers

from rlhf_utils.platforms.errors import InputError

if TYPE_CHECKING:
    from rlhf_utils.platforms.hub import Wanted

# The HTTP library under huggingface_hub: httpx, and httpx2 in newer versions.
_http = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.partition(".")[0])
# Seconds that a request waits for a byte, tries of a request, and the longest wait that the hub may ask for.
_ANSWER, TRIES, _LONGEST_WAIT = 8.0, 3, 15.0
_WORTH_ASKING_AGAIN = {408, 429, 500, 502, 503, 504}
_TOKENS = "https://huggingface.co/settings/tokens"
# Several lines for every attempt; what comes of them is one line of ours.
for _name in ("file_download", "repocard", "utils._http"):
    logging.getLogger(f"huggingface_hub.{_name}").setLevel(logging.ERROR)
disable_progress_bars()
# Its transfers wait and repeat by rules of their own, which nothing here can bound. In the environment it would be too
# late where huggingface_hub was imported before.
constants.HF_HUB_DISABLE_XET = True

# Of the request in hand, how often each part of a file was asked for; None where this module does not ask.
_parts: ContextVar[Counter | None] = ContextVar("parts", default=None)
# Where the hub could not be reached it is not asked for a minute.
_down: list[tuple[float, HubTrouble]] = []
_told: set[str] = set()
_lock = threading.Lock()


class HubTrouble(Exception):
    """The hub cannot serve for now; the message says how that showed, `advice` what to do. `lasting`: it is the same
    for everything else. Not an error of the HTTP library, so that nobody in between repeats what was repeated here."""

    def __init__(self, message: str, advice: str = "try again later", lasting: bool = False):
        super().__init__(message)
        self.advice, self.lasting = advice, lasting


def tell_once(text: str) -> None:
    """Print `text` to stderr, once in this process: several threads come upon the same at the same time."""
    with _lock:
        if text not in _told:
            _told.add(text)
            print(text, file=sys.stderr)


def asking(wanted: Wanted, request: Callable[[], Any]) -> Any:
    """The answer to `request` of the hub. Raises InputError with one line for what it refuses, and HubTrouble where it
    cannot serve for now."""
    if constants.HF_HUB_OFFLINE:
        raise HubTrouble("it could not be reached (HF_HUB_OFFLINE is set)", "unset that to fetch it")
    _check_down()
    try:
        token = get_token()
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; HF_HOME names another folder") from None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise InputError(f"your token has characters that no token has; copy it again from {_TOKENS} into HF_TOKEN")
    # Not by `set_client_factory`: it would take the place of a factory that the user set for a certificate or a proxy.
    session = get_session()
    with _lock:
        if not hasattr(session, "sends"):
            session.sends = session.send
            session.send = lambda request, **how: _send(session.sends, request, **how)
    for attempt in range(1, TRIES + 1):
        outer = _parts.set(Counter())
        try:
            return request()
        except HubTrouble as trouble:
            raise trouble from None
        except (OSError, ValueError, _http.TransportError) as error:
            # Broken off while a body was read; what has come of it is kept.
            if attempt == TRIES or _of_hub(error) or not _broke_off(error):
                raise _translated(wanted, error, token is not None) from None
        finally:
            _parts.reset(outer)
        time.sleep(attempt)


def _broke_off(error: Exception) -> bool:
    return isinstance(error, _http.TransportError) or "Consistency check" in str(error)


def _send(send, request, **how):
    """The session's `send`, a few times where that helps."""
    parts = _parts.get()
    if parts is None:
        return send(request, **how)
    # The library itself asks for more than was asked of it.
    _check_down()
    # A proxy that always cuts off at the same byte would be asked for ever.
    part = str(request.url), request.headers.get("range")
    parts[part] += bool(how.get("stream"))
    if parts[part] > TRIES:
        raise HubTrouble(f"the download broke off {TRIES} times at the same byte")
    host = request.url.host or constants.ENDPOINT
    unreachable = (_http.ConnectError, _http.ConnectTimeout, _http.ProxyError, _http.UnsupportedProtocol)
    for attempt in range(1, TRIES + 1):
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), _ANSWER)
        wait = 0.5 * attempt
        try:
            answer = send(request, **how)
        except unreachable as error:
            trouble = HubTrouble(f"{host} could not be reached ({_first_line(error)})", "check the network", True)
        except _http.TimeoutException:
            silence = f"{host} accepts connections but has not answered for {TRIES * _ANSWER:.0f} s"
            trouble, wait = HubTrouble(silence, lasting=True), 0.0
        except _http.TransportError as error:
            trouble = HubTrouble(f"{host} breaks connections off ({_first_line(error)})")
        else:
            if answer.status_code not in _WORTH_ASKING_AGAIN:
                return answer
            answer.close()
            trouble, asked = _busy(answer)
            if asked > _LONGEST_WAIT:
                break
            wait += asked
        if attempt < TRIES:
            time.sleep(wait)
    if trouble.lasting:
        _down.append((time.monotonic(), trouble))
    raise trouble


def _check_down() -> None:
    if _down and time.monotonic() - _down[-1][0] < 60.0:
        raise _down[-1][1]


def _busy(answer) -> tuple[HubTrouble, float]:
    """What an answer with 429 or an error of the hub's own means, and the seconds that it asks to wait."""
    limit, after = parse_ratelimit_headers(answer.headers), answer.headers.get("retry-after", "")
    asked = limit.reset_in_seconds if limit and limit.remaining == 0 else int(after) if after.isdigit() else 0
    if answer.status_code == 429:
        told = f"the hub limits the number of requests (429){f' and asks to wait for {asked} s' if asked else ''}"
        return HubTrouble(told, "try again later; a token (HF_TOKEN) raises the limit"), asked
    told = f"the hub answers with an error of its own ({answer.status_code}), also when asked again"
    return HubTrouble(told, "try again later (https://status.huggingface.co)"), asked


def _translated(wanted: Wanted, error: Exception, token: bool) -> Exception:
    """What to raise for an error of a request that was sent with a `token` or without one."""
    refusal = _of_hub(error)
    if refusal is None:
        if isinstance(error, HFValidationError):
            return InputError(f"{wanted} is no id of the Hugging Face hub: {_first_line(error)}")
        if isinstance(error, OSError) and error.errno is not None:
            where = error.filename or constants.HF_HUB_CACHE
            return InputError(f"{wanted}: cannot write {where}: {error.strerror}; HF_HOME moves the hub's cache")
        if _broke_off(error):
            return HubTrouble(f"the connection broke off ({_first_line(error)})")
        return HubTrouble(
            f"{constants.ENDPOINT} does not answer as the hub does ({_first_line(error)})",
            "check the proxy, HF_ENDPOINT, and whether the network wants you to log in first",
        )
    status, headers = refusal.response.status_code, refusal.response.headers
    if status not in (401, 404) and not headers.get("x-error-code") and not headers.get("x-error-message"):
        # A proxy, a firewall, or a storage host behind the hub.
        found = f"{refusal.response.url.host} refuses ({status}), and not as the hub does"
        return HubTrouble(found, "check the proxy and the firewall")
    address = f"{constants.ENDPOINT}/{'datasets/' if wanted.kind == 'dataset' else ''}{wanted.name}"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if status == 401 and token:
        # Whatever comes with such a token is refused, also what everybody may read.
        line = f"the hub does not accept your token (expired or revoked?); renew it at {_TOKENS}, or unset HF_TOKEN"
    elif isinstance(refusal, RevisionNotFoundError):
        line = f"{wanted.name} has no revision {wanted.revision!r}; its branches and tags: {address}/tree/main"
    elif isinstance(refusal, GatedRepoError):
        how = "with the account of your token, which has no access yet" if token else f"then {log_in}"
        line = f"it is gated: accept its licence at {address}, {how}"
    elif isinstance(refusal, RepositoryNotFoundError) or status in (401, 404):
        how = "whether your token may read it" if token else f"for a private one {log_in}"
        line = f"it does not exist on the hub, or is private; check the name, and {how}"
    elif status == 403:
        line = f"your token may not read it (403); give it that right at {_TOKENS}"
    else:
        line = f"the hub refuses ({status}: {_first_line(refusal)})"
    return InputError(f"{wanted}: {line}")


def why_not_written(error: BaseException) -> str:
    """Why the hub did not take what was to be uploaded, and what to do."""
    answer = _of_hub(error)
    status = answer.response.status_code if answer else None
    if status == 401:
        return f"the hub does not accept your token (expired or revoked?); make one that may write at {_TOKENS}"
    if status == 403:
        return f"your token may not write there; check the owner, or give the token that right at {_TOKENS}"
    return f"{_first_line(error)}; check the name and the network, and try again"


def _of_hub(error: BaseException) -> HfHubHTTPError | None:
    """The answer of the hub behind an error that other libraries made of it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, HfHubHTTPError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _first_line(error: BaseException) -> str:
    return next((text for text in map(str.strip, str(error).splitlines()) if text), type(error).__name__)[:160]
