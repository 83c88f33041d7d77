"""Quasi-Monte Carlo points."""

from collections.abc import Callable

import numpy as np
from scipy.special import ndtri


def sobol_normals(dimension: int, seed: np.random.SeedSequence) -> Callable[[int], np.ndarray]:
    """A scrambled Sobol sequence as standard normal vectors: a function that draws the next n, (n, dimension)."""
    from scipy.stats import qmc  # here, because it takes a third of a second, and kernels do not need it

    sequence = qmc.Sobol(dimension, scramble=True, rng=np.random.default_rng(seed))
    # A scrambled point can round to 0, whose quantile is infinite.
    return lambda n: ndtri(np.clip(sequence.random(n), 2.0**-54, 1.0 - 2.0**-53))
