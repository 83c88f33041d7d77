"""Which device JAX computes on: what is fast on accelerators is slow on processors, and the other way round."""

from typing import Any

import jax


def is_accelerated() -> bool:
    """Whether it computes on an accelerator, such as a GPU, by default."""
    return _default_device().platform != "cpu"


def accelerator_memory() -> int | None:
    """Bytes of memory of that accelerator, if it tells; `None` for processors."""
    return (_default_device().memory_stats() or {}).get("bytes_limit") if is_accelerated() else None


def _default_device() -> Any:
    """The `jax.Device` of arrays that nobody has placed."""
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue] (JAX defines it at run time)
    if isinstance(default, str):  # the name of a platform
        return jax.local_devices(backend=default)[0]
    return default or jax.local_devices()[0]
