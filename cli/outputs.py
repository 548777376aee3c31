"""Where the pictures made of images go."""

from __future__ import annotations

import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from vitrail.modeling import InputError


def output_paths(paths: list[Path], output: Path, companions: list[str]) -> dict[Path, Path]:
    """The picture to be written for every image; the folders of pictures are made.

    Args:
        paths: image files, and folders of them, which are searched to the bottom.
        output: for one image a `.png` file; else a folder, in which the pictures lie as the images lie in the folder
            common to all.
        companions: what else is written for every image, by what stands in place of a picture's `.png`.

    Raises:
        InputError: there is no image in a folder, several images but one picture, an image would be overwritten, or
            the folder cannot be made.
    """
    images = [image for path in paths for image in _images_in(path, output)]
    if output.suffix.lower() == ".png":
        if len(images) > 1:
            raise InputError(f"--output {output} is one picture for {len(images)} images; give a folder.")
        if output.is_dir():
            raise InputError(f"--output {output} is a folder; one that ends in .png would be a picture.")
        pictures = {images[0]: output}
    elif output.suffix.lower() in IMG_EXTENSIONS:
        raise InputError(f"--output {output} must end in .png, or be a folder.")
    else:
        root = os.path.commonpath([(path if path.is_dir() else path.parent).resolve() for path in paths])
        places = {image: output / _real(image).relative_to(root) for image in images}
        pictures = {image: place.with_suffix(".png") for image, place in places.items()}
        if not _all_differ(pictures, companions):  # cat.jpg and cat.gif become cat.jpg.png and cat.gif.png
            pictures = {image: place.with_name(f"{place.name}.png") for image, place in places.items()}
    if not _all_differ(pictures, companions):
        raise InputError("Two images would be written to one picture; explain them one by one, each with its --output.")
    read = {image.resolve() for image in images}
    for written in (path for picture in pictures.values() for path in _written(picture, companions)):
        if written.resolve() in read:
            raise InputError(f"--output {output} would overwrite the image {written}; give another name.")
    try:
        for folder in {picture.parent for picture in pictures.values()}:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write to --output {output}: {error.strerror}.") from error
    return pictures


def companion(picture: Path, ending: str) -> Path:
    """The file beside a picture with another ending: `cat.png` and `_heads.png` make `cat_heads.png`."""
    return picture.with_name(picture.stem + ending)


def _written(picture: Path, companions: list[str]) -> list[Path]:
    return [picture, *(companion(picture, ending) for ending in companions)]


def _all_differ(pictures: dict[Path, Path], companions: list[str]) -> bool:
    written = [str(path).lower() for picture in pictures.values() for path in _written(picture, companions)]
    return len(set(written)) == len(written)


def _real(image: Path) -> Path:
    """An absolute path in a real folder; the image itself may be a link."""
    return image.parent.resolve() / image.name


def _images_in(path: Path, output: Path) -> list[Path]:
    """The images of a folder, by their suffixes, without those of an output inside it; a file is taken as it is."""
    if not path.is_dir():
        return [path]
    folder, left_out = path.resolve(), output.resolve()
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in (*IMG_EXTENSIONS, ".gif")]
    if folder in left_out.parents:
        files = [file for file in files if left_out not in _real(file).parents]
    images = [file for file in files if file.is_file()]
    if not images:
        raise InputError(f"There are no images in {path}.")
    return images
