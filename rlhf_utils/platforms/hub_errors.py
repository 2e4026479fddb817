"""What went wrong with the Hugging Face hub, each cause in a line of its own with what to do about it."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.patience import TRIES, BrokeOff, HubTrouble, patience

if TYPE_CHECKING:
    from rlhf_utils.platforms.hub import Wanted

_TOKENS = "https://huggingface.co/settings/tokens"
_REFUSED = "the hub does not accept yours (expired or revoked?)"
_REASONS = ("x-error-code", "x-error-message")
# A token that the hub did not accept is not sent again by this process, and for so many seconds it does not ask again
# where the hub could not be reached.
_refused_tokens: set[str] = set()
_DOWN_SECONDS = 60.0
_down: list[tuple[float, HubTrouble]] = []
_told: set[str] = set()
_telling = threading.Lock()


def tell_once(text: str) -> None:
    """Print `text` to stderr, once in this process: several threads come upon the same at the same time."""
    with _telling:
        if text not in _told:
            _told.add(text)
            print(text, file=sys.stderr)


def asking(wanted: Wanted, request: Callable[[bool | None], Any]) -> Any:
    """`request(token)` of the hub: None for the user's token, False for none.

    What is public is had without a token that is not accepted. Raises InputError with one line for what the hub refuses
    and HubTrouble where it cannot serve for now.
    """
    if constants.HF_HUB_OFFLINE:
        raise HubTrouble("it could not be reached (HF_HUB_OFFLINE is set)", "unset that to fetch it", expected=True)
    if _down and time.monotonic() - _down[-1][0] < _DOWN_SECONDS:
        raise _down[-1][1]
    token = _token()
    refused = token in _refused_tokens
    try:
        return _asked(wanted, request, False if refused else None)
    except _Refused as refusal:
        error = refusal.error
    if error.response.status_code == 401 and token and not refused:
        # Anything that comes with such a token is refused, also what everybody may read.
        try:
            answer = _asked(wanted, request, False)
        except _Refused as refusal:
            raise InputError(line(wanted, refusal.error, "refused")) from None
        _refused_tokens.add(token)
        tell_once(f"the hub does not accept your token (expired or revoked?); going on without it: {_TOKENS}")
        return answer
    raise InputError(line(wanted, error, "refused" if refused else "sent" if token else "none")) from None


def _token() -> str | None:
    try:
        token = get_token()
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}; HF_HOME names another folder") from None
    if token and not re.fullmatch(r"[!-~]+", token):
        raise InputError(f"your token has characters that no token has; copy it again from {_TOKENS} into HF_TOKEN")
    return token


class _Refused(Exception):
    def __init__(self, error: HfHubHTTPError):
        self.error = error


def _asked(wanted: Wanted, request: Callable[[bool | None], Any], token: bool | None) -> Any:
    try:
        for attempt in range(1, TRIES + 1):
            try:
                with patience():
                    return request(token)
            except BrokeOff:
                if attempt == TRIES:
                    raise
                time.sleep(attempt)
    except HubTrouble as trouble:
        if trouble.lasting:
            _down.append((time.monotonic(), trouble))
        raise trouble from None
    except HFValidationError as error:
        raise InputError(f"{wanted} is no id of the Hugging Face hub: {_first_line(error)}") from None
    except (OSError, ValueError) as error:
        found = _of_hub(error)
        if found is not None and _says_why(found):
            raise _Refused(found) from None
        if found is not None:
            raise HubTrouble(
                f"{found.response.url.host} refuses ({found.response.status_code}), and not as the hub does",
                advice="check the proxy and the firewall",
            ) from None
        if isinstance(error, OSError) and error.errno is not None:
            where = error.filename or constants.HF_HUB_CACHE
            raise InputError(
                f"{wanted}: cannot write {where}: {error.strerror}; HF_HOME moves the hub's cache"
            ) from None
        raise HubTrouble(
            f"{constants.ENDPOINT} does not answer as the hub does ({_first_line(error)})",
            advice="check the proxy, HF_ENDPOINT, and whether the network wants you to log in first",
        ) from None


def line(wanted: Wanted, error: HfHubHTTPError, token: str) -> str:
    """What the hub's answer means; `token` is `none`, `sent`, or `refused` where the hub does not know it."""
    address = f"{constants.ENDPOINT}/{'datasets/' if wanted.kind == 'dataset' else ''}{wanted.name}"
    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        known = f"its branches and tags: {address}/tree/main"
        return f"{wanted}: {wanted.name} has no revision {wanted.revision!r}; {known}"
    if isinstance(error, GatedRepoError):
        ways = {
            "none": "log in with `hf auth login` or set HF_TOKEN",
            "sent": "with the account of your token, which has no access yet",
            "refused": f"and make a new token at {_TOKENS}: {_REFUSED}",
        }
        return f"{wanted} is gated: accept its licence at {address}, {'then ' if token == 'none' else ''}{ways[token]}"
    if isinstance(error, DisabledRepoError):
        return f"{wanted} has been disabled by the hub; name another"
    if isinstance(error, EntryNotFoundError):
        return f"{wanted}: a file that the hub lists is not there ({error.response.url}); try again, or name a revision"
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        ways = {
            "none": "check the name; for a private one log in with `hf auth login` or set HF_TOKEN",
            "sent": "check the name, and whether your token may read it",
            "refused": f"check the name, and make a new token at {_TOKENS}: {_REFUSED}",
        }
        return f"{wanted} does not exist on the hub, or is private; {ways[token]}"
    if status == 403:
        return f"{wanted}: your token may not read it (403); give it that right at {_TOKENS}"
    return f"{wanted}: the hub refuses ({status}: {_first_line(error)})"


def why_not_written(error: BaseException) -> str:
    """Why the hub did not take what was to be uploaded, and what to do."""
    answer = _of_hub(error)
    status = answer.response.status_code if answer else None
    if status == 401:
        return (
            f"the hub does not accept your token (expired or revoked?); make a new one, which may write, at {_TOKENS}"
        )
    if status == 403:
        return f"your token may not write there; check the owner, or give the token that right at {_TOKENS}"
    return f"{_first_line(error)}; check the name and the network, and try again"


def _of_hub(error: BaseException) -> HfHubHTTPError | None:
    """The answer of the hub behind an error that other libraries made of it."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, HfHubHTTPError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _says_why(error: HfHubHTTPError) -> bool:
    """Whether the hub itself refuses: a proxy, a firewall, or a storage host behind the hub sends no such header."""
    return error.response.status_code in (401, 404) or any(map(error.response.headers.get, _REASONS))


def _first_line(error: BaseException) -> str:
    return next((text for text in map(str.strip, str(error).splitlines()) if text), type(error).__name__)[:160]
