"""The `vitrail` command as a person meets it: in a process of its own."""

import csv
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from vitrail.cli.main import main
from vitrail.modeling import ViTImageProcessor


def vitrail(*arguments, **options):
    """Runs the command in a fresh process."""
    command = [sys.executable, "-m", "vitrail.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.fixture
def model(tiny_model, tmp_path) -> Path:
    folder = tmp_path / "model"
    tiny_model.config.id2label = {0: "ant", 1: "bee", 2: "cat", 3: "dog", 4: "elk"}
    tiny_model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture
def images(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in ("red", "green", "blue")]
    for path in paths:
        Image.new("RGB", (30, 20), path.stem).save(path)
    return paths


def test_help_imports_nothing_heavy():
    program = """
import sys
from vitrail.cli.main import main
try:
    main(["--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {"torch", "transformers", "datasets", "gradio", "numpy", "PIL"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in ("train", "evaluate", "predict", "explain", "convert", "export", "push", "demo", "space"):
        assert verb in done.stdout


def test_train_help_lists_our_flags_and_the_trainers():
    done = vitrail("train", "--help")
    assert done.returncode == 0
    assert "--dataset" in done.stdout
    assert "--gradient_accumulation_steps" in done.stdout


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_predict_writes_a_table_of_what_it_says(model, images, tmp_path, suffix):
    table = tmp_path / "tables" / f"predictions{suffix}"
    done = vitrail("predict", "--model", model, *images, "--output", table)
    assert done.returncode == 0, done.stderr
    if suffix == ".csv":
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pyarrow.parquet.read_table(table).to_pylist()
    said = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row["image"] for row in rows] == [path for path, _, _ in said] == [str(path) for path in images]
    assert [row["label"] for row in rows] == [label for _, label, _ in said]
    assert [f"{float(row['probability']):.1%}" for row in rows] == [probability for _, _, probability in said]


def test_predict_names_a_broken_image_and_goes_on(model, images):
    images[1].write_bytes(images[1].read_bytes()[:40])
    done = vitrail("predict", "--model", model, *images)
    assert done.returncode == 2
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == [str(images[0]), str(images[2])]
    assert done.stderr.count("green.png") == 1
    assert "Traceback" not in done.stderr


def one_sentence(code: int, stderr: str) -> str:
    """What the command said on stderr, beside the progress of libraries; checks that it is all, and the exit code."""
    assert code == 2, stderr
    assert "Traceback" not in stderr
    said = [line for line in stderr.splitlines() if line.startswith("vitrail: ")]
    assert len(said) == 1, stderr
    assert said[0].endswith(".")
    return said[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --dataset no/such-data --model Ti/16", "no/such-data"),
        ("train --dataset digits --model B/17", "There is no variant 'B/17'; the variants are Ti/16"),
        (
            "train --dataset digits --model Ti/16 --patch_size 9",
            "image_size (224) must be a multiple of patch_size (9)",
        ),
        ("train --dataset digits --label_column kind", "no column 'kind'; its columns are image, label"),
        ("train --dataset digits --learning_rate fast", "invalid float value: 'fast'"),
        ("train --dataset digits --sideways", "There is no flag --sideways"),
        ("train --dataset empty --model Ti/16", "The folder empty is empty"),
        ("evaluate --model nothing --dataset digits", "nothing is neither a folder"),
        ("predict --model nothing x.png", "nothing is neither a folder"),
        ("export nothing new", "nothing is neither a folder"),
        ("demo --model nothing", "nothing is neither a folder"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    code = main(arguments.split())
    assert message in one_sentence(code, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("package", "extra", "importers", "arguments"),
    [
        ("gradio", "demo", ["vitrail.demo", "vitrail.demo.app"], ["demo", "--model"]),
        ("onnx", "onnx", ["vitrail.publishing.onnx_export"], ["export", "--to", "onnx", "new"]),
        ("onnxruntime", "onnx", ["vitrail.publishing.onnx_export"], ["export", "--to", "onnx", "new"]),
        ("onnxscript", "onnx", ["vitrail.publishing.onnx_export"], ["export", "--to", "onnx", "new"]),
    ],
)
def test_missing_extra_is_named(package, extra, importers, arguments, model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    for importer in importers:
        monkeypatch.delitem(sys.modules, importer, raising=False)
    code = main([*arguments, str(model)])
    said = one_sentence(code, capsys.readouterr().err)
    assert f"{package} is not installed: pip install 'vitrail[{extra}]'" in said


def test_export_says_how_near_it_is_and_refuses(model, tmp_path, capsys):
    flags = ["export", str(model), str(tmp_path / "exported")]
    assert main([*flags, "--to", "onnx", "--int8"]) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"exported holds the model for ONNX Runtime\. On 4 made-up images its logits differ .* by at most \S+", said
    )
    assert "exists already" in one_sentence(main(flags), capsys.readouterr().err)
    with pytest.raises(SystemExit, match="2"):
        main([*flags, "--to", "tflite"])
    assert "invalid choice: 'tflite' (choose from" in one_sentence(2, capsys.readouterr().err)


def test_truncated_training_image_is_one_sentence(tmp_path):
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(6):
            Image.effect_noise((40, 30), 50 + index).save(tmp_path / "pets" / name / f"{index}.jpg")
    broken = tmp_path / "pets" / "dogs" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    flags = ["--dataset", "pets", "--model", "Ti/16", "--image_size", "32", "--validation_fraction", "0.2"]
    done = vitrail("train", *flags, "--dataloader_num_workers", "1", cwd=tmp_path)
    assert "dogs/3.jpg" in one_sentence(done.returncode, done.stderr)


def test_output_of_another_kind_is_refused_before_any_work(model, images, tmp_path):
    done = vitrail("predict", "--model", model, *images, "--output", tmp_path / "predictions.xlsx")
    assert "must end in .csv or .parquet" in one_sentence(done.returncode, done.stderr)
    assert not done.stdout


def test_a_table_that_cannot_be_written_is_named_before_any_work(model, images, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = vitrail("predict", "--model", model, *images, "--output", tmp_path / "file" / "predictions.csv")
    assert "Cannot write to --output" in one_sentence(done.returncode, done.stderr)
    assert not done.stdout


def test_a_port_that_cannot_be_is_one_sentence(capsys):
    for port in ("99999", "0", "http"):
        with pytest.raises(SystemExit) as end:
            main(["demo", "--model", "x", "--port", port])
        assert f"{port} is no port; ports are 1 to 65535" in one_sentence(end.value.code, capsys.readouterr().err)


def test_a_port_that_is_taken_is_one_sentence(model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code = main(["demo", "--model", str(model), "--port", str(taken.getsockname()[1])])
    assert "The app cannot start: Cannot find empty port" in one_sentence(code, capsys.readouterr().err)


def test_the_installed_command_runs():
    program = shutil.which("vitrail", path=str(Path(sys.executable).parent))
    assert program is not None
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("vitrail ")


def test_convert_writes_says_and_refuses(model, tmp_path, capsys):
    assert main(["convert", str(model), str(tmp_path / "timm"), "--to", "timm"]) == 0
    said = capsys.readouterr().out
    assert "timm resizes position embeddings by bicubic_antialias, this model by bilinear." in said
    assert "holds the same model in the format of timm: read back and compared." in said
    assert main(["convert", str(tmp_path / "timm"), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "model.safetensors").read_bytes()[-1000:] == (
        (model / "model.safetensors").read_bytes()[-1000:]
    )
    assert main(["convert", str(model), str(tmp_path / "model.npz"), "--to", "npz"]) == 2
    assert "npz cannot express" in capsys.readouterr().err
    assert not (tmp_path / "model.npz").exists()


def size_of(picture):
    with Image.open(picture) as opened:
        return opened.size


def test_explain_writes_what_was_asked_for(model, images, tmp_path):
    done = vitrail(
        "explain", "--model", model, *images, "--output", tmp_path / "out", "--all-layers", "--heads", 1, "--json"
    )
    assert done.returncode == 0, done.stderr
    for path, line in zip(images, done.stdout.splitlines(), strict=True):
        picture = tmp_path / "out" / path.name
        image, label, probability, written = line.split("\t")
        assert (image, written) == (str(path), str(picture))
        assert size_of(picture) == (30, 20)
        for kind in ("layers", "heads"):
            assert size_of(picture.with_stem(f"{path.stem}_{kind}"))[0] > 400
        facts = json.loads(picture.with_suffix(".json").read_text())
        assert (facts["method"], facts["label"]) == ("rollout", label)
        assert f"{facts['probability']:.1%}" == probability
        assert (len(facts["grid"]), len(facts["grid"][0])) == (3, 2)
        assert 0 < sum(map(sum, facts["grid"])) < 1
        assert facts["region"] == [0, 0, 30, 20]


@pytest.mark.parametrize("method", ["attention", "relevance", "gradient_rollout"])
def test_explain_by_every_method(model, images, tmp_path, method, capsys):
    assert (
        main(["explain", "--model", str(model), str(images[0]), "--method", method, "--output", f"{tmp_path}/h.png"])
        == 0
    )
    assert size_of(tmp_path / "h.png") == (30, 20)


def test_explain_a_class(model, images, tmp_path, capsys):
    grids = {}
    for label in ("cat", "dog"):
        picture = tmp_path / f"{label}.png"
        main(["explain", "--model", str(model), str(images[0]), "--target", label, "--json", "--output", str(picture)])
        facts = json.loads(picture.with_suffix(".json").read_text())
        assert (facts["label"], facts["method"]) == (label, "relevance")
        grids[label] = facts["grid"]
    assert grids["cat"] != grids["dog"]
    assert capsys.readouterr().out.splitlines()[0].split("\t")[1] == "cat"


def test_explain_of_a_model_without_a_head(tiny_model, images, tmp_path, capsys):
    tiny_model.vit.save_pretrained(tmp_path / "base")
    ViTImageProcessor(size={"height": 24, "width": 16}).save_pretrained(tmp_path / "base")
    arguments = ["explain", "--model", str(tmp_path / "base"), str(images[0]), "--output", str(tmp_path / "heat.png")]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"{images[0]}\t{tmp_path}/heat.png\n"
    assert main([*arguments, "--method", "relevance"]) == 2
    said = "has no head, hence no classes to explain; train it, or take rollout."
    assert capsys.readouterr().err == f"vitrail: {tmp_path}/base {said}\n"


def test_explain_goes_on_after_an_unreadable_image(model, images, tmp_path, capsys):
    images[1].write_bytes(b"no image")
    (tmp_path / "photos").mkdir()
    for path in images:
        path.rename(tmp_path / "photos" / path.name)
    assert main(["explain", "--model", str(model), str(tmp_path / "photos"), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert [line.split("\t")[-1] for line in said.out.splitlines()] == [
        f"{tmp_path}/out/{name}.png" for name in ("blue", "red")
    ]
    assert "green.png" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target", "emu"], "--target emu is none of the model's labels, ant, bee, cat, dog, elk."),
        (
            ["--target", "cat", "--method", "rollout"],
            "--method rollout is the same for every class; --target is for relevance.",
        ),
        (["--heads", "3"], "--heads is 3; the model has layers 0 to 2."),
        (
            ["--target", "cat", "--head_fusion", "min"],
            "--head_fusion and --discard_ratio are of rollout, not of relevance.",
        ),
        (["--discard_ratio", "1"], "--discard_ratio is 1.0; it must be at least 0 and less than 1."),
    ],
)
def test_explain_says_what_is_wrong(model, images, tmp_path, capsys, flags, message):
    assert main(["explain", "--model", str(model), str(images[0]), "--output", str(tmp_path / "out"), *flags]) == 2
    assert capsys.readouterr().err == f"vitrail: {message}\n"
    assert not list(tmp_path.glob("out/*"))


def test_explain_goes_on_after_an_image_that_the_model_refuses(model, images, tmp_path, capsys):
    ViTImageProcessor(size={"shortest_edge": 16}).save_pretrained(model)
    Image.new("RGB", (16, 24)).save(images[1])
    assert main(["explain", "--model", str(model), *map(str, images), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["green.png"]
    assert f"vitrail: {images[0]}: The images are 16x24 pixels, but" in said.err


def test_explain_points_out_artefacts(model, images, tmp_path, capsys, monkeypatch):
    arguments = ["explain", "--model", str(model), *map(str, images), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("outshine") == 0
    monkeypatch.setattr("vitrail.cli.explain._ARTEFACT", 1.0)
    assert main(arguments) == 0
    assert capsys.readouterr().err.count("single patches outshine all others") == 1


def test_explain_a_class_by_its_number_where_names_are_equal(tiny_model, images, tmp_path, capsys):
    tiny_model.config.id2label = {0: "ant", 1: "crane", 2: "cat", 3: "crane", 4: "7"}
    tiny_model.save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 24, "width": 16}).save_pretrained(tmp_path / "model")
    arguments = ["explain", "--model", str(tmp_path / "model"), str(images[0]), "--output", f"{tmp_path}/out.png"]
    assert main([*arguments, "--target", "crane"]) == 2
    assert "--target crane names 2 classes; give the number of one: [1, 3]." in capsys.readouterr().err
    for target, label in {"3": "crane", "7": "7"}.items():
        assert main([*arguments, "--target", target]) == 0
        assert capsys.readouterr().out.split("\t")[1] == label
