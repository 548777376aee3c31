"""How the app starts, or ends in a sentence when it cannot."""

import socket

import gradio as gr
import pytest

from vitrail.cli.main import main
from vitrail.demo import app as demo_app
from vitrail.demo import launch
from vitrail.modeling import InputError


def test_a_wrong_model_ends_it(vitrail_demo, tmp_path):
    """The page is there before the model, and goes again."""
    process = vitrail_demo(tmp_path, "--model", tmp_path / "nowhere")
    assert process.wait(timeout=100) == 2
    *_, last = (tmp_path / "log").read_text().splitlines()
    assert last.startswith(f"vitrail: {tmp_path / 'nowhere'} is neither a folder with a config.json, ")
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_an_occupied_port_ends_it(animals, capsys):
    with socket.socket() as occupied:
        occupied.bind(("127.0.0.1", 0))
        occupied.listen()
        port = occupied.getsockname()[1]
        assert main(["demo", "--model", str(animals), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "The app cannot start: " in said
    assert str(port) in said


@pytest.mark.parametrize("port", ["0", "65536", "http", "-1"])
def test_ports_that_are_none(capsys, port):
    with pytest.raises(SystemExit):
        main(["demo", "--model", "a/b", "--port", port])
    assert f"{port} is no port; ports are 1 to 65535" in capsys.readouterr().err.replace("'", "")


@pytest.fixture
def launched(monkeypatch):
    """A function that launches without listening; the engine, and with what gradio was launched."""

    def launch_with(models, **options):
        engines, given = [], {}

        def remembered(*arguments):
            engines.append(engine := demo_app_engine(*arguments))
            return engine

        demo_app_engine = demo_app.Engine
        monkeypatch.setattr(demo_app, "Engine", remembered)
        monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: given.update(options))
        monkeypatch.setattr(gr.Blocks, "block_thread", lambda self: None)
        launch(models, **options)
        return engines[0], given

    return launch_with


@pytest.mark.parametrize(
    ("options", "environment", "open_to_all"),
    [
        ({}, None, True),
        ({"host": "localhost"}, None, True),
        ({"host": "127.0.0.2"}, None, True),
        ({"host": "::1"}, None, True),
        ({"share": True}, None, False),
        ({"host": "0.0.0.0"}, None, False),
        ({"host": "::"}, None, False),
        ({"host": "demo.example.org"}, None, False),
        ({}, "0.0.0.0", False),
        ({"host": "127.0.0.1"}, "0.0.0.0", True),
    ],
    ids=str,
)
def test_others_may_ask_only_what_is_on_offer(
    launched, animals, deeper, monkeypatch, options, environment, open_to_all
):
    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    if environment is not None:
        monkeypatch.setenv("GRADIO_SERVER_NAME", environment)
    engine, given = launched(str(animals), **options)
    assert given["server_name"] == (options.get("host") or environment or "127.0.0.1")
    assert given["share"] == options.get("share", False)
    assert engine.names == ["animals"]
    if open_to_all:
        assert len(engine.model(str(deeper)).labels) == 12
    else:
        with pytest.raises(InputError, match="is not on offer here"):
            engine.model(str(deeper))


def test_a_wrong_model_closes_the_app(launched, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(gr.Blocks, "close", lambda self, verbose: closed.append(self))
    with pytest.raises(InputError, match=r"neither a folder with a config\.json"):
        launched(str(tmp_path))
    assert len(closed) == 1
