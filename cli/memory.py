"""Freed memory, which a training asks for again in its next step."""

import ctypes
import os


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc's <malloc.h>
_NEVER, _NONE = -1, 0
_CHOSEN_ALREADY = {"GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_"}


def keep_freed_memory() -> None:
    """Has glibc keep what the main thread frees, instead of giving it back to the system.

    Every step of a training frees its activations, and the next one allocates them again; the system would hand out
    each page anew, filled with zeros. What the environment says of glibc's memory comes first. Other C libraries have
    no such switch, and nothing happens.
    """
    if os.environ.keys() & _CHOSEN_ALREADY:
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc, nothing that is linked dynamically, or Windows
        return
    mallopt(_TRIM_THRESHOLD, _NEVER)
    mallopt(_MMAP_MAX, _NONE)
