"""`vitrail push` by a genuine client over HTTP, to a Hub that works, that does not, and that does again."""

import shlex
import socket
from uuid import uuid4

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import RepositoryNotFoundError

from vitrail.cli.main import main


@pytest.fixture(autouse=True)
def no_new_process(monkeypatch):
    """That others get the same model is the matter of other tests."""
    monkeypatch.setattr("vitrail.publishing.publication.check_reload", lambda folder, files: None)


@pytest.fixture
def impatient(monkeypatch):
    """Waits for an answer of the Hub for a second, not for a minute."""
    monkeypatch.setattr("vitrail.publishing.hub_client._SILENCE", 1)


@pytest.fixture
def name() -> str:
    """A repository for each test."""
    return f"alice/{uuid4().hex}"


def titles(api, name, **kwargs):
    return [commit.title for commit in api.list_repo_commits(name, **kwargs)]


def failure(capsys, *arguments):
    """The one sentence of a push that failed; what came before it are further attempts."""
    assert main(["push", *map(str, arguments)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    *_, sentence = captured.err.strip().splitlines()
    assert sentence.startswith("vitrail: ")
    return sentence


def test_a_model_is_published_once(online, model_folder, name, capsys):
    assert main(["push", str(model_folder), name, "--private", "--message", "My first"]) == 0
    assert capsys.readouterr().out == f"{model_folder} is at {online.endpoint}/{name}\n"
    published = set(online.list_repo_files(name)) - {".gitattributes"}
    assert published == {
        *("README.md", "all_results.json", "config.json", "model.safetensors", "preprocessor_config.json"),
        *("shown.png", "maps/worst 1.png"),
    }
    assert online.model_info(name).private
    assert titles(online, name) == ["My first", "initial commit"]
    card = ModelCard.load(name)
    assert f'pipeline("image-classification", "{name}")' in card.text

    assert main(["push", str(model_folder), name]) == 0
    assert capsys.readouterr().out == f"{online.endpoint}/{name} has this model already; there was nothing to upload.\n"
    assert len(titles(online, name)) == 2


def test_another_model_takes_its_place_and_peoples_text_stays(online, model_folder, name, capsys):
    main(["push", str(model_folder), name])
    readme = ModelCard.load(name).content
    online.upload_file(path_or_fileobj=f"{readme}\nMy own words.\n".encode(), path_in_repo="README.md", repo_id=name)
    for path in ("model-00001-of-00002.safetensors", "modeling_vit.py", "theirs.txt"):
        online.upload_file(path_or_fileobj=b"of before", path_in_repo=path, repo_id=name)
    readme = (model_folder / "README.md").read_text()
    (model_folder / "README.md").write_text(readme.replace("It was trained.", "It was trained again."))
    commits = len(titles(online, name))
    assert main(["push", str(model_folder), name]) == 0
    assert len(titles(online, name)) == commits + 1
    assert "theirs.txt" in online.list_repo_files(name)
    assert not {"model-00001-of-00002.safetensors", "modeling_vit.py"} & set(online.list_repo_files(name))
    card = ModelCard.load(name)
    assert "It was trained again." in card.text
    assert "My own words." in card.text


def test_a_branch_of_its_own(online, model_folder, name, capsys):
    online.create_repo(name)
    assert main(["push", str(model_folder), name, "--revision", "trial"]) == 0
    assert capsys.readouterr().out.endswith(f"/{name}/tree/trial\n")
    assert "model.safetensors" in online.list_repo_files(name, revision="trial")
    assert online.list_repo_files(name) == [".gitattributes"]


@pytest.mark.parametrize(
    "fault",
    [
        {"path": ".*", "status": 503, "times": 3},
        {"path": "/api/repos/create", "status": 409, "times": 1},
        {"path": "/commit/", "status": 412, "times": 1},  # somebody else was faster
        {"path": "/commit/", "status": 429, "times": 2},
        {"path": "/api/models/", "drop": True, "times": 2},
        {"path": "/lfs/", "method": "PUT", "drop": True, "times": 2},
        {"path": "/preupload/", "silent": True, "times": 1},
    ],
)
def test_what_passes_is_waited_for(online, ask_hub, impatient, model_folder, name, fault):
    ask_hub("POST", "faults", **fault)
    assert main(["push", str(model_folder), name]) == 0
    assert len(titles(online, name)) == 2
    refused = [status for _, _, status in ask_hub("GET", "log")]
    assert fault.get("status", -1) in refused


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"path": ".*", "status": 500}, "The Hub answers 500 (as the test has ordered)"),
        ({"path": "/commit/", "status": 503}, "The Hub answers 503 (as the test has ordered)"),
        ({"path": "/lfs/", "drop": True}, "cannot be reached"),
        ({"path": "/validate-yaml", "drop": True}, "cannot be reached"),
        ({"path": "/commit/", "silent": True}, "cannot be reached (timed out)"),
        ({"path": "/preupload/", "status": 429}, "The Hub answers 429"),
        ({"path": "/create", "status": 409}, "The Hub answers 409"),
        ({"path": "/create", "status": 402}, "The Hub asks for a payment first (as the test has ordered)"),
        ({"path": "/commit/", "status": 401}, "run `hf auth login` (and unset HF_TOKEN, which wins over it)"),
        ({"path": "/commit/", "status": 403}, "Your token may not write there (as the test has ordered)"),
        ({"path": "/commit/", "status": 404}, "The Hub answers 404"),
    ],
)
def test_what_does_not_pass_is_said_and_how_to_finish(
    online, ask_hub, impatient, model_folder, name, capsys, fault, sentence
):
    weights = (model_folder / "model.safetensors").read_bytes()
    ask_hub("POST", "faults", **fault)
    said = failure(capsys, model_folder, name, "--private")
    assert sentence in said
    finish = f"the model is safe in {model_folder}, and this publishes it: vitrail push {model_folder} {name} --private"
    assert said.endswith(finish)
    assert (model_folder / "model.safetensors").read_bytes() == weights
    ask_hub("DELETE", "faults")
    try:
        assert titles(online, name) == ["initial commit"]
    except RepositoryNotFoundError:
        assert "/commit/" not in fault["path"]
    assert main(shlex.split(said.partition("this publishes it: vitrail ")[2])) == 0


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        (None, "The Hub does not know who you are: run `hf auth login`"),
        ("hf_unknown", "The Hub does not accept your token: run `hf auth login`"),
        ("hf_alice_reads", "Your token may not write there"),
        ("hf_bob", "Your token may not write there"),
    ],
)
@pytest.mark.parametrize("there", [True, False])
def test_a_token_that_will_not_do(online, monkeypatch, model_folder, name, capsys, token, sentence, there):
    if there:
        online.create_repo(name)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    said = failure(capsys, model_folder, name)
    assert sentence in said
    assert said.endswith(f"vitrail push {model_folder} {name}")


def test_no_hub_at_all(online, monkeypatch, model_folder, name, capsys):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        assert f"The Hub at {address} cannot be reached (" in failure(capsys, model_folder, name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set, so nothing goes to the Hub: unset it" in failure(capsys, model_folder, name)


@pytest.mark.parametrize(
    ("repository", "sentence"),
    [
        ("alice/vit?", "'alice/vit?' cannot be the name of a model on the Hub; give user/name"),
        ("a/b/c", "'a/b/c' cannot be the name"),
        ("https://huggingface.co/alice/vit", "cannot be the name"),
        ("datasets/alice/tiny", "datasets/alice/tiny is not for models"),
    ],
)
def test_names_that_are_none(online, model_folder, capsys, repository, sentence):
    assert sentence in failure(capsys, model_folder, repository)


def test_a_private_model_is_not_published_for_all(online, model_folder, name, capsys):
    online.create_repo(name)
    assert f"{name} is there and public: make it private in its settings" in failure(
        capsys, model_folder, name, "--private"
    )
    assert titles(online, name) == ["initial commit"]


def test_folders_that_are_no_model(online, tmp_path, name, capsys):
    assert "has no config.json, so it is no folder of a model" in failure(capsys, tmp_path, name)
    assert "There is no folder" in failure(capsys, tmp_path / "nowhere", name)
    with pytest.raises(RepositoryNotFoundError):
        online.model_info(name)
