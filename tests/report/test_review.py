"""The review page: what it shows, keeps and refuses."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.parse

import pytest
from PIL import Image

from mini_internvl.data import DataError
from mini_internvl.data.ocr import Line, folder
from mini_internvl.data.ocr.reviews import read_reviews
from mini_internvl.report import review

pytest.importorskip("jinja2")
NASTY = '"><script>alert(1)</script> & </textarea>'


def read(image):
    box = (4, 6, 60, 20)
    faint = Line(text="faint", box=(4, 30, 60, 44), confidence=0.2)
    return [Line(text=f"wide {image.width}" if image.width != 90 else NASTY, box=box), faint]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "scans").mkdir()
    for number, width in enumerate((80, 90, 100)):
        Image.effect_noise((width, 60), 40).convert("RGB").save(tmp_path / "scans" / f"{number}.png")
    (tmp_path / "scans" / "bad.png").write_text("no picture")
    folder.read_source(tmp_path / "scans", tmp_path / "out", read=read, reader_name="test")
    return tmp_path / "out"


@pytest.fixture
def server(out):
    with review.Server(out) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server, path, method="GET", body=None, **headers):
    """(status, headers, content) of one request, as a browser sends it unless headers say otherwise."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.getheaders()), content


def post(server, number, verdict, token=None, **fields):
    form = {"token": server.token if token is None else token, "verdict": verdict, **fields}
    return request(server, f"/{number}", "POST", urllib.parse.urlencode(form))


def test_a_person_goes_through_the_pictures_and_the_rows_follow(server, out):
    assert request(server, "/")[1]["Location"] == "/1"
    status, _, page = request(server, "/1")
    assert status == 200
    assert "wide 80" in page.decode()
    assert re.search(r'name="drop-1" value="1" checked', page.decode()), "a faint line is left out unless ticked"
    status, headers, content = request(server, "/1.jpg")
    assert (status, headers["Content-Type"], content[:2]) == (200, "image/jpeg", b"\xff\xd8")

    assert post(server, 1, "accept")[1]["Location"] == "/2"
    fields = {"text-0": " plain\r\ntext ", "text-1": "seen, too"}
    assert post(server, 2, "correct", **fields)[1]["Location"] == "/3"
    assert read_reviews(out)["1.png"].lines[0].text == "plain text"
    assert post(server, 3, "reject")[0] == 303
    assert request(server, "/")[1]["Location"] == "/3"
    assert "corrected" in request(server, "/2")[2].decode()

    written = folder.write(out)
    assert (written.rows, written.corrected, written.rejected) == (2, 1, 1)
    rows = [json.loads(line) for line in (out / folder.ROWS).read_text().splitlines()]
    assert [row["id"] for row in rows] == ["0.png", "1.png"]
    assert "plain text\\nseen, too" in json.dumps(rows[1])
    assert "faint" not in json.dumps(rows[0])


def test_verdicts_outlast_the_server_and_can_be_changed(server, out):
    post(server, 1, "reject")
    post(server, 1, "accept")
    with review.Server(out) as again:
        assert again.reviews["0.png"].verdict == "accept"
        assert again.open_number() == 2
        assert again.token != server.token


def test_text_of_pictures_is_escaped(server):
    page = request(server, "/2")[2].decode()
    assert "<script" not in page
    assert "&lt;/textarea&gt;" in page
    headers = request(server, "/2")[1]
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_other_hosts_and_sites_are_refused(server, out, headers):
    for method, path in (("GET", "/1"), ("GET", "/1.jpg"), ("POST", "/1")):
        body = urllib.parse.urlencode({"token": server.token, "verdict": "reject"}) if method == "POST" else None
        status, _, content = request(server, path, method, body, **headers)
        assert status == 403
        assert b"127.0.0.1 alone" in content
    assert read_reviews(out) == {}


def test_odd_verdicts_are_refused_and_nothing_is_kept(server, out):
    assert post(server, 1, "accept", token="another")[0] == 403
    assert post(server, 1, "perhaps")[0] == 400
    status, _, page = post(server, 1, "correct", **{"text-0": " ", "text-1": "a", "drop-1": "1"})
    assert status == 400
    assert "reject one whose text is all wrong" in page.decode()
    assert post(server, 4, "accept")[0] == 404
    assert request(server, "/1", "POST", b"\xff=%")[0] == 400
    assert request(server, "/1", "POST", b"", **{"Content-Length": str(review.MAX_BODY + 1)})[0] == 413
    assert request(server, "/1", "POST", b"", **{"Content-Length": "-1"})[0] == 411
    for path in ("/0", "/99", "/1.png", "/../ocr.json", "/texts.jsonl", "/²"):
        assert request(server, urllib.parse.quote(path, safe="/."))[0] == 404
    assert read_reviews(out) == {}


def test_only_this_computer_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"


def test_a_folder_without_text_has_nothing_to_review(tmp_path, out):
    with pytest.raises(DataError, match="first: minivl data ocr SOURCE"):
        review.Server(tmp_path)
    (out / folder.TEXTS).write_text("")
    with pytest.raises(DataError, match="nothing to review"):
        review.Server(out)


def test_the_command_serves_the_page_until_it_is_stopped_and_writes_the_rows(out):
    started = subprocess.Popen(
        [sys.executable, "-m", "mini_internvl", "data", "ocr", str(out), "--review"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stderr is not None
    said = started.stderr.readline()
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/", said)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/1")
    page = connection.getresponse().read().decode()
    token = re.search(r'name="token" value="([^"]+)"', page)[1]
    connection.request("POST", "/1", urllib.parse.urlencode({"token": token, "verdict": "reject"}))
    assert connection.getresponse().status == 303
    connection.close()
    started.send_signal(signal.SIGINT)
    printed, _ = started.communicate(timeout=30)
    assert started.returncode == 0
    assert "2 rows" in printed
    assert "0 pictures corrected, 1 rejected" in printed
