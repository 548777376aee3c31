"""What the views ask of models.

The libraries that answer take seconds to import, in which the page is there already: this file imports none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from threading import Lock, RLock
from typing import TYPE_CHECKING, Any, NamedTuple

from vitrail.demo.examples import example_files
from vitrail.demo.latest import Latest
from vitrail.demo.question import Question


if TYPE_CHECKING:
    import numpy as np

    from vitrail.demo.explaining import Explanation, Occlusion, Picture
    from vitrail.demo.facts import Facts
    from vitrail.demo.models import Model


_IMPORTING = Lock()


def import_libraries() -> None:
    """Imports what answers. Every event begins with it: transformers fails where two threads import it at once."""
    with _IMPORTING:
        import vitrail.demo.explaining
        import vitrail.demo.facts  # noqa: F401 - the same for all that comes


class File(NamedTuple):
    """A file on the server.

    Attributes:
        path: where it is.
        name: what its user calls it.
    """

    path: Path
    name: str

    @property
    def state(self) -> Hashable:
        """What is another one as soon as the file is."""
        status = self.path.stat()
        return self.path, status.st_mtime_ns, status.st_size


class Engine:
    """Loads models when they are asked for, and remembers the latest answers.

    Attributes:
        names: of the models on offer: Hub ids and the names of folders, whose paths are nobody's business.

    Args:
        models: the models on offer, as Hub ids or folders; the first is the one to begin with.
        open_to_all: whether any other model that vitrail can load may be asked for.
        on_gpu: what a function that computes must be decorated with, for instance `spaces.GPU`.
    """

    def __init__(self, models: Sequence[str], open_to_all: bool, on_gpu: Callable | None = None):
        self._sources = _named(models)
        self.names = list(self._sources)
        self.open_to_all = open_to_all
        self._lock = RLock()  # the views' events come one at a time, those of the API beside them
        self._models = Latest(max(3, len(self.names)))
        self._pictures = Latest(8)  # of some megabytes each
        self._answers = Latest(64)
        if on_gpu is not None:
            self._compute = on_gpu(self._compute)

    def examples(self) -> list[Path]:
        """Images to begin with, of the first model."""
        return example_files(self._sources[self.names[0]])

    def model(self, name: str) -> Model:
        """A model on offer.

        Raises:
            InputError: it is not, or it cannot be loaded.
        """
        from vitrail.demo.models import load_model
        from vitrail.modeling import InputError

        if not name:
            raise InputError("Choose a model first.")
        if name not in self.names and not self.open_to_all:
            raise InputError(f"{name} is not on offer here; choose one of {', '.join(self.names)}.")
        with self._lock:
            return self._models.get(name, lambda: load_model(self._sources.get(name, name), name))

    def picture(self, name: str, file: File) -> Picture:
        """An image file as the model of that name takes it.

        Raises:
            InputError: as `model` and `read_picture`.
        """
        from vitrail.demo.explaining import read_picture

        model = self.model(name)
        with self._lock:
            return self._pictures.get((name, file.state), lambda: read_picture(model, file.path, file.name))

    def explain(self, name: str, file: File, question: Question) -> Explanation:
        """The prediction and the maps by depth; see `explaining.explain`."""
        return self._answered("explain", name, file, question)

    def heads(self, name: str, file: File, layer: int) -> np.ndarray:
        """What single heads attend to; see `explaining.heads`."""
        return self._answered("heads", name, file, layer)

    def occlude(self, name: str, file: File, question: Question) -> Occlusion:
        """What hiding patches does; see `explaining.occlude`."""
        return self._answered("occlude", name, file, question)

    def classify(self, name: str, file: File) -> np.ndarray:
        """The classes' probabilities alone; see `explaining.classify`."""
        return self._compute("classify", name, file)

    def facts(self, name: str) -> Facts:
        """What there is to know of a model; see `facts.facts_of`."""
        from vitrail.demo.facts import facts_of

        model = self.model(name)
        with self._lock:
            return self._answers.get(("facts", name), lambda: facts_of(model))

    def _answered(self, task: str, name: str, file: File, *arguments: Hashable) -> Any:
        key = task, name, file.state, arguments
        return self._answers.get(key, lambda: self._compute(task, name, file, *arguments))

    def _compute(self, task: str, name: str, file: File, *arguments: Any) -> Any:
        """Takes and gives only what can come from another process, in which a decorator may run it."""
        from vitrail.demo import explaining

        model, picture = self.model(name), self.picture(name, file)
        with self._lock:
            return getattr(explaining, task)(model, picture, *arguments)


def _named(models: Sequence[str]) -> dict[str, str]:
    """Each model by its name: of a folder the last part of its path, with a number where that is taken."""
    sources: dict[str, str] = {}
    for model in models:
        short = Path(model).resolve().name if Path(model).exists() else model
        taken = [name for name in sources if name == short or name.startswith(f"{short} (")]
        sources[f"{short} ({len(taken) + 1})" if taken else short] = model
    return sources
