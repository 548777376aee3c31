"""What is imported for a command stays out of the garbage collector's way; what it makes later does not."""

import gc
import weakref

import pytest

from vitrail.cli.imports import garbage_kept


class Cycle:
    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def _thaw():
    yield
    gc.unfreeze()


def test_the_collector_rests_and_searches_only_what_is_made_afterwards():
    with garbage_kept():
        assert not gc.isenabled()
        imported = Cycle()
    assert gc.isenabled()
    assert all(found is not imported for found in gc.get_objects())
    cycle = weakref.ref(Cycle())
    gc.collect()
    assert cycle() is None


def test_the_collector_is_as_before_after_an_import_that_fails():
    with pytest.raises(ModuleNotFoundError), garbage_kept():
        import vitrail.absent  # noqa: F401 - it is there to fail
    assert gc.isenabled()
    gc.disable()
    try:
        with garbage_kept():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
