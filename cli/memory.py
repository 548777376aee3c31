"""Freed memory, which a training asks for again in its next step."""

import ctypes


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # <malloc.h>
_NEVER, _NONE = -1, 0


def keep_freed_memory() -> None:
    """Has the C library keep what is freed for this process, instead of giving it back to the system.

    Every step of a training frees what the one before it allocated, and the system hands out given back pages anew one
    by one, each filled with zeros. glibc alone has the switch; elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library's has none; Windows cannot be asked this way
        return
    mallopt(_TRIM_THRESHOLD, _NEVER)
    mallopt(_MMAP_MAX, _NONE)
