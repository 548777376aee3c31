"""From a data set on the Hub to a model on it, by genuine clients over HTTP, and runs whose Hub fails."""

import json
import shlex
import signal

import pytest
from huggingface_hub import ModelCard

from vitrail.cli.main import main
from vitrail.training import train


@pytest.mark.slow
def test_data_from_the_hub_and_the_model_back_to_it(hub, ask_hub, run_with, image_folder, tiny_flags, tmp_path):
    """The data set is pushed, trained on by its id, the model published through a bad line, and served by its id."""
    publish = "import datasets, sys; datasets.load_dataset(sys.argv[1]).push_to_hub('alice/shades')"
    run_with(hub, "-c", publish, image_folder)
    ask_hub("POST", "faults", path="/lfs/", method="PUT", drop=True, times=1)
    ask_hub("POST", "faults", path="/alice/shades-vit", status=503, times=2)
    flags = [*tiny_flags, "--learning_rate", "1e-2", "--validation_fraction", "0.25", "--save_strategy", "epoch"]
    push = [
        "--push_to_hub",
        "--hub_model_id",
        "shades-vit",
        "--hub_private_repo",
        "true",
        "--output_dir",
        tmp_path / "run",
    ]
    said = run_with(hub, "-m", "vitrail.cli.main", "train", "--dataset", "alice/shades", *flags, *push)
    assert said.endswith(f"It is published at {hub['HF_ENDPOINT']}/alice/shades-vit\n")

    stock = """
import sys
sys.modules["vitrail"] = None
from PIL import Image
from huggingface_hub import HfApi, ModelCard
from transformers import pipeline
print(pipeline("image-classification", "alice/shades-vit")(Image.new("RGB", (30, 20), "white"))[0]["label"])
card, api = ModelCard.load("alice/shades-vit"), HfApi()
snippet = 'model = "alice/shades-vit"'
print(card.data.model_name, card.data.to_dict()["datasets"], snippet in card.text)
print(api.model_info("alice/shades-vit").private, len(api.list_repo_commits("alice/shades-vit")))
print(*api.list_repo_files("alice/shades-vit"), sep="|")
"""
    label, card, repository, files = run_with(hub | {"HF_HOME": str(tmp_path / "home")}, "-c", stock).splitlines()
    assert label == "bright"
    assert card == "shades-vit alice/shades True"
    assert repository == "True 2"
    assert {"README.md", "model.safetensors", "samples_with_rollout.png", "all_results.json"} < set(files.split("|"))
    assert not [name for name in files.split("|") if name.startswith(("checkpoint", "trainer_state", "training_args"))]


@pytest.fixture
def no_new_process(monkeypatch):
    monkeypatch.setattr("vitrail.publishing.publication.check_reload", lambda folder, files: None)


@pytest.mark.usefixtures("no_new_process")
def test_a_hub_that_fails_costs_nothing(online, ask_hub, image_folder, tiny_flags, tmp_path, capsys):
    """It answers nothing from beginning to end, with transformers' eagerest strategy; the sentence finishes the job."""
    ask_hub("POST", "faults", path=".*", status=503)
    folder = tmp_path / "run"
    flags = [*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(folder), "--save_strategy", "epoch"]
    push = ["--push_to_hub", "--hub_model_id", "alice/unlucky", "--hub_strategy", "every_save"]
    assert main(["train", *flags, *push]) == 1
    captured = capsys.readouterr()
    assert "hub_strategy every_save: the model is published once, when it is complete." in captured.out
    assert f"The model, its card and its figures are in {folder}" in captured.out
    *_, sentence = captured.err.strip().splitlines()
    assert "The Hub answers 503" in sentence
    assert json.loads((folder / "all_results.json").read_text())["eval_accuracy"] > 0

    ask_hub("DELETE", "faults")
    vitrail, *finish = shlex.split(sentence.partition("this publishes it: ")[2])
    assert vitrail == "vitrail"
    assert main(finish) == 0
    assert "model.safetensors" in online.list_repo_files("alice/unlucky")
    assert 'model = "alice/unlucky"' in ModelCard.load("alice/unlucky").text

    tuned = ["--model", "alice/unlucky", "--dataset", str(image_folder), "--output_dir", str(tmp_path / "tuned")]
    train([*tuned, "--max_steps", "1", "--disable_tqdm", "true"])
    assert ModelCard.load(tmp_path / "tuned" / "README.md").data.to_dict()["base_model"] == "alice/unlucky"


def test_a_signal_while_it_is_published_costs_nothing(online, monkeypatch, image_folder, tiny_flags, tmp_path, capsys):
    monkeypatch.setattr("vitrail.publishing.publication.check_reload", lambda *_: signal.raise_signal(signal.SIGTERM))
    flags = [*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(tmp_path), "--num_train_epochs", "1"]
    assert main(["train", *flags, "--push_to_hub", "--hub_model_id", "alice/stopped"]) == 143
    safe = f"the finished model is safe in {tmp_path}, and this publishes it: vitrail push {tmp_path} alice/stopped"
    assert capsys.readouterr().err.strip().endswith(safe)
    weights = (tmp_path / "model.safetensors").stat()

    monkeypatch.setattr("vitrail.publishing.publication.check_reload", lambda *_: None)
    assert main(["train", *flags, "--push_to_hub", "--hub_model_id", "alice/stopped"]) == 0
    said = capsys.readouterr().out
    assert "what remains is to publish it" in said
    assert "images of the validation split" in said
    assert f" predict --model {tmp_path} {tmp_path}/samples/0.png\n" in said
    assert (tmp_path / "model.safetensors").stat() == weights
    assert "model.safetensors" in online.list_repo_files("alice/stopped")


@pytest.mark.parametrize(
    ("token", "name", "sentence"),
    [
        ("hf_unknown", "alice/early", "The Hub does not accept your token: run `hf auth login`"),
        ("hf_alice_reads", "early", "Your token may not write there"),
        ("hf_alice", "bob/early", "Your token may not write there"),
        ("hf_alice", "no name", "'no name' cannot be the name of a model"),
        ("", "alice/early", "The Hub does not know who you are"),
    ],
)
def test_what_cannot_succeed_is_said_before_any_work(
    online, monkeypatch, image_folder, tiny_flags, tmp_path, capsys, token, name, sentence
):
    monkeypatch.setenv("HF_TOKEN", token)
    flags = [*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(tmp_path / "run")]
    assert main(["train", *flags, "--push_to_hub", "--hub_model_id", name]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("vitrail: ")
    assert sentence in captured.err
    assert list((tmp_path / "run").iterdir()) == []
