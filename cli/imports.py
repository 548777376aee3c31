"""Imports of large libraries that the garbage collector does not search.

with garbage_kept():
    import transformers
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Lets the collector rest meanwhile, and leaves what there is at the end out of all its searches.

    Modules stay until the process ends, yet the more of them there are, the longer the collector searches them: again
    and again while torch and transformers are imported, soon afterwards, and once more at the end of the process,
    almost a quarter of a first prediction in all. Garbage of before the end is kept with them; later one is collected.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
