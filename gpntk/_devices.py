"""Which device JAX computes on: what is fast on accelerators is slow on processors, and the other way round."""

from typing import Any

import jax


def default_device() -> Any:
    """The `jax.Device` of arrays that nobody has placed."""
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue] (JAX defines it at run time)
    if isinstance(default, str):  # the name of a platform
        return jax.local_devices(backend=default)[0]
    return default or jax.local_devices()[0]


def is_accelerated() -> bool:
    """Whether that is an accelerator, such as a GPU."""
    return default_device().platform != "cpu"
