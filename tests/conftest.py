import jax
import pytest


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(autouse=True, scope="module")
def _compiled_functions_are_dropped():
    """Compiled functions of one module are of little use to the next.

    Each takes several memory mappings, of which Linux allows 65530 to a process: with those of all modules, XLA
    ends in a segmentation fault.
    """
    yield
    jax.clear_caches()
