"""What stops a training before its end: signals, full disks, no memory, a loss that is no number.

Each is said in one sentence: what happened, what is safe, and the command that finishes the job.
"""

import errno
import os
import re
import shlex
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from accelerate.utils.memory import should_reduce_batch_size
from safetensors import SafetensorError

from vitrail.modeling import InputError
from vitrail.training.resuming import has_ended, last_checkpoint, progress_of


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run.

    Args:
        number: the signal's.
        sentence: what is safe, and the command that goes on.
    """

    def __init__(self, number: int, sentence: str = ""):
        super().__init__(sentence)
        self.number = number

    @classmethod
    def by(cls, stop: KeyboardInterrupt, way_on: str) -> "Interrupted":
        """A signal's interruption, which says how to go on, unless it does already."""
        if isinstance(stop, Interrupted):
            return stop if str(stop) else cls(stop.number, f"interrupted; {way_on}")
        return cls(signal.SIGINT, f"interrupted; {way_on}")

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that this signal ended: 130 of Ctrl-C, 143 of SIGTERM."""
        return 128 + self.number


class TrainingFault(InputError):
    """A run cannot go on as it is.

    Args:
        sentence: what happened, without a full stop.
        flags: what to add to the command so that it does not happen again.
    """

    def __init__(self, sentence: str, flags: str = ""):
        super().__init__(f"{sentence}.")
        self.flags = flags


class SignalsAfterStep:
    """A context in which the first SIGINT or SIGTERM is only noted, so that a step can end and be saved.

    The second one does what it did before. In a thread, which receives no signals, the context does nothing.

    Attributes:
        received: the number of the signal noted; None as long as there is none.
    """

    received: int | None = None

    def __enter__(self) -> "SignalsAfterStep":
        self._process, self._before = os.getpid(), {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data-loading worker, which Ctrl-C reaches as well; the step still needs its images
        if self.received is None:
            self.received = number
            os.write(2, b"\nStopping after this step, with a checkpoint; the same again stops at once.\n")
        else:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)


@contextmanager
def one_sentence(argv: Sequence[str], output_dir: Path) -> Iterator[None]:
    """Whatever stops the run inside is said in one sentence, which ends with the command that finishes the job.

    Args:
        argv: the flags of `vitrail train`.
        output_dir: the run's folder.

    Raises:
        Interrupted: by a signal.
        InputError: by anything else that is no bug.
    """

    def terminate(number: int, _: FrameType | None) -> None:
        raise Interrupted(number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted.by(error, _way_on(argv, output_dir)) from error
    except TrainingFault as error:
        raise _with_way_on(error, argv, output_dir) from error
    except InputError as error:
        if has_ended(output_dir) or last_checkpoint(output_dir) is None:
            raise
        raise _with_way_on(error, argv, output_dir) from error
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        fault = _fault(error, output_dir)
        if fault is None:
            raise
        raise _with_way_on(fault, argv, output_dir) from error
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def _with_way_on(error: InputError, argv: Sequence[str], output_dir: Path) -> InputError:
    flags = error.flags if isinstance(error, TrainingFault) else ""
    return InputError(f"{str(error).rstrip('.')}; {_way_on(argv, output_dir, flags)}")


def _way_on(argv: Sequence[str], output_dir: Path, flags: str = "") -> str:
    if has_ended(output_dir):
        return f"the finished model is in {output_dir}."
    checkpoint = last_checkpoint(output_dir)
    safe = f"{progress_of(checkpoint)} is safe in {checkpoint}" if checkpoint else "there is no checkpoint yet"
    if checkpoint and "--restart" not in flags and any(flag.split("=")[0] == "--restart" for flag in argv):
        flags += " --restart false"  # the last one counts
    return f"{safe}; go on with: {_program()} {shlex.join(argv)} {flags.strip()}".rstrip()


def _program() -> str:
    """What starts as many processes as there are now."""
    world, here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world == 1:
        return "vitrail train"
    launcher = f"torchrun --nproc_per_node {world}" if world == here else "(by the same launcher, on every machine)"
    return f"{launcher} -m vitrail.training"


_UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR),
    errno.EEXIST,
}
# What torch.save says of a full disk, a folder that is gone and one that is read-only.
_TORCH_CANNOT_WRITE = re.compile(r"PytorchStreamWriter|inline_container|cannot be opened|Parent directory")
_OUT_OF_MEMORY = re.compile(r"No executable batch size found|out-of-memory error|out of memory")


def _fault(error: Exception, output_dir: Path) -> TrainingFault | None:
    """The sentence for what the machine could not do; None for a bug."""
    message = str(error)
    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        return TrainingFault(f"Cannot write to {error.filename or output_dir}: {error.strerror}")
    if isinstance(error, SafetensorError) and "I/O error: " in message:
        reason = message.split("I/O error: ")[1].split(" (os error")[0]
        return TrainingFault(f"Cannot write to {output_dir}: {reason}")
    if isinstance(error, RuntimeError) and _TORCH_CANNOT_WRITE.search(message):
        return TrainingFault(f"Cannot write to {output_dir}: the disk is full, or the folder gone or read-only")
    if isinstance(error, RuntimeError) and message.startswith("DataLoader worker"):
        return TrainingFault(
            "A data-loading worker was killed, most often for want of memory: use fewer --dataloader_num_workers, or a "
            "smaller --per_device_train_batch_size",
            flags="--dataloader_num_workers 0",
        )
    if isinstance(error, MemoryError) or should_reduce_batch_size(error) or _OUT_OF_MEMORY.search(message):
        return TrainingFault(
            "Out of memory: use a smaller --per_device_train_batch_size or --per_device_eval_batch_size, or let "
            "--auto_find_batch_size find the former",
            flags="--auto_find_batch_size",
        )
    return None
