"""Where the pictures made of images go."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from PIL import Image

from vitrail.modeling import InputError


def output_paths(paths: list[Path], output: Path) -> dict[Path, Path]:
    """The picture to be written for every image; the folder of it that is given is made.

    Args:
        paths: image files, and folders of them, which are searched to the bottom.
        output: for one image a `.png` file; else a folder, in which the pictures lie as the images lie in the folder
            common to all.

    Raises:
        InputError: there is no image in a folder, several images but one picture, an image would be overwritten, or
            the folder cannot be made.
    """
    images = [image for path in paths for image in _images_in(path, except_in=output)]
    if output.suffix == ".png":
        if len(images) > 1:
            raise InputError(f"--output {output} is one picture for {len(images)} images; give a folder.")
        pictures = {images[0]: output}
    else:
        root = os.path.commonpath([(path if path.is_dir() else path.parent).absolute() for path in paths])
        places = {image: output / image.absolute().relative_to(root) for image in images}
        stems = Counter(place.with_suffix("") for place in places.values())
        pictures = {  # cat.jpg and cat.gif become cat.jpg.png and cat.gif.png
            image: place.with_name(place.name + ".png")
            if stems[place.with_suffix("")] > 1
            else place.with_suffix(".png")
            for image, place in places.items()
        }
    for image in {image.absolute() for image in images} & {picture.absolute() for picture in pictures.values()}:
        raise InputError(f"--output {output} would overwrite the image {image}; give another name.")
    try:
        for folder in {picture.parent for picture in pictures.values()}:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write to --output {output}: {error.strerror}.") from error
    return pictures


def _images_in(path: Path, except_in: Path) -> list[Path]:
    """The images of a folder, by their suffixes; a file is taken as it is."""
    if not path.is_dir():
        return [path]
    suffixes = Image.registered_extensions()
    files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in suffixes and file.is_file()]
    images = [file for file in files if except_in.absolute() not in file.absolute().parents]
    if not images:
        raise InputError(f"There are no images in {path}.")
    return images
