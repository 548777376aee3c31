"""Every endpoint through the client that its users have, and what strangers may not read through any."""

import importlib.util
import json
import uuid

import httpx
import numpy as np
import pytest
import torch
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from vitrail.demo.engine import Engine, File
from vitrail.demo.explaining import SHARES, Question
from vitrail.inspection import overlay
from vitrail.modeling import read_image


LABELS = ["ant", "bee", "cat", "dog", "elk"]
ENDPOINTS = {"/predict", "/explain", "/heatmap", "/heads", "/test_map", "/predict_all", "/describe"}


@pytest.fixture(scope="module")
def engine(animals, deeper):
    """What the answers are compared with."""
    return Engine([str(animals), str(deeper)], open_to_all=False)


@pytest.fixture(scope="module")
def file(photo):
    return File(photo, "photo.png")


def test_the_documentation(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert endpoints.keys() == ENDPOINTS
    for endpoint in endpoints.values():
        assert endpoint["description"]
        assert endpoint["parameters"]
        for parameter in endpoint["parameters"]:
            assert parameter["python_type"]["type"] not in ("", "Any")
            assert parameter["parameter_has_default"] == (parameter["parameter_name"] not in ("image", "files"))
    methods = next(one for one in endpoints["/explain"]["parameters"] if one["parameter_name"] == "method")
    assert "gradient_rollout" in json.dumps(methods["python_type"])
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


@pytest.mark.parametrize("name", ["", "deeper"])
def test_predict(client, engine, photo, file, name):
    probabilities = engine.classify(name or "animals", file)
    labels = engine.model(name or "animals").labels
    rows = client.predict(handle_file(str(photo)), model=name, top=3, api_name="/predict")
    best = np.argsort(-probabilities)[:3]
    assert [row["label"] for row in rows] == [labels[index] for index in best]
    assert [row["probability"] for row in rows] == pytest.approx(probabilities[best].tolist(), abs=1e-6)
    every = client.predict(handle_file(str(photo)), model=name, top=99, api_name="/predict")
    assert sum(row["probability"] for row in every) == pytest.approx(1)


@pytest.mark.parametrize(
    ("asked", "question", "layer"),
    [
        ({}, Question(), -1),
        ({"head_fusion": "max", "discard_ratio": 0.3, "layer": 2}, Question(head_fusion="max", discard_ratio=0.3), 1),
        ({"method": "attention", "patch_row": 3, "patch_column": 1}, Question("attention", patch=(2, 0)), -1),
        ({"method": "relevance"}, Question("relevance"), -1),
        ({"method": "gradient_rollout", "label": "bee"}, Question("gradient_rollout", 1), -1),
    ],
    ids=str,
)
@pytest.mark.parametrize("opacity", [0.6, 0.0])
def test_explain(client, engine, photo, file, asked, question, layer, opacity):
    picture = client.predict(handle_file(str(photo)), opacity=opacity, **asked, api_name="/explain")
    said = client.predict(handle_file(str(photo)), **asked, api_name="/heatmap")
    expected = engine.explain("animals", file, question)
    assert np.array(said["grid"]) == pytest.approx(expected.maps[layer], abs=1e-6)
    index = int(expected.probabilities.argmax()) if expected.target is None else expected.target
    assert said["label"] == LABELS[index]
    assert said["probability"] == pytest.approx(float(expected.probabilities[index]), abs=1e-6)
    with Image.open(picture) as shown:
        drawn = overlay(read_image(photo), torch.tensor(said["grid"]), opacity)
        assert np.abs(np.asarray(shown).astype(int) - np.asarray(drawn)).max() <= 1


def test_heads(client, engine, photo, file):
    found = client.predict(handle_file(str(photo)), layer=2, api_name="/heads")
    assert np.array(found) == pytest.approx(engine.heads("animals", file, 1), abs=1e-6)
    assert np.array(client.predict(handle_file(str(photo)), api_name="/heads")) == pytest.approx(
        engine.heads("animals", file, 2), abs=1e-6
    )


def test_test_map(client, engine, photo, file):
    found = client.predict(handle_file(str(photo)), method="relevance", label="cat", api_name="/test_map")
    expected = engine.occlude("animals", file, Question("relevance", 2))
    assert found["label"] == "cat"
    assert found["hidden"] == list(SHARES)
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-6)
    assert found["by_map"] == pytest.approx(expected.by_map.tolist(), abs=1e-6)
    assert np.array(found["at_random"]) == pytest.approx(expected.at_random, abs=1e-6)


def test_predict_all(client, engine, photo, file, broken):
    good, bad = client.predict([handle_file(str(photo)), handle_file(str(broken))], api_name="/predict_all")
    probabilities = engine.classify("animals", file)
    assert (good["image"], good["label"], good["error"]) == ("photo.png", LABELS[int(probabilities.argmax())], "")
    assert good["probability"] == pytest.approx(float(probabilities.max()), abs=1e-6)
    assert bad["error"].startswith("Cannot read the image broken.png: ")


def test_describe(client, engine):
    found = client.predict(model="deeper", api_name="/describe")
    assert found["models"] == ["animals", "deeper"]
    assert found["classes"] == engine.model("deeper").labels
    assert found["facts"] == engine.facts("deeper").table
    assert client.predict(api_name="/describe")["card"] == engine.facts("animals").card


@pytest.mark.parametrize(
    ("endpoint", "asked", "sentence"),
    [
        ("/predict", {"model": "/nowhere"}, "/nowhere is neither"),
        (
            "/explain",
            {"method": "relevance", "label": "elephant"},
            "'elephant' is none of the model's labels, ant, bee",
        ),
        ("/explain", {"layer": 4}, "layer is 4; the model has layers 1 to 3."),
        ("/heatmap", {"layer": -1}, "layer is -1"),
        ("/explain", {"patch_row": 4, "patch_column": 1}, "no patch in row 4, column 1; the image has 3 rows of 2."),
        ("/heatmap", {"patch_row": 1}, "There is no patch in row 1, column 0"),
        ("/explain", {"discard_ratio": 1.0}, "discard_ratio"),
        ("/explain", {"head_fusion": "sum"}, "head_fusion"),
        ("/explain", {"method": "guess"}, "method"),
        ("/explain", {"method": "relevance", "patch_row": 1, "patch_column": 1}, "for a patch choose rollout"),
        ("/predict", {"top": "many"}, "top"),
        ("/explain", {"opacity": 2.0}, "alpha"),
        ("/heads", {"layer": 9}, "layer is 9"),
        ("/test_map", {"label": "elephant"}, "'elephant' is none"),
    ],
    ids=str,
)
def test_mistakes_are_one_sentence(client, photo, endpoint, asked, sentence):
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(str(photo)), **asked, api_name=endpoint)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_is_one_sentence(client):
    with pytest.raises(AppError, match=r"image cannot be used: .*\.|There is no file"):
        client.predict(None, api_name="/predict")


META = {"meta": {"_type": "gradio.FileData"}}


def as_strangers_describe(path):
    """A file as the page describes uploads, and with less, which gradio itself does not look at."""
    return [{"path": str(path), **META}, {"path": str(path)}]


def answer_of(app, dependency, data):
    """What the server sends for an event of the page or of the API."""
    session = uuid.uuid4().hex
    body = {"data": data, "fn_index": dependency["id"], "session_hash": session}
    joined = httpx.post(f"{app.address}/gradio_api/queue/join", json=body)
    if joined.is_error:
        return joined.text
    found = ""
    with httpx.stream("GET", f"{app.address}/gradio_api/queue/data?session_hash={session}", timeout=30) as stream:
        for line in stream.iter_lines():
            found += line
            if "process_completed" in line or "close_stream" in line:
                return found
    return found


def test_files_of_the_server_stay_there(app, photo, file, engine):
    """An image that the server could read but nobody uploaded, by every event that takes a file; and by its address."""
    config = httpx.get(f"{app.address}/config").json()
    kinds = {one["id"]: one["type"] for one in config["components"]}
    (beside := app.folder / "beside.png").write_bytes(photo.read_bytes())
    (link := app.folder / "tmp" / "gradio" / "link.png").symlink_to(beside)
    filler = {"radio": "rollout", "dropdown": "animals", "slider": 0, "state": None, "checkbox": False}
    asked = 0
    for dependency in config["dependencies"]:
        inputs = [kinds[one] for one in dependency["inputs"]]
        if dependency["api_name"] in ("predict", "explain", "heatmap", "heads", "test_map"):
            spots, many = [0], False
        elif dependency["api_name"] == "predict_all":
            spots, many = [0], True
        else:
            spots, many = [spot for spot, kind in enumerate(inputs) if kind in ("image", "file")], "file" in inputs
        for spot in spots:
            for path in (beside, link):
                for given in as_strangers_describe(path):
                    data = [filler.get(kind) for kind in inputs]
                    data[spot] = [given] if many else given
                    said = answer_of(app, dependency, data)
                    asked += 1
                    assert '"success":false' in said.replace(" ", ""), (dependency, said[:500])
                    assert "Traceback" not in said
                    assert not any(f'"{label}"' in said for label in LABELS)
    assert asked > 60
    for address in (beside, "/etc/hostname", app.folder / "log"):
        assert httpx.get(f"{app.address}/gradio_api/file={address}").status_code in (403, 404)


def test_addresses_on_the_servers_own_network_are_not_asked(app, client):
    with pytest.raises(AppError) as caught:
        client.predict({"path": f"{app.address}/theme.css", **META}, api_name="/predict")
    assert "Traceback" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("mcp") is None, reason="mcp is not installed")
def test_language_models_have_the_same_endpoints(start_app, animals, tmp_path):
    with start_app(tmp_path, "--model", animals, "--mcp") as app:
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
        headers = {"Accept": "application/json, text/event-stream"}
        listed = httpx.post(f"{app.address}/gradio_api/mcp/", json=body, headers=headers, timeout=30).text
        tools = json.loads(listed[listed.index("{") :])["result"]["tools"]
    assert {tool["name"].rpartition("_")[-1] for tool in tools} >= {"predict", "explain", "heads", "describe"}
    assert all(tool["description"] and tool["inputSchema"]["properties"] for tool in tools)
