"""What is built: a wheel that installs `vitrail/` and nothing else, and works away from the checkout."""

import io
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from vitrail.demo.wheel import packed_wheel
from vitrail.modeling import ViTForImageClassification, ViTImageProcessor


ROOT = Path(__file__).resolve().parent.parent
PARTS = ("cli", "demo", "inspection", "modeling", "publishing", "training")


def run(*command, **options):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the sources, because builders leave files beside them, and get in each other's way."""
    folder = tmp_path_factory.mktemp("checkout") / "vitrail"
    return shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "build", "runs", "*.egg-info"))


@pytest.fixture(scope="module")
def distributions(checkout, tmp_path_factory) -> Path:
    """The folder of a source distribution and of the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, checkout)
    return folder


def contents(wheel: Path | io.BytesIO) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_wheel_holds_vitrail_and_nothing_else(distributions):
    (wheel,) = distributions.glob("*.whl")
    names = contents(wheel).keys()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vitrail"}
    assert {name.split("/")[1] for name in names if name.startswith("vitrail/")} == set(PARTS)
    for part in PARTS:
        assert f"vitrail/{part}/py.typed" in names
        sources = {path.name for path in (ROOT / part).glob("*.py")}
        assert {name.split("/")[2] for name in names if name.startswith(f"vitrail/{part}/")} >= sources
    recipes = {path.name for path in (ROOT / "training" / "recipes").glob("*.yaml")}
    assert {name.split("/")[-1] for name in names if name.endswith(".yaml")} == recipes
    assert any(name.endswith("LICENSE") for name in names)


def test_wheel_from_the_checkout_is_the_wheel_from_the_sdist(checkout, distributions, tmp_path):
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, checkout)
    (from_sdist,), (from_checkout,) = distributions.glob("*.whl"), tmp_path.glob("*.whl")
    assert contents(from_sdist) == contents(from_checkout)


def test_the_wheel_of_a_space_is_this_wheel(distributions):
    """It is packed without a builder, from what is running and from the metadata of its installation."""
    (built,) = distributions.glob("*.whl")
    name, content = packed_wheel()
    assert name == built.name
    packed, expected = contents(io.BytesIO(content)), contents(built)
    optional = {f"vitrail-{version('vitrail')}.dist-info/top_level.txt"}
    assert packed.keys() | optional == expected.keys() | optional
    assert [path for path in packed if ".dist-info/" not in path and packed[path] != expected[path]] == []


def test_wheel_works_in_an_empty_environment(distributions, tiny_model, tmp_path):
    """With this environment's libraries, but without its editable vitrail, in a folder that is not the checkout."""
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    (wheel,) = distributions.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    assert sorted(path.name for path in site.iterdir() if not path.name.endswith(".dist-info")) == ["vitrail"]
    # A plain line in a .pth file adds a folder to the path, but not what that folder's own .pth files add.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"))

    model = tmp_path / "model"
    tiny_model.save_pretrained(model)
    ViTImageProcessor(size={"height": 24, "width": 16}).save_pretrained(model)
    assert ViTForImageClassification.from_pretrained(model).num_parameters() == tiny_model.num_parameters()
    program = f"""
from pathlib import Path
import vitrail.modeling, vitrail.inspection, vitrail.publishing, vitrail.training, vitrail.demo, vitrail.cli.main
for module in (vitrail.modeling, vitrail.inspection, vitrail.publishing, vitrail.training, vitrail.demo, vitrail.cli):
    assert Path(module.__file__).is_relative_to({str(site)!r}), module.__file__
print(vitrail.modeling.ViTForImageClassification.from_pretrained({str(model)!r}).num_parameters())
"""
    assert run(python, "-c", program, cwd=tmp_path).strip() == str(tiny_model.num_parameters())
    assert run(environment / "bin" / "vitrail", "--version", cwd=tmp_path).startswith("vitrail 0.1.0")
