"""A training keeps the memory that it frees, unless the environment says what is to become of it."""

import os
import platform

import pytest

from vitrail.cli.main import main


CHOICES = {"MALLOC_TRIM_THRESHOLD_": "131072"}
SIZE = 1 << 26
KEPT_OF_WHAT_IS_FREED = f"""
import resource
from pathlib import Path
from vitrail.cli.memory import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

keep_freed_memory()
before = resident()
memory = b"x" * {SIZE}
del memory
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone can keep it")
@pytest.mark.parametrize("choices", [{}, CHOICES], ids=["", "chosen already"])
def test_what_is_freed_stays(choices, run_with):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    kept = int(run_with(environment | choices, "-c", KEPT_OF_WHAT_IS_FREED)) > SIZE / 2
    assert kept is not bool(choices)


def test_a_training_keeps_it(monkeypatch):
    asked = []
    monkeypatch.setattr("vitrail.cli.train.keep_freed_memory", lambda: asked.append(1))
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert asked
