"""A local page on which a person accepts, corrects or rejects the text that was read in pictures.

It is served by the standard library on 127.0.0.1 alone. Unusual: a page of another site that the same browser shows may
send requests here, so that every request must name this host, and every verdict must hold the token of the page.
"""

from __future__ import annotations

import io
import secrets
import threading
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from mini_internvl.data import DataError, Row
from mini_internvl.data.containers import JsonLines
from mini_internvl.data.ocr import Line, PictureText
from mini_internvl.data.ocr.folder import TEXTS, settings
from mini_internvl.data.ocr.reviews import CORRECT, Review, read_reviews, write_reviews
from mini_internvl.inputs.images import ImageError, load_image
from mini_internvl.report.page import render, require

ADDRESS = "127.0.0.1"
MAX_BODY = 1 << 20  # bytes of a verdict
MAX_FIELDS = 4000  # of a verdict
LONGEST_SIDE = 2400  # pixels of a picture on the page
SECONDS = 30  # that a connection may be silent
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, kw_only=True)
class ShownLine:
    """A line on the page."""

    text: str
    box: tuple[int, int, int, int]
    dropped: bool  # whether "leave out" is ticked
    confidence: float | None = None  # ``None`` where a person wrote it


class Server(ThreadingHTTPServer):
    """Serves the pictures of a folder that have text, until it is shut down; its reviews are kept at once.

    Args:
        folder: what ``minivl data ocr`` wrote.
        port: 0 takes a free one.

    Raises:
        DataError: the folder holds no text, or a damaged file.
        OSError: the port is taken.
        ValueError: jinja2 is missing.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int = 0) -> None:
        require()
        self.folder, self.least = folder, float(settings(folder)["min_confidence"])
        self.texts = JsonLines(folder / TEXTS)
        self.names: list[str] = []
        self.places: list[tuple[int, int, int]] = []
        for start, size, number, data in self.texts.spans():
            row = self.texts.parse(data, number)
            if isinstance(row, Row) and row.raw.get("lines"):
                self.names.append(str(row.raw.get("name")))
                self.places.append((start, size, number))
        if not self.names:
            raise DataError(f"{folder} holds no picture with text; there is nothing to review")
        self.reviews = read_reviews(folder)
        self.lock = threading.Lock()
        self.token = secrets.token_urlsafe(24)
        super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/"

    def picture(self, number: int) -> PictureText:
        """The ``number``-th picture that has text, from 1; DataError where its record is damaged."""
        start, size, line = self.places[number - 1]
        row = self.texts.parse(self.texts.read(start, size), line)
        if not isinstance(row, Row):
            raise DataError(str(row))
        return PictureText.of(dict(row.raw))

    def open_number(self) -> int:
        """The first picture without a verdict, or else the last one."""
        left = (number for number, name in enumerate(self.names, 1) if name not in self.reviews)
        return next(left, len(self.names))

    def keep(self, number: int, review: Review) -> None:
        """Keep a verdict, in the file too."""
        with self.lock:
            self.reviews[self.names[number - 1]] = review
            write_reviews(self.folder, self.reviews)

    def page(self, number: int, problem: str = "") -> str:
        """The page of a picture."""
        picture, review = self.picture(number), self.reviews.get(self.names[number - 1])
        if review is not None and review.verdict == CORRECT:
            lines = [ShownLine(text=one.text, box=one.box, dropped=False) for one in review.lines]
        else:
            lines = [
                ShownLine(text=one.text, box=one.box, dropped=one.confidence < self.least, confidence=one.confidence)
                for one in picture.lines
            ]
        return render(
            "review.html",
            name=picture.name,
            number=number,
            total=len(self.names),
            done=sum(name in self.reviews for name in self.names),
            verdict=f"{review.verdict}ed" if review else "",
            problem=problem,
            width=picture.width,
            height=picture.height,
            mark=max(picture.width, picture.height) // 45 + 4,
            lines=lines,
            least=self.least,
            token=self.token,
        )

    def verdict(self, number: int, form: Mapping[str, Sequence[str]]) -> Review:
        """The review that a form of the page holds; ValueError says what it lacks."""
        chosen = form.get("verdict", [""])[0]
        if chosen != CORRECT:
            return Review(verdict=chosen)
        review = self.reviews.get(self.names[number - 1])
        shown = review.lines if review and review.verdict == CORRECT else self.picture(number).lines
        lines = []
        for place, line in enumerate(shown):
            text = " ".join(form.get(f"text-{place}", [""])[0].split())
            if text and f"drop-{place}" not in form:
                lines.append(Line(text=text, box=line.box))
        return Review(verdict=CORRECT, lines=lines)


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server
    server_version, sys_version = "mini-internvl", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        """A page, a picture, or the way to the next page."""
        if not self._is_local():
            return
        name, _, ending = self.path.lstrip("/").partition(".")
        number = self._number(name)
        if self.path == "/":
            self._see(self.server.open_number())
        elif number and ending == "jpg":
            self._picture(number)
        elif number and not ending:
            self._page(number)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")

    def do_POST(self) -> None:
        """Keep a verdict."""
        self.close_connection = True
        number, size = self._number(self.path.lstrip("/")), self.headers.get("Content-Length", "")
        if not self._is_local():
            return
        if not number:
            self._refuse(HTTPStatus.NOT_FOUND, "there is no such page")
        elif not (size.isascii() and size.isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the length of the verdict is missing")
        elif len(size) > 9 or int(size) > MAX_BODY:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a verdict has at most {MAX_BODY:,} bytes")
        else:
            self._keep(number, self.rfile.read(int(size)))

    def _keep(self, number: int, body: bytes) -> None:
        try:
            form = urllib.parse.parse_qs(
                body.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_FIELDS, errors="strict"
            )
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "no verdict of this page")
            return
        if not secrets.compare_digest(form.get("token", [""])[0].encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.FORBIDDEN, "the page is of an earlier review; load it again")
            return
        try:
            self.server.keep(number, self.server.verdict(number, form))
        except ValueError as error:
            self._page(number, str(error), HTTPStatus.BAD_REQUEST)
            return
        self._see(number + 1 if number < len(self.server.names) else number)

    def _is_local(self) -> bool:
        """Refuse a request that names another host, or comes from the page of another site."""
        own = {f"{host}:{self.server.server_port}" for host in (ADDRESS, "localhost")}
        origin = self.headers.get("Origin")
        if self.headers.get("Host") in own and (origin is None or origin in {f"http://{host}" for host in own}):
            return True
        self.close_connection = True
        self._refuse(HTTPStatus.FORBIDDEN, f"this page is for {ADDRESS} alone")
        return False

    def _number(self, text: str) -> int:
        """The number of a picture, 0 where there is none."""
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            return 0
        return int(text) if int(text) <= len(self.server.names) else 0

    def _page(self, number: int, problem: str = "", status: HTTPStatus = HTTPStatus.OK) -> None:
        try:
            page = self.server.page(number, problem)
        except (ValueError, OSError) as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        self._send(status, page.encode(errors="replace"), "text/html; charset=utf-8")

    def _picture(self, number: int) -> None:
        buffer = io.BytesIO()
        try:
            image = load_image(str(self.server.folder / self.server.picture(number).image)).copy()
        except (ImageError, DataError, OSError) as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
            return
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=88)
        self._send(HTTPStatus.OK, buffer.getvalue(), "image/jpeg")

    def _see(self, number: int) -> None:
        self._send(HTTPStatus.SEE_OTHER, b"", "text/plain", Location=f"/{number}")

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._send(status, f"{reason}\n".encode(errors="replace"), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, content: bytes, kind: str, **more: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(content)), **more}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: a library prints nothing."""
