"""Runs that are killed, interrupted or out of luck: nothing is lost, and what comes out is what would have come out."""

import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitrail.cli.main import main
from vitrail.modeling import InputError
from vitrail.training import preparation, train
from vitrail.training.arguments import ViTTrainingArguments, parse_arguments
from vitrail.training.augmentation import EvaluationTransform
from vitrail.training.data import load_splits
from vitrail.training.interruption import SignalsAfterStep, one_sentence
from vitrail.training.resuming import last_checkpoint, plan_run
from vitrail.training.trainer import ViTTrainer


SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# Everything in a model that is random in training.
RANDOM = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "drop_path_rate": 0.2}
RANDOM |= {"patch_dropout_prob": 0.25}


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    """They take longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        for name, made in (("samples", None), ("confusions", "confusion_matrix.png"), ("mistakes", None)):
            patch.setattr(f"vitrail.training.run.save_{name}", lambda *_, made=made: made)
        yield


@pytest.fixture(scope="session")
def flags(image_folder) -> list[str]:
    """Flags of a run of 3 epochs of 5 steps, saved every second one, with all that is random, averaged or counted."""
    shape = ["--model", "Ti/16", "--image_size", "16", "--patch_size", "8"]
    shape += ["--config_overrides", json.dumps(SHAPE | RANDOM)]
    learned = ["--mixup", "0.5", "--cutmix", "1", "--ema_decay", "0.8", "--muon_learning_rate", "0.02"]
    every = ["--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2"]
    return [
        *shape,
        *every,
        *learned,
        *("--dataset", str(image_folder), "--validation_fraction", "0.25", "--logging_steps", "3"),
        *("--num_train_epochs", "3", "--per_device_train_batch_size", "8", "--learning_rate", "1e-2"),
        *("--metric_for_best_model", "accuracy", "--save_total_limit", "99"),
        *("--disable_tqdm", "true", "--bf16", "false"),
    ]


@pytest.fixture(scope="module")
def finished(flags, no_pictures, tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupted, with all its checkpoints."""
    return run(flags, tmp_path_factory.mktemp("runs") / "whole")


def run(flags, folder) -> Path:
    return train([*flags, "--output_dir", str(folder)]).output_dir


def killed_after(step, folder, copy) -> Path:
    """What a run leaves that was killed some steps after a checkpoint: a copy without what came later."""
    shutil.copytree(folder, copy)
    for checkpoint in copy.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > step:
            shutil.rmtree(checkpoint)
    for file in copy.iterdir():
        if file.is_file() and file.name != "run.json":
            file.unlink()
    return copy


def outcome(folder) -> dict:
    """All that a run measured, but for times and places."""

    def without_times(figures):
        return {name: value for name, value in figures.items() if not name.endswith(("runtime", "per_second"))}

    state = json.loads((folder / "trainer_state.json").read_text())
    return {
        "results": without_times(json.loads((folder / "all_results.json").read_text())),
        "history": [without_times(entry) for entry in state["log_history"]],
        "best": (state["best_metric"], Path(str(state["best_model_checkpoint"])).name),
        "checkpoints": sorted(path.name for path in folder.glob("checkpoint-*")),
    }


def assert_the_same(folder, other):
    assert outcome(folder) == outcome(other)
    for file in ("model.safetensors", *(f"{name}/model.safetensors" for name in outcome(folder)["checkpoints"])):
        one, another = load_file(folder / file), load_file(other / file)
        assert one.keys() == another.keys()
        assert all(torch.equal(one[name], another[name]) for name in one)


@contextmanager
def after_step(step, act):
    """Does something as soon as a step's loss is known."""
    step_of_trainer = ViTTrainer.training_step

    def training_step(self, *args, **kwargs):
        loss = step_of_trainer(self, *args, **kwargs)
        if self.state.global_step + 1 == step:
            act()
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViTTrainer, "training_step", training_step)
        yield


# ---- The same end ----


@pytest.mark.parametrize("step", [4, 10, 15])  # in an epoch, at the end of one, at the end of all
def test_a_killed_run_ends_as_if_it_had_not_been_killed(finished, flags, step, tmp_path, capsys):
    killed = killed_after(step, finished, tmp_path / "killed")
    run(flags, killed)
    assert f"Resuming from {killed}/checkpoint-{step}, step {step} of 15." in capsys.readouterr().out
    assert_the_same(finished, killed)


MASKED = ["--objective", "masked-patch", "--metric_for_best_model", "loss", "--max_steps", "8"]
MASKED += ["--mixup", "0", "--cutmix", "0", "--config_overrides", json.dumps(SHAPE)]


@pytest.mark.parametrize(
    ("more", "step"),
    [
        (["--gradient_accumulation_steps", "2", "--save_steps", "1", "--eval_steps", "1"], 2),
        (["--dataloader_num_workers", "1", "--max_steps", "9"], 6),
        (["--max_steps", "9"], 9),  # all steps are done, in the middle of an epoch
        (["--eval_strategy", "epoch", "--save_steps", "5", "--load_best_model_at_end", "false"], 5),
        (MASKED, 4),
    ],
    ids=["accumulation", "workers", "all but the end", "evaluation of its own", "masked patches"],
)
def test_so_does_a_run_of_another_kind(flags, more, step, tmp_path):
    whole = run([*flags, *more], tmp_path / "whole")
    assert_the_same(whole, run([*flags, *more], killed_after(step, whole, tmp_path / "killed")))


@pytest.mark.parametrize("known", [True, False], ids=["epochs", "of unknown length"])
def test_a_stream_is_read_on_from_where_it_was(flags, known, image_folder, tmp_path, monkeypatch):
    rows = load_splits(str(image_folder))["train"].select_columns(["image", "label"]).shuffle(0)
    for index in range(2):
        rows.shard(2, index).to_parquet(tmp_path / "data" / f"train-{index}.parquet")
    if not known:
        load = preparation.load_streams
        unknown = {"lengths": {"train": None}}
        monkeypatch.setattr(preparation, "load_streams", lambda *args, **kw: replace(load(*args, **kw), **unknown))
    flags = [*flags, "--dataset", str(tmp_path / "data"), "--streaming", "--shuffle_buffer", "10"]
    flags += ["--max_eval_samples", "12", "--dataloader_num_workers", "0", *([] if known else ["--max_steps", "12"])]
    whole = run(flags, tmp_path / "whole")
    for step in (4, 10):
        assert_the_same(whole, run(flags, killed_after(step, whole, tmp_path / f"killed-{step}")))


def test_early_stopping_goes_on_counting(flags, tmp_path):
    flags = [*flags, "--learning_rate", "0", "--muon_learning_rate", "1e-9", "--early_stopping_patience", "2"]
    whole = run(flags, tmp_path / "whole")
    assert outcome(whole)["checkpoints"][-1] == "checkpoint-6"  # the first evaluation is the best, two are no better
    for step in (4, 6):
        assert_the_same(whole, run(flags, killed_after(step, whole, tmp_path / f"killed-{step}")))


def test_a_low_rank_adaptation_goes_on_too(finished, flags, tmp_path):
    at = flags.index("--muon_learning_rate")
    flags = [*flags[:at], *flags[at + 2 :], "--method", "lora", "--model", str(finished)]
    whole = run(flags, tmp_path / "whole")
    assert_the_same(whole, run(flags, killed_after(4, whole, tmp_path / "killed")))


def test_training_does_not_depend_on_how_often_it_is_evaluated(finished, flags, tmp_path):
    rarely = run([*flags, "--eval_steps", "4", "--save_steps", "4"], tmp_path)
    one, other = (load_file(folder / "checkpoint-12" / "model.safetensors") for folder in (finished, rarely))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ---- Killed for real ----

LIFE = """
import os, signal, sys
from vitrail.training import train

sys.stdout = sys.stderr = open(os.devnull, "w")
changes = 0

def count(event, arguments):
    global changes
    if event == "open":
        change = isinstance(arguments[0], str) and arguments[0].startswith(folder) and arguments[2] & os.O_WRONLY
    elif event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove"):  # inside a tree, of a name and a descriptor
        change = os.fspath(arguments[0]).startswith(folder) or arguments[-1] != -1
    else:
        return
    changes += bool(change)
    if changes == last:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
train([*flags, "--output_dir", folder])
"""


@pytest.mark.slow
def test_killed_at_any_change_on_the_disk(finished, flags, tmp_path):
    """SIGKILL, time and again, just before the folder changes, until the same command gets through."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitrail.training", "matplotlib.pyplot"])
    folder, codes, at = tmp_path / "killed", [], 20
    while 0 not in codes:
        names = {"flags": flags, "folder": str(folder), "last": at}
        process = context.Process(target=exec, args=(LIFE, names))
        process.start()
        process.join()
        codes.append(process.exitcode)
        at += 13
    assert set(codes) == {-signal.SIGKILL, 0}
    assert len(codes) > 3
    assert_the_same(finished, folder)


# ---- What the folder holds ----


def where(folder, flags, *more) -> str | None:
    """The checkpoint from which the same command, and more, would go on."""
    arguments = parse_arguments([*flags, "--output_dir", str(folder), *more])
    return plan_run(*arguments).begin(arguments[-1])


DAMAGES = {
    "cut short": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "missing": Path.unlink,
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_an_incomplete_checkpoint_is_passed_over(finished, flags, damage, tmp_path, capsys):
    names = [path.name for path in (finished / "checkpoint-4").iterdir()]
    assert {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"} < set(names)
    for name in names:
        copy = killed_after(4, finished, tmp_path / name)
        damage(copy / "checkpoint-4" / name)
        assert where(copy, flags) == str(copy / "checkpoint-2")
        assert f"{copy / 'checkpoint-4'} is incomplete and is passed over." in capsys.readouterr().out
        assert not (copy / "checkpoint-4").exists()


def test_the_best_checkpoint_stays_and_is_what_is_saved(flags, tmp_path):
    """Evaluated twice as often as saved, and with room for one checkpoint."""
    folder = run([*flags, "--eval_steps", "1", "--save_steps", "4", "--save_total_limit", "1"], tmp_path)
    state = json.loads((folder / "trainer_state.json").read_text())
    evaluations = {entry["step"]: entry for entry in state["log_history"][:-1] if "eval_loss" in entry}
    best = max(evaluations, key=lambda step: evaluations[step]["eval_accuracy"])  # the first of them
    assert best % 4
    assert state["best_model_checkpoint"] == str(folder / f"checkpoint-{best}")
    kept, saved = (
        load_file(folder / f"checkpoint-{best}" / "model.safetensors"),
        load_file(folder / "model.safetensors"),
    )
    assert all(torch.equal(kept[name], saved[name]) for name in saved)
    assert outcome(folder)["results"]["eval_loss"] == evaluations[best]["eval_loss"]


def test_the_best_checkpoint_is_found_wherever_the_folder_lies_now(finished, flags, tmp_path, monkeypatch):
    killed = killed_after(14, finished, tmp_path / "killed")
    shutil.rmtree(killed / "checkpoint-12")
    monkeypatch.chdir(tmp_path)
    run([*flags, "--save_total_limit", "1"], "killed")
    assert outcome(killed)["best"] == outcome(finished)["best"]


def test_a_best_checkpoint_that_is_gone_is_said(finished, flags, tmp_path, capsys):
    killed = killed_after(14, finished, tmp_path / "killed")
    state = json.loads((killed / "checkpoint-14" / "trainer_state.json").read_text())
    best = killed / Path(state["best_model_checkpoint"]).name
    assert best.name != "checkpoint-14"
    shutil.rmtree(best)
    run(flags, killed)
    assert f"The best checkpoint so far, {best}, is gone" in capsys.readouterr().out


def test_another_number_of_images_is_said(finished, flags, image_folder, tmp_path, capsys):
    killed = killed_after(14, finished, tmp_path / "killed")
    sealed = killed / "checkpoint-14" / "complete.json"
    sealed.write_text(sealed.read_text().replace('"images": 36', '"images": 40'))
    run(flags, killed)
    assert "checkpoint-14 was trained on 40 images, and goes on with 36." in capsys.readouterr().out


def test_other_settings_are_named(finished, flags, tmp_path):
    killed = killed_after(4, finished, tmp_path / "killed")
    message = (
        r"holds an unfinished run with other settings \(--flip was 0.5 and is 0.25, --learning_rate was 0.01 and is 0.1"
    )
    with pytest.raises(InputError, match=message):
        where(killed, flags, "--learning_rate", "0.1", "--flip", "0.25")
    assert where(killed, flags, "--dataloader_num_workers", "2", "--report_to", "none") == str(killed / "checkpoint-4")
    asked = where(killed, flags, "--learning_rate", "0.1", "--resume_from_checkpoint", "last")
    assert asked == str(killed / "checkpoint-4")
    assert where(killed, flags, "--learning_rate", "0.2", "--restart") is None
    assert not list(killed.glob("checkpoint-*"))


def test_other_processes_are_other_settings_and_the_way_on_names_them(finished, flags, tmp_path, monkeypatch):
    killed = killed_after(4, finished, tmp_path / "killed")
    monkeypatch.setattr(ViTTrainingArguments, "world_size", 2)
    with pytest.raises(InputError, match=r"with other settings \(the number of processes was 1 and is 2\)"):
        where(killed, flags)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    way_on = "go on with: torchrun --nproc_per_node 2 -m vitrail.training --output_dir x"
    with pytest.raises(InputError, match=way_on), one_sentence(["--output_dir", "x"], killed):
        raise InputError("It rains.")


def test_a_run_that_has_ended_makes_room_for_a_new_one(finished, flags, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert where(copy, flags, "--resume_from_checkpoint", str(copy / "checkpoint-6")) == str(copy / "checkpoint-6")
    assert last_checkpoint(copy) == copy / "checkpoint-6"  # what came later is another future
    shutil.rmtree(copy)
    shutil.copytree(finished, copy)
    assert where(copy, flags, "--learning_rate", "0.1") is None
    assert not list(copy.glob("checkpoint-*"))
    assert not (copy / "all_results.json").exists()
    assert (copy / "model.safetensors").exists()  # until there is a new one


def test_checkpoints_of_another_model_or_of_nobody_are_not_used(finished, flags, tmp_path):
    other = [*flags, "--output_dir", str(tmp_path / "other"), "--patch_size", "4"]
    with pytest.raises(InputError, match=r"checkpoint-4 is a checkpoint of another model: its vit.embeddings.* is \("):
        train([*other, "--resume_from_checkpoint", str(finished / "checkpoint-4")])
    other = [*flags, "--output_dir", str(tmp_path / "sgd"), "--optim", "sgd"]
    with pytest.raises(InputError, match="was written by another optimiser"):
        train([*other, "--resume_from_checkpoint", str(finished / "checkpoint-4")])
    killed = killed_after(4, finished, tmp_path / "killed")
    (killed / "run.json").unlink()
    with pytest.raises(InputError, match="holds checkpoints of another run: --restart discards"):
        where(killed, flags)


# ---- Interrupted ----


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_and_the_same_command_goes_on(finished, flags, number, code, tmp_path, capsys):
    folder = tmp_path / "run"
    command = ["train", *flags, "--output_dir", str(folder)]
    before = signal.getsignal(number)
    with after_step(7, lambda: signal.raise_signal(number)):
        assert main(command) == code
    assert signal.getsignal(number) == before
    assert f"step 7 of 15 is safe in {folder}/checkpoint-7; go on with: vitrail train" in capsys.readouterr().err
    assert main(command) == 0
    shutil.rmtree(folder / "checkpoint-7")
    assert_the_same(finished, folder)


def test_a_second_signal_stops_at_once(flags, tmp_path, capsys):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with after_step(3, twice):
        assert main(["train", *flags, "--output_dir", str(tmp_path)]) == 130
    assert f"interrupted; step 2 of 15 is safe in {tmp_path}/checkpoint-2" in capsys.readouterr().err


def test_signals_reach_who_had_them_before():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("before"))
    with SignalsAfterStep() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert (signals.received, received) == (signal.SIGTERM, [])
        signal.raise_signal(signal.SIGTERM)
        assert received == ["before"]
    signal.signal(signal.SIGTERM, before)


# ---- Out of luck ----


@pytest.mark.parametrize("more", [[], ["--eval_strategy", "no"]], ids=["at evaluation", "at saving"])
def test_weights_that_are_no_numbers_replace_no_good_ones(flags, more, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        step_of_trainer = ViTTrainer.training_step

        def training_step(self, *args, **kwargs):
            loss = step_of_trainer(self, *args, **kwargs)
            if self.state.global_step == 3:
                self.model.classifier.bias.data[0] = math.nan
            return loss

        patch.setattr(ViTTrainer, "training_step", training_step)
        with pytest.raises(
            InputError, match=r"no numbers? after step 4, at a learning rate of .*; step 2 of 15 is safe"
        ):
            train([*flags, *more, "--output_dir", str(tmp_path)])
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert all(weight.isfinite().all() for weight in load_file(tmp_path / "checkpoint-2/model.safetensors").values())


def test_a_loss_that_is_no_number_ends_the_training(flags, tmp_path):
    message = r"The loss became \S+ at step \d+, at a .*; lower --learning_rate; .* --restart --learning_rate 1e\+29"
    with pytest.raises(InputError, match=message):
        train([*flags, "--output_dir", str(tmp_path), "--learning_rate", "1e30", "--warmup_steps", "0"])


@contextmanager
def no_file_larger_than(size):
    """What a full disk is to a program: writing fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [5_000, 40_000], ids=["weights", "optimiser"])
def test_a_full_disk_costs_nothing_but_time(finished, flags, size, tmp_path):
    sizes = {file.name: file.stat().st_size for file in (finished / "checkpoint-4").iterdir()}
    assert sizes["model.safetensors"] < 40_000 < sizes["optimizer.pt"]
    killed = killed_after(4, finished, tmp_path / "run")
    with no_file_larger_than(size), pytest.raises(InputError, match=r"Cannot write to .*; step 4 of 15 is safe in"):
        run(flags, killed)
    assert_the_same(finished, run(flags, killed))


def test_a_folder_deleted_during_the_training_is_said(flags, tmp_path):
    folder = tmp_path / "run"
    message = "was deleted during the training; step 4 of 15 is safe in .* --resume_from_checkpoint last$"
    with after_step(3, lambda: shutil.rmtree(folder)), pytest.raises(InputError, match=message):
        run(flags, folder)
    run([*flags, "--resume_from_checkpoint", "last"], folder)


def test_memory_that_runs_out_is_said(flags, tmp_path):
    def run_out():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    message = r"Out of memory: use a smaller --per_device_train_batch_size .* --auto_find_batch_size$"
    with after_step(3, run_out), pytest.raises(InputError, match=message):
        run(flags, tmp_path)


def test_a_worker_that_is_killed_is_said(flags, tmp_path, monkeypatch):
    framed = EvaluationTransform._framed

    def killed(self, *args, **kwargs):
        if torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return framed(self, *args, **kwargs)

    monkeypatch.setattr(EvaluationTransform, "_framed", killed)
    message = r"A data-loading worker was killed.*; go on with: vitrail train .* --dataloader_num_workers 0$"
    with pytest.raises(InputError, match=message):
        run([*flags, "--dataloader_num_workers", "1"], tmp_path)
