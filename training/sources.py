"""Data sets as they come: digits, folders, files and the Hub, before anybody chooses columns."""

import glob
import logging
import re
import tarfile
import textwrap
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules.parquet.parquet import ParquetConfig
from datasets.utils import logging as datasets_logging
from huggingface_hub import DatasetCard
from huggingface_hub.utils import httpx
from PIL import Image as PILImage

from vitrail.modeling import InputError
from vitrail.training.folders import METADATA_NAMES, SPLIT_NAMES, files_below, image_suffixes, read_image_folder


logger = logging.getLogger(__name__)

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_ARCHIVES = (".zip", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
_FORMS = ", ".join(list(_BUILDERS)[:-1]) + f" or {list(_BUILDERS)[-1]}"
# A split's name as a word of its own, as in `train-00000-of-00002.parquet`.
_SPLIT = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(SPLIT_NAMES)})(?=$|[-._ 0-9])", re.IGNORECASE)
# What `datasets` and those below it raise on what is not there, damaged, or not what its name says.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    DatasetGenerationError,
    pa.ArrowException,
    tarfile.TarError,
    zipfile.BadZipFile,
    yaml.YAMLError,
    httpx.HTTPError,
)


def read_source(
    dataset: str, config: str | None = None, revision: str | None = None, streaming: bool = False
) -> DatasetDict | IterableDatasetDict:
    """All splits of a data set, with the columns that it has.

    Args:
        dataset: as `load_splits` takes it.
        config: the configuration of a Hub data set.
        revision: its branch, tag or commit.
        streaming: whether the rows of files and of the Hub are read while they are used. What lies on this disk in
            another form is read as ever.

    Raises:
        InputError: there is no such data set, or it cannot be read.
    """
    if not dataset:
        raise InputError("The data set has no name; say which with --dataset.")
    path = Path(dataset)
    if dataset == "digits":
        return _digits()
    if path.is_dir():
        return _read_folder(path, config, streaming)
    if files := _files(dataset):
        return _read_files(files, dataset, streaming)
    if dataset.count("/") > 1 or dataset.startswith((".", "/", "~")) or path.suffix.lower() in _BUILDERS:
        raise InputError(f"There is no file or folder {dataset}, and a data set's id on the Hub is like user/name.")
    with reading(dataset):
        return _as_splits(load_dataset(dataset, config, revision=revision, streaming=streaming))


def is_streamable(dataset: str) -> bool:
    """Whether there is a point in streaming it: what lies on this disk as images is read one by one anyway."""
    path = Path(dataset)
    if dataset == "digits" or not path.is_dir():
        return dataset != "digits"
    return not _is_saved(path) and any(map(_is_table, files_below(path)))


def _is_table(file: PurePath) -> bool:
    return file.suffix.lower() in _BUILDERS and file.name.lower() not in METADATA_NAMES


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def read_column(dataset: str, config: str | None, revision: str | None, column: str) -> IterableDatasetDict | None:
    """One column of all splits, where that is cheap: on this disk, or in parquet files, which keep columns apart.

    Raises:
        InputError: the data set cannot be read.
    """
    path = Path(dataset)
    if path.is_dir():
        return cast(Any, _read_folder(path, config, streaming=True, columns=[column]))
    if files := _files(dataset):
        return cast(Any, _read_files(files, dataset, streaming=True, columns=[column]))
    with reading(dataset):
        if isinstance(load_dataset_builder(dataset, config, revision=revision).config, ParquetConfig):
            return load_dataset(dataset, config, revision=revision, streaming=True, columns=[column])
    return None


@contextmanager
def reading(dataset: str) -> Iterator[None]:
    """Turns what reading a data set raises into one sentence, in place of what `datasets` prints."""
    verbosity = datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    try:
        yield
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = error.__cause__ if type(error) is DatasetGenerationError and error.__cause__ else error
        said = textwrap.shorten(str(reason) or type(reason).__name__, 400, placeholder=" ...").rstrip(".")
        if "Config name is missing" in said:
            said = f"{said.split(' Example of usage')[0]}, with --dataset_config"
        raise InputError(f"Cannot read the data set {dataset}: {said}.") from error
    finally:
        datasets_logging.set_verbosity(verbosity)


def _digits() -> DatasetDict:
    from sklearn.datasets import load_digits  # slow to import, and wanted for this data set alone
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = [PILImage.fromarray((image * (255 / 16)).astype(np.uint8)) for image in digits.images]  # 17 levels of ink
    parts = train_test_split(images, digits.target.tolist(), test_size=0.2, stratify=digits.target, random_state=0)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    train, validation = (
        Dataset.from_dict({"image": images, "label": labels}, features=features)
        for images, labels in ((parts[0], parts[2]), (parts[1], parts[3]))
    )
    return DatasetDict({"train": train, "validation": validation})


def _read_folder(
    folder: Path, config: str | None, streaming: bool, columns: list[str] | None = None
) -> DatasetDict | IterableDatasetDict:
    with reading(str(folder)):
        if _is_saved(folder):
            return _as_splits(_load_saved(folder))
        files = files_below(folder)
        if not files:
            raise InputError(
                f"The folder {folder} is empty; it should hold images, with a sub-folder for every class if any."
            )
        images = [file for file in files if file.suffix.lower() in image_suffixes()]
        tables = [file for file in files if _is_table(file)]
        declared = _is_declared(folder / "README.md")
        packed = [file for file in files if file.suffix.lower() in _ARCHIVES]
        if packed and not (declared or images or tables):
            raise InputError(f"{folder} holds {packed[0]}, which is packed; unpack it.")
        if declared or not (images or tables):
            return _as_splits(load_dataset(str(folder.resolve()), config, streaming=streaming))
        if images and tables:
            raise InputError(
                f"{folder} holds both images and tables, {images[0]} and {tables[0]} for two; name the folder of the "
                f"images, or the tables, as in '{folder}/*{tables[0].suffix}'."
            )
        if images:
            return read_image_folder(folder, files)
        return _read_files([folder / file for file in tables], str(folder), streaming, folder, columns)


def _load_saved(folder: Path) -> Dataset | DatasetDict:
    try:
        return load_from_disk(folder)
    except IndexError as error:  # of `datasets`, which expects a file in every split
        raise InputError(f"{folder} holds a split without rows, which cannot be loaded; save it without.") from error


def _is_declared(card: Path) -> bool:
    """Whether a data set's card says which files are which split, as on the Hub."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    try:
        return text.startswith("---") and DatasetCard(text).data.get("configs") is not None
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"The head of {card} is no YAML; correct or remove it.") from error


def _files(dataset: str) -> list[Path]:
    """The files that a path, a glob or several of them between commas stand for; none for an id on the Hub."""
    if Path(dataset).is_file():
        return [Path(dataset)]
    if not glob.has_magic(dataset) and "," not in dataset:
        return []
    files = []
    for part in dataset.split(","):
        found = [part] if Path(part).is_file() else sorted(glob.glob(part.strip(), recursive=True))
        if not (matched := [Path(path) for path in found if Path(path).is_file()]):
            raise InputError(f"There is no file {part.strip()}.")
        files += matched
    return list({file.resolve(): file for file in files}.values())


def _read_files(
    files: list[Path], dataset: str, streaming: bool, root: Path | None = None, columns: list[str] | None = None
) -> DatasetDict | IterableDatasetDict:
    if unknown := [file for file in files if file.suffix.lower() not in _BUILDERS]:
        raise InputError(f"{unknown[0]} is neither a folder nor a {_FORMS} file.")
    if len({file.suffix.lower() for file in files}) > 1:
        raise InputError(f"{dataset} has files of several kinds, {files[0]} and {files[-1]}; take those of one.")
    builder = _BUILDERS[files[0].suffix.lower()]
    alone: dict[str, Any] = {"columns": columns} if columns and builder == "parquet" else {}
    splits: dict[Any, Any] = {}
    for split, members in _by_split(files, dataset, root).items():
        if not (members := [file for file in members if _has_rows(file, builder)]):
            logger.warning("Split %r of %s has no rows, so it is left out.", split, dataset)
            continue
        with reading(dataset if len(files) == 1 else f"{dataset}, split {split!r}"):
            splits[split] = cast(Any, load_dataset)(  # one at a time: their columns and classes may differ
                builder,
                data_files=[glob.escape(str(file.resolve())) for file in members],
                split="train",
                streaming=streaming,
                **alone,
            )
    return IterableDatasetDict(splits) if streaming else DatasetDict(splits)


def _has_rows(file: Path, builder: str) -> bool:
    """Whether there is something to read, which `datasets` takes for granted."""
    with reading(str(file)):
        if builder == "parquet":
            table = pq.read_metadata(file)
            if repeated := [name for name, count in Counter(table.schema.to_arrow_schema().names).items() if count > 1]:
                raise InputError(f"{file} has more than one column {repeated[0]!r}; rename or remove them.")
            return table.num_rows > 0
        if builder == "webdataset":
            with tarfile.open(file, "r:") as archive:
                return archive.next() is not None
    return True


def _by_split(files: list[Path], dataset: str, root: Path | None) -> dict[str, list[Path]]:
    """By the first split's name in the files' names, or in those of the folders below the root."""
    splits = defaultdict(list)
    for file in files:
        parts = (file.relative_to(root) if root else Path(file.name)).with_suffix("").parts
        named = [found[1].lower() for part in (parts[-1], *parts[:-1]) if (found := _SPLIT.search(part))]
        splits[SPLIT_NAMES[named[0]] if named else None].append(file)
    unnamed = splits.pop(None, [])
    if unnamed and splits:
        named = next(iter(splits.values()))[0]
        raise InputError(
            f"In {dataset}, {named.name} names a split and {unnamed[0].name} does not; rename it, or name the files to "
            "take, between commas."
        )
    return dict(splits) or {"train": unnamed}


def _as_splits(loaded: Any) -> DatasetDict | IterableDatasetDict:
    if isinstance(loaded, Dataset):
        return DatasetDict({"train": loaded})
    return IterableDatasetDict({"train": loaded}) if isinstance(loaded, IterableDataset) else loaded


def source_folder(dataset: str) -> Path:
    """The folder in which a local data set lies; for others the current one."""
    path = Path(dataset)
    if path.is_dir():
        return path
    files = [] if dataset == "digits" else _files(dataset)
    return files[0].parent if files else Path()
