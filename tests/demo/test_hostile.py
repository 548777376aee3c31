"""Files that are made to break things, and more people than there is room for."""

import io
import re
import struct
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image


def bomb(side=30_000):
    """A PNG of 900 million pixels in some kilobytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packed = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


RED = Image.new("RGB", (40, 30), "red")
BAD = {
    "bomb.png": bomb,
    "large.png": lambda: bomb(8200),
    "empty.png": lambda: b"",
    "page.png": lambda: b"<!DOCTYPE html><script>alert(1)</script>",
    "half.jpg": lambda: encoded(RED, "JPEG")[:300],
    "picture.svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    "program.exe": lambda: b"MZ" + bytes(300),
}
GOOD = {
    "deep.png": lambda: encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "print.jpg": lambda: encoded(RED.convert("CMYK"), "JPEG"),
    "moving.gif": lambda: encoded(RED, "GIF", save_all=True, append_images=[Image.new("RGB", (40, 30), "blue")]),
    "thin.png": lambda: encoded(Image.new("RGB", (1, 5000)), "PNG"),
    "<img src=x onerror=alert(1)>.png": lambda: encoded(RED, "PNG"),
}


@pytest.fixture
def given(tmp_path, request):
    path = tmp_path / request.param
    path.write_bytes((BAD | GOOD)[request.param]())
    return path


@pytest.mark.parametrize("given", BAD, indirect=True)
@pytest.mark.parametrize("endpoint", ["/predict", "/explain", "/test_map"])
def test_what_cannot_be_read_is_one_sentence(client, app, given, endpoint):
    before = app.printed()
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(str(given)), api_name=endpoint)
    assert re.fullmatch(rf"Cannot read the image {given.name}: [^\n]+\.", str(caught.value))
    assert app.printed() == before, "it is nothing that an operator must know"
    if given.name == "large.png":
        assert "it has 8200x8200 pixels, more than the 64 million that may be" in str(caught.value)


@pytest.mark.parametrize("given", GOOD, indirect=True)
def test_unusual_files_are_read(client, given):
    assert len(client.predict(handle_file(str(given)), api_name="/predict")) == 5
    with Image.open(client.predict(handle_file(str(given)), api_name="/explain")) as shown:
        assert shown.format == "PNG"


def test_too_large_a_file_is_refused(app):
    sent = httpx.post(f"{app.address}/gradio_api/upload", files={"files": ("a.png", bytes(20 * 1024**2 + 1))})
    assert sent.status_code == 413
    assert sent.text == "File size exceeded maximum allowed size of 20971520 bytes."


@pytest.mark.parametrize(
    "data",
    [[], ["x"], [{"path": 5}], [{"path": "\x00"}], [None, None, None], [{"path": "a"}, {}, []], [{"meta": 3}]],
    ids=str,
)
def test_senseless_calls_show_nothing_of_the_server(app, data):
    joined = httpx.post(f"{app.address}/gradio_api/call/predict", json={"data": data})
    said = joined.text
    if joined.is_success:
        said += httpx.get(f"{app.address}/gradio_api/call/predict/{joined.json()['event_id']}", timeout=30).text
    assert "error" in said or "detail" in said
    for secret in ("Traceback", "site-packages", "/vitrail/", str(app.folder)):
        assert secret not in said


def memory_of(app):
    """Megabytes that its process has."""
    with open(f"/proc/{app.process.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+)", status.read())[1]) / 1024


def crowd(app, photo, people, times):
    """What that many clients at once hear who each ask that many times."""
    heard: list[str] = []
    upload = httpx.post(f"{app.address}/gradio_api/upload", files={"files": ("a.png", photo.read_bytes())}).json()[0]
    given = {"path": upload, "meta": {"_type": "gradio.FileData"}}

    def ask():
        client = Client(app.address, verbose=False, analytics_enabled=False)
        for _ in range(times):
            try:
                (row,) = client.predict(given, top=1, api_name="/predict")
                heard.append(row["label"])
            except AppError as error:
                heard.append(str(error))
        client.close()

    threads = [threading.Thread(target=ask) for _ in range(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc")
def test_a_crowd_gets_its_answers(app, photo):
    crowd(app, photo, 2, 1)
    before = memory_of(app)
    heard = crowd(app, photo, 12, 3)
    assert len(heard) == 36
    assert len(set(heard)) == 1, set(heard)
    assert memory_of(app) - before < 100
    assert app.process.poll() is None


def test_those_for_whom_there_is_no_room_are_told(app, tmp_path):
    """While one large request is worked on, 64 may wait."""
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(400):
            archive.writestr(f"{number}.png", encoded(RED, "PNG"))

    def call(files):
        return httpx.post(f"{app.address}/gradio_api/call/predict_all", json={"data": [files, ""]}, timeout=60)

    content = (tmp_path / "many.zip").read_bytes()
    upload = httpx.post(f"{app.address}/gradio_api/upload", files={"files": ("many.zip", content)}).json()[0]
    first = call([{"path": upload, "meta": {"_type": "gradio.FileData"}}])
    with ThreadPoolExecutor(8) as several:
        answers = list(several.map(call, [[]] * 80))
    refused = [answer for answer in answers if answer.is_error]
    assert len(refused) >= 10
    assert {answer.status_code for answer in refused} == {503}
    assert "Queue is full" in refused[0].json()["detail"]
    address = f"{app.address}/gradio_api/call/predict_all"
    for answer in (first, next(answer for answer in answers if answer.is_success)):
        assert "event: complete" in httpx.get(f"{address}/{answer.json()['event_id']}", timeout=60).text
