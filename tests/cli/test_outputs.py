"""Every image gets a picture of its own, and none is lost for it."""

from pathlib import Path

import pytest

from vitrail.cli.outputs import output_paths
from vitrail.modeling import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of empty files, which is all that names need."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos/cat.jpg", "photos/more/cat.PNG", "photos/more/dog.gif", "photos/dog.jpg", "photos/notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def named(pictures):
    return {str(image): str(picture) for image, picture in pictures.items()}


def test_folders_keep_their_shape(folder):
    assert named(output_paths([Path("photos")], Path("out"), [])) == {
        "photos/cat.jpg": "out/cat.png",
        "photos/dog.jpg": "out/dog.png",
        "photos/more/cat.PNG": "out/more/cat.png",
        "photos/more/dog.gif": "out/more/dog.png",
    }
    assert Path("out/more").is_dir()


def test_images_of_several_folders_do_not_meet(folder):
    images = [Path("photos/cat.jpg"), folder / "photos/more/cat.PNG"]
    assert list(named(output_paths(images, Path("out"), [])).values()) == ["out/cat.png", "out/more/cat.png"]


def test_the_same_stem_keeps_its_suffix(folder):
    Path("photos/cat.gif").touch()
    images = [Path("photos/cat.jpg"), Path("photos/cat.gif")]
    assert list(named(output_paths(images, Path("out"), [])).values()) == ["out/cat.jpg.png", "out/cat.gif.png"]


def test_one_image_may_have_a_picture_of_any_name(folder):
    assert named(output_paths([Path("photos/cat.jpg")], Path("a/heat.png"), [])) == {"photos/cat.jpg": "a/heat.png"}
    assert Path("a").is_dir()


def test_pictures_of_an_earlier_run_are_no_images(folder):
    output_paths([Path(".")], Path("out"), [])
    Path("out/cat.png").touch()
    assert "out/cat.png" not in named(output_paths([Path(".")], Path("out"), []))


@pytest.mark.parametrize(
    ("paths", "output", "message"),
    [
        (["photos"], "heat.png", r"heat.png is one picture for 4 images; give a folder"),
        (["photos/more/cat.PNG", "photos/dog.jpg"], "x.png", "one picture for 2 images"),
        (["photos/../empty"], "out", "There are no images in photos/../empty"),
        (["own/cat.png"], "own", "would overwrite the image .*cat.png; give another name"),
        (["own/cat.png"], "own/../own", "would overwrite the image"),
        (["own/cat.png"], "link", "would overwrite the image"),
        (["own/cat.png", "photos/dog.jpg"], "photos/..", "would overwrite the image"),
        (["photos/cat.jpg"], "heat.jpg", "heat.jpg must end in .png, or be a folder"),
        (["photos/cat.jpg"], "folder.png", "folder.png is a folder"),
        (["own/cat.png"], "own/cat.png", "would overwrite the image .*cat.png; give another name"),
        (["photos/cat.jpg"], "photos/notes.txt", "Cannot write to --output photos/notes.txt: File exists"),
    ],
)
def test_what_cannot_be_is_said_first(folder, paths, output, message):
    Path("empty").mkdir()
    Path("own").mkdir()
    Path("own/cat.png").touch()
    Path("link").symlink_to("own")
    Path("folder.png").mkdir()
    with pytest.raises(InputError, match=message):
        output_paths([Path(path) for path in paths], Path(output), [])


def test_companions_are_pictures_too(folder):
    for name in ("photos/cat_layers.jpg", "photos/cat_layers.png"):
        Path(name).touch()
    images = [Path("photos/cat.jpg"), Path("photos/cat_layers.jpg")]
    assert list(named(output_paths(images, Path("out"), ["_layers.png"])).values()) == [
        "out/cat.jpg.png",
        "out/cat_layers.jpg.png",
    ]
    with pytest.raises(InputError, match=r"would overwrite the image photos/cat_layers\.png"):
        output_paths([Path("photos/cat_layers.png")], Path("photos/cat.png"), ["_layers.png"])


def test_no_picture_has_two_images(folder):
    for name in ("photos/cat.gif", "photos/cat.jpg.png"):
        Path(name).touch()
    pictures = output_paths([Path("photos")], Path("out"), [])
    assert len(set(pictures.values())) == len(pictures) == 6


def test_pictures_may_lie_beside_their_images(folder):
    Path("photos/more/cat.PNG").unlink()
    pictures = named(output_paths([Path("photos")], Path("photos"), []))
    assert pictures["photos/cat.jpg"] == "photos/cat.png"


def test_paths_that_climb_stay_in_the_output(folder, monkeypatch):
    monkeypatch.chdir(folder / "photos" / "more")
    pictures = output_paths([Path("../cat.jpg"), Path("dog.gif")], Path("../../out"), [])
    assert {str(picture.resolve().relative_to(folder)) for picture in pictures.values()} == {
        "out/cat.png",
        "out/more/dog.png",
    }
