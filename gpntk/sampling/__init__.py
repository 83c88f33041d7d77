"""Finite networks in bulk: empirical kernels, training, Monte-Carlo estimates."""

from gpntk.sampling._empirical import empirical_ntk as empirical_ntk, linearize as linearize
from gpntk.sampling._readout import (
    SampledKernels as SampledKernels,
    readout_kernels as readout_kernels,
    sample_kernels as sample_kernels,
)
from gpntk.sampling._training import train as train, train_ensemble as train_ensemble
