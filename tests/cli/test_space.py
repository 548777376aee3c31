"""`vitrail space` by a genuine client over HTTP, to a Hub that takes Spaces, that refuses them, and that cannot."""

import shlex
from uuid import uuid4

import pytest
import yaml
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import RepositoryNotFoundError

from vitrail.cli.main import main


@pytest.fixture
def name() -> str:
    """A Space for each test."""
    return f"alice/{uuid4().hex}"


@pytest.fixture
def hub_model(online) -> str:
    """The id of a model, of which nothing is read before the Space is built."""
    model = f"alice/{uuid4().hex}"
    online.create_repo(model)
    return model


def space(*arguments):
    return main(["space", *map(str, arguments)])


def failure(capsys, *arguments):
    """The one sentence of a failure; what came before it are further attempts."""
    assert space(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    *_, sentence = captured.err.strip().splitlines()
    assert sentence.startswith("vitrail: ")
    return sentence


def titles(api, name):
    return [commit.title for commit in api.list_repo_commits(name, repo_type="space")]


def files(api, name):
    return set(api.list_repo_files(name, repo_type="space"))


def readme(api, name):
    with open(api.hf_hub_download(name, "README.md", repo_type="space"), encoding="utf-8") as file:
        return file.read()


def metadata(api, name):
    return yaml.safe_load(readme(api, name).split("---\n")[1])


def test_a_space_is_published_once(online, ask_hub, model_folder, name, capsys):
    arguments = (model_folder, name, "--hardware", "t4-small", "--secret", "KEY=hidden=word", "--private")
    assert space(*arguments, "--message", "My first") == 0
    url = f"{online.endpoint}/spaces/{name}"
    said = capsys.readouterr()
    assert said.out == f"The Space is at {url}, where the Hub builds it now.\n"
    assert titles(online, name) == ["My first", "initial commit"]
    assert {"app.py", "requirements.txt", "models/tiny/model.safetensors"} < files(online, name)
    assert online.space_info(name).private
    assert metadata(online, name)["app_file"] == "app.py"
    assert metadata(online, name)["emoji"] != "X"  # the Hub's own
    assert ask_hub("GET", f"spaces/{name}") == {"hardware": "t4-small", "secrets": {"KEY": "hidden=word"}}
    paths = [path for method, path, _ in ask_hub("GET", "log") if method == "POST" and name in path]
    assert paths.index(f"/api/spaces/{name}/secrets") < paths.index(f"/api/spaces/{name}/commit/main")

    assert space(*arguments) == space(model_folder, name) == 0
    said = capsys.readouterr()
    assert said.out == f"{url} is this Space already; there was nothing to upload.\n" * 2
    assert ask_hub("GET", f"spaces/{name}")["hardware"] == metadata(online, name)["suggested_hardware"] == "t4-small"
    assert len(titles(online, name)) == 2
    assert not any(path.endswith("/hardware") for _, path, _ in ask_hub("GET", "log") if name in path)
    assert space(model_folder, name, "--hardware", "cpu-basic") == 0
    assert ask_hub("GET", f"spaces/{name}")["hardware"] == "cpu-basic"


def test_another_model_takes_its_place_and_what_people_wrote_stays(online, model_folder, hub_model, name, capsys):
    assert space(model_folder, name) == 0
    written = readme(online, name).replace("title: ", "title: My ").replace("emoji: 🪟", "emoji: 🐜")
    mine = {"README.md": f"{written}\nMy own words.\n", "notes.txt": "mine", "vitrail-0.0.9-py3-none-any.whl": "old"}
    changes = [CommitOperationAdd(path, content.encode()) for path, content in mine.items()]
    online.create_commit(name, changes, commit_message="By hand", repo_type="space")
    assert space(hub_model, name, "--zero-gpu") == 0
    assert "notes.txt" in files(online, name)
    assert not any(path.startswith("models/") for path in files(online, name))
    assert len([path for path in files(online, name) if path.endswith(".whl")]) == 1
    capsys.readouterr()
    assert "My own words." in readme(online, name)
    assert hub_model in readme(online, name).partition("\n---\n")[2]
    merged = metadata(online, name)
    assert merged["models"] == [hub_model]
    assert merged["emoji"] == "🐜"
    assert merged["python_version"] == "3.12"
    assert f"{name} is on ZeroGPU, for which its app must be made: add --zero-gpu" in failure(capsys, hub_model, name)


def test_a_space_that_somebody_else_began(online, hub_model, name):
    online.create_repo(name, repo_type="space", space_sdk="gradio")
    assert space(hub_model, name) == 0
    merged = metadata(online, name)
    assert merged["app_file"] == "app.py"
    assert merged["sdk_version"] != "1.0.0"
    assert merged["emoji"] == "X"


def test_secrets_from_the_environment(online, ask_hub, hub_model, name, monkeypatch, capsys):
    monkeypatch.setenv("A_KEY", "of the environment")
    assert space(hub_model, name, "--secret", "A_KEY", "--secret", "EMPTY=") == 0
    assert ask_hub("GET", f"spaces/{name}")["secrets"] == {"A_KEY": "of the environment", "EMPTY": ""}
    capsys.readouterr()
    for given, sentence in (("NOT_SET", "NOT_SET is not set here"), ("my-key=hidden", "NAME must be one of")):
        with pytest.raises(SystemExit) as stopped:
            space(hub_model, name, "--secret", given)
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert "hidden" not in said


@pytest.mark.parametrize(
    ("flags", "fault", "sentences"),
    [
        ([], {"path": "/repos/create", "status": 402}, ["asks for a payment first (as the test", "PRO", "--zero-gpu"]),
        (["--zero-gpu"], {"path": "/repos/create", "status": 402}, ["two Spaces on ZeroGPU", "huggingface.co/pro"]),
        (["--hardware", "t4-small"], {"path": "/repos/create", "status": 403}, ["t4-small is paid by the hour"]),
        ([], {"path": "/repos/create", "status": 403}, ["Your token may not write there (as the test has ordered)"]),
        ([], {"path": "/api/models/", "status": 401}, ["The Hub does not accept your token"]),
        (["--secret", "KEY=hidden"], {"path": "/secrets", "status": 503}, ["The Hub answers 503"]),
        ([], {"path": "/api/spaces/.*/commit/", "status": 500}, ["The Hub answers 500"]),
        ([], {"path": "/api/spaces/", "drop": True}, ["cannot be reached"]),
    ],
)
def test_a_refusal_is_explained_with_what_finishes_it(
    online, ask_hub, hub_model, name, monkeypatch, capsys, flags, fault, sentences
):
    ask_hub("POST", "faults", **fault)
    said = failure(capsys, hub_model, name, *flags)
    for sentence in sentences:
        assert sentence in said
    assert "hidden" not in said
    command = said.partition("once that is done: vitrail ")[2].partition(", and with --dry-run DIR it is only written")[
        0
    ]
    assert command.startswith(f"space {hub_model} {name}")
    ask_hub("DELETE", "faults")
    try:
        assert titles(online, name) == ["initial commit"]
    except RepositoryNotFoundError:
        assert "create" in fault["path"] or "drop" in fault or fault["status"] == 401
    monkeypatch.setenv("KEY", "hidden")
    assert main(shlex.split(command)) == 0
    assert len(titles(online, name)) == 2


def test_what_passes_is_waited_for(online, ask_hub, hub_model, name):
    ask_hub("POST", "faults", path="/api/.*paces|create|secrets", status=503, times=3)
    ask_hub("POST", "faults", path="/commit/", status=412, times=1)
    assert space(hub_model, name, "--secret", "KEY=word") == 0
    assert len(titles(online, name)) == 2


def test_models_that_the_space_could_not_read(online, hub_model, name, capsys, monkeypatch):
    assert "There is no folder alice/nothing, and no such model on the Hub" in failure(capsys, "alice/nothing", name)
    hidden = f"{hub_model}-hidden"
    online.create_repo(hidden, private=True)
    assert f"{hidden} is not for everybody" in failure(capsys, hidden, name)
    with pytest.raises(RepositoryNotFoundError):
        online.space_info(name)
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    assert space(hidden, name, "--secret", "HF_TOKEN") == 0
    assert "preload_from_hub" not in metadata(online, name)


def test_a_private_space_is_not_published_for_all(online, hub_model, name, capsys):
    online.create_repo(name, repo_type="space", space_sdk="gradio")
    assert f"{name} is there and public" in failure(capsys, hub_model, name, "--private")
    assert "'a/b/c' cannot be the name of a Space on the Hub" in failure(capsys, hub_model, "a/b/c")
