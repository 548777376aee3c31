"""A run that is killed at any moment, and started again with the same command, ends as if nothing had happened.

- `run.json` holds the settings of the run that the folder belongs to, from its start.
- A checkpoint is complete when its files are those whose digests its `complete.json` lists; that is written last.
- `all_results.json` is written last of all: a folder that has it belongs to a run that has ended.
- `published.json` says where `--push_to_hub` has then put it.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from vitrail.modeling import InputError
from vitrail.training.arguments import DataArguments, ModelArguments, ViTTrainingArguments


_RUN, _SEAL, _RESULTS, _STATE = "run.json", "complete.json", "all_results.json", "trainer_state.json"
_PUBLISHED = "published.json"

# Flags that change neither what is learned nor what is measured: another value may go on with the same run.
_FREE = {
    *("output_dir", "restart", "disable_tqdm", "report_to", "run_name", "project", "push_to_hub", "save_total_limit"),
    *("per_device_eval_batch_size", "auto_find_batch_size", "skip_memory_metrics", "local_rank", "license"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
}
_PROCESSES = "processes"  # which no flag says, but how it is launched
_FREE_PREFIXES = ("hub_", "log", "trackio_", "ddp_")


@dataclasses.dataclass(frozen=True)
class Run:
    """What is to be done in an output folder.

    Attributes:
        output_dir: the folder.
        settings: what the flags say, as far as it bears on what comes out.
        start: the checkpoint to go on from; None for the very beginning.
        only_to_publish: whether this very run has ended there, but for `--push_to_hub`.
    """

    output_dir: Path
    settings: dict[str, Any]
    start: Path | None
    only_to_publish: bool

    def begin(self, arguments: ViTTrainingArguments) -> str | None:
        """Makes the folder that of this run, in an order that can be cut off anywhere.

        Checkpoints of steps after the start, which are another run's or incomplete, are deleted.

        Returns:
            the start, as the Trainer takes it.
        """
        with arguments.main_process_first(local=False):
            if arguments.process_index == 0:
                self._take_over()
        return None if self.start is None else str(self.start)

    def _take_over(self) -> None:
        shutil.rmtree(staging_folder(self.output_dir), ignore_errors=True)
        after = _step(self.start) if self.start is not None and self.start.parent == self.output_dir else 0
        if not has_ended(self.output_dir):
            for checkpoint in _checkpoints(self.output_dir):
                if _step(checkpoint) > after and not is_complete(checkpoint):
                    print(f"{checkpoint} is incomplete and is passed over.")
        discard_checkpoints(self.output_dir, after)
        for name in (_RESULTS, _PUBLISHED):
            (self.output_dir / name).unlink(missing_ok=True)
        _write(self.output_dir / _RUN, self.settings)
        if self.start is not None:
            print(f"Resuming from {self.start}, {progress_of(self.start)}.")


def plan_run(model: ModelArguments, data: DataArguments, arguments: ViTTrainingArguments) -> Run:
    """Finds out where a run with these settings begins; nothing is changed on the disk yet.

    An unfinished run with the same settings goes on; one that has ended makes room for a new one, unless it is still to
    be published, and so does, with `--restart`, an unfinished one.

    Raises:
        InputError: the output folder holds an unfinished run with other settings, or `--resume_from_checkpoint` names
            no complete checkpoint.
    """
    output_dir, settings = Path(str(arguments.output_dir)), _settings(model, data, arguments)
    finished = has_ended(output_dir) and _read(output_dir / _RUN) == settings and not arguments.restart
    to_publish = finished and arguments.push_to_hub and not (output_dir / _PUBLISHED).exists()
    return Run(output_dir, settings, _start(output_dir, settings, arguments), to_publish)


def end_run(output_dir: Path, results: dict[str, Any]) -> None:
    """Writes `all_results.json`, which says that everything else is there."""
    _write(output_dir / _RESULTS, results)


def results_of(output_dir: Path) -> dict[str, Any]:
    """What `end_run` has written."""
    return json.loads((output_dir / _RESULTS).read_text(encoding="utf-8"))


def note_publication(output_dir: Path, url: str) -> None:
    """Remembers that the model of a run is where it was to go."""
    _write(output_dir / _PUBLISHED, {"url": url})


def has_ended(output_dir: Path) -> bool:
    """Whether nothing remains to be done of the run that a folder belongs to."""
    return (output_dir / _RESULTS).exists()


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint of a folder."""
    return next((checkpoint for checkpoint in reversed(_checkpoints(output_dir)) if is_complete(checkpoint)), None)


def progress_of(checkpoint: Path) -> str:
    """How far training had come: "step 120 of 400"."""
    state = _read(checkpoint / _STATE) or {}
    return f"step {state['global_step']:,} of {state['max_steps']:,}"


def seal(checkpoint: Path, progress: dict[str, Any]) -> None:
    """Declares a checkpoint complete, once all of it is on the disk.

    Args:
        checkpoint: its folder.
        progress: what `sealed_progress` is to return.
    """
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    for file in files:
        _sync(file)
    digests = {str(file.relative_to(checkpoint)): _digest(file) for file in files}
    _write(checkpoint / _SEAL, {"progress": progress, "files": digests})
    _sync_names(checkpoint.parent)


def sealed_progress(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint was sealed with; None of one that somebody else wrote."""
    sealed = _read(checkpoint / _SEAL)
    return None if sealed is None else sealed["progress"]


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint is sealed, and its files are there as they were then."""
    sealed = _read(checkpoint / _SEAL)
    if sealed is None:
        return False
    files = {checkpoint / name: digest for name, digest in sealed["files"].items()}
    return all(file.is_file() and _digest(file) == digest for file, digest in files.items())


def is_usable(checkpoint: Path) -> bool:
    """Whether a checkpoint is complete as far as can be told of one that somebody else may have written."""
    return (checkpoint / _STATE).is_file() and (is_complete(checkpoint) or not (checkpoint / _SEAL).exists())


def discard_checkpoints(output_dir: Path, after: int) -> None:
    """Deletes the checkpoints of steps that are still to come."""
    for checkpoint in _checkpoints(output_dir):
        if _step(checkpoint) > after:
            shutil.rmtree(checkpoint)


def staging_folder(output_dir: Path) -> Path:
    """Where files are written that are to appear in the output folder all at once."""
    return output_dir / ".saving"


def move_whole(staging: Path, output_dir: Path) -> None:
    """Moves files to the folder in which they replace those of the same names, once all are on the disk."""
    files = sorted(staging.iterdir())
    for file in files:
        _sync(file)
    for file in files:
        file.replace(output_dir / file.name)
    _sync_names(output_dir)
    staging.rmdir()


def _settings(model: ModelArguments, data: DataArguments, arguments: ViTTrainingArguments) -> dict[str, Any]:
    settings = dataclasses.asdict(model) | dataclasses.asdict(data) | arguments.to_dict()
    kept = {
        name: value for name, value in settings.items() if name not in _FREE and not name.startswith(_FREE_PREFIXES)
    }
    return json.loads(json.dumps(kept | {_PROCESSES: arguments.world_size}, default=str))


def _start(output_dir: Path, settings: dict[str, Any], arguments: ViTTrainingArguments) -> Path | None:
    asked, newest = _asked(output_dir, arguments), last_checkpoint(output_dir)
    recorded = _read(output_dir / _RUN) or {}
    others = not recorded and bool(_checkpoints(output_dir))  # which something else left there
    if has_ended(output_dir) or arguments.restart or not (newest or others):
        return asked
    differing = sorted(name for name in settings.keys() & recorded.keys() if settings[name] != recorded[name])
    if recorded and (not differing or (differing == ["resume_from_checkpoint"] and asked is None)):
        return newest
    if asked is not None and asked.parent == output_dir:
        return asked
    named = {_PROCESSES: "the number of processes"}
    changes = [f"{named.get(name, f'--{name}')} was {recorded[name]} and is {settings[name]}" for name in differing]
    held = f"an unfinished run with other settings ({', '.join(changes)})" if changes else "checkpoints of another run"
    raise InputError(
        f"{output_dir} holds {held}: --restart discards it, --resume_from_checkpoint last goes on from it all the same,"
        " and another --output_dir leaves it alone."
    )


def _asked(output_dir: Path, arguments: ViTTrainingArguments) -> Path | None:
    """The checkpoint of `--resume_from_checkpoint FOLDER`, or of `last`, which is the newest in the output folder."""
    asked = arguments.resume_from_checkpoint
    if asked == "last":
        found = last_checkpoint(output_dir)
        if found is None:
            raise InputError(f"There is no checkpoint in {output_dir} to resume from.")
        return found
    if asked is None:
        return None
    checkpoint = Path(asked)
    if not (checkpoint / _STATE).is_file():
        raise InputError(f"There is no checkpoint {asked} to resume from; `last` takes the newest one.")
    if not is_usable(checkpoint):
        raise InputError(f"The checkpoint {asked} is incomplete; `last` takes the newest complete one.")
    return output_dir / checkpoint.name if checkpoint.resolve().parent == output_dir.resolve() else checkpoint


def _checkpoints(output_dir: Path) -> list[Path]:
    """The folders of checkpoints, complete or not, by their steps."""
    found = [path for path in output_dir.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted((path for path in found if path.is_dir()), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _write(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(json.dumps(content, indent=4, sort_keys=True) + "\n", encoding="utf-8")
    _sync(partial)
    partial.replace(path)
    _sync_names(path.parent)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Waits until a file's content would survive a power cut."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_names(folder: Path) -> None:
    """The same of the names in a folder, where the system can open one."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
