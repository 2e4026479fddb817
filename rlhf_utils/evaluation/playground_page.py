"""The playground as a page on this machine: standard library, loopback only, everything on one page."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jinja2

from rlhf_utils.evaluation.playground import Playground
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.report.results import LABELS, run_caption
from rlhf_utils.report.style import COLORS as COLOURS

HOST = "127.0.0.1"
_LARGEST_REQUEST = 1 << 18
# What may be asked, and the type of each.
_FIELDS = {"prompt": str, "temperature": (int, float), "max_new_tokens": int, "seed": int, "turns": dict}


class PlaygroundServer(ThreadingHTTPServer):
    """Serves `playground` on 127.0.0.1; `port` 0 takes a free one. `url` says where.

    Another page in the same browser can neither read nor use it: a request has to name this very host (which a page
    that re-binds its own name to 127.0.0.1 cannot) and carry the token that only our page knows.
    """

    daemon_threads = True

    def __init__(self, playground: Playground, port: int = 0):
        self.playground, self.token = playground, secrets.token_urlsafe(24)
        self.one_at_a_time = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"port {port} cannot be used ({error}); choose another --port, or 0 for any") from None
        self.url = f"http://{HOST}:{self.server_port}/"
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def page(self, nonce: str) -> str:
        """The page, whose own script and style carry `nonce`."""
        run = self.playground.run
        templates = jinja2.Environment(
            loader=jinja2.PackageLoader("rlhf_utils.report", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
        )
        return templates.get_template("playground.html.j2").render(
            caption=run_caption(run.root),
            nonce=nonce,
            models=[{"name": name, "label": LABELS[name], "colour": COLOURS[name]} for name in self.playground.names],
            examples=self.playground.examples(),
            defaults=run.recipe.generation,
            dialogue=run.recipe.form == "dialogue",
            settings={"token": self.token, "labels": {LABELS[name]: name for name in self.playground.names}},
        )

    def answer(self, asked: Any) -> dict:
        """The reply to a request's JSON; InputError where it makes no sense."""
        if not isinstance(asked, dict) or "prompt" not in asked:
            raise InputError('send an object such as {"prompt": "..."}')
        for key, value in asked.items():
            if key not in _FIELDS:
                raise InputError(f"unknown field {key!r}; there are: {', '.join(_FIELDS)}")
            if not isinstance(value, _FIELDS[key]) or isinstance(value, bool):
                raise InputError(f"{key} has the wrong type, {type(value).__name__}")
        turns = {name: _turns(name, said) for name, said in asked.pop("turns", {}).items()}
        with self.one_at_a_time:
            return {"answers": self.playground.ask(**asked, turns=turns)}


def _turns(name: str, said: Any) -> list[tuple[str, str]]:
    if not isinstance(said, list) or not all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in said
    ):
        raise InputError(f'turns of {name} must be a list of ["asked", "answered"]')
    return [(asked, answered) for asked, answered in said]


class _Handler(BaseHTTPRequestHandler):
    server: PlaygroundServer
    # A client that sends half a request must not hold a thread for ever.
    timeout = 60

    def do_GET(self) -> None:
        if self._foreign():
            return
        if self.path != "/":
            self._send(404, "text/plain; charset=utf-8", "there is only one page, /\n")
            return
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        self._send(200, "text/html; charset=utf-8", self.server.page(nonce), {"Content-Security-Policy": policy})

    def do_POST(self) -> None:
        if self._foreign():
            return
        if self.path != "/ask" or not secrets.compare_digest(
            self.headers.get("X-Token", "").encode(), self.server.token.encode()
        ):
            self._refuse(403, "reload the page: this request does not come from it")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > _LARGEST_REQUEST:
            self.close_connection = True
            self._refuse(413, f"a request may have {_LARGEST_REQUEST:,} bytes at most")
            return
        try:
            asked = json.loads(self.rfile.read(int(length)))
            reply = self.server.answer(asked)
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            self._refuse(400, "the request is not JSON")
        except InputError as error:
            self._refuse(400, str(error))
        else:
            self._send(200, "application/json", json.dumps(reply))

    def _foreign(self) -> bool:
        if self.headers.get("Host") in self.server.hosts:
            return False
        self._refuse(403, f"open {self.server.url}")
        return True

    def _refuse(self, status: int, text: str) -> None:
        self._send(status, "application/json", json.dumps({"error": text}))

    def _send(self, status: int, kind: str, content: str, headers: Mapping[str, str] | None = None) -> None:
        body = content.encode("utf-8")
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Prompts are nobody's business, and neither are addresses."""
