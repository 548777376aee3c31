"""A training keeps the memory that it frees, and does not fetch the same pages in every step."""

import os

import pytest


FREED_AND_ASKED_FOR_AGAIN = """
import resource
from vitrail.cli.memory import keep_freed_memory

keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    bytearray(1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc alone can keep it")
def test_what_is_freed_and_asked_for_again_is_the_same_memory(run_with):
    pages = (1 << 26) // os.sysconf("SC_PAGE_SIZE")
    assert int(run_with(os.environ, "-c", FREED_AND_ASKED_FOR_AGAIN)) < 2 * pages
