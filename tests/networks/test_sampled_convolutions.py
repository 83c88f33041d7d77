"""Kernels of convolutional networks against networks of finite width."""

import jax
import numpy as np
import pytest

import gpntk
from gpntk.groups import FiniteGroup
from gpntk.sampling import sample_kernels

VARIANCES = {"weight_variance": 1.3, "bias_variance": 0.2}
SMALL = {"weight_variance": 0.8, "bias_variance": 0.2}
SHAPE = (4, 4, 2)
NETWORKS = {
    "cnn-same-pool": gpntk.CNN(SHAPE, 2, **VARIANCES),
    "cnn-valid-flatten": gpntk.CNN(SHAPE, 2, 2, "valid", "flatten", **VARIANCES),
    "c4-same-pool": gpntk.PlanarGroupCNN("C4", SHAPE, 2, **VARIANCES),
    "d4-circular-pool": gpntk.PlanarGroupCNN("D4", SHAPE, 2, padding="circular", **VARIANCES),
    "c4-same-flatten": gpntk.PlanarGroupCNN("C4", SHAPE, 2, readout="flatten", **VARIANCES),
    "finite-full": gpntk.FiniteGroupCNN(FiniteGroup.symmetric(3), 2, **VARIANCES),
    "finite-subsets": gpntk.FiniteGroupCNN(
        FiniteGroup.symmetric(3), 2, depth=3, supports=((0, 1), (0, 3, 4), (1, 5)), **VARIANCES
    ),
}
# Filters on SO(3) end at the bandlimit of the quadrature: exact for linear networks,
# for erf to about 1e-4 here.
NETWORKS |= {
    "sphere-linear": gpntk.SphericalCNN(2, 2, 3, quadrature_bandlimit=2, activation=gpntk.Identity(), **SMALL),
    "sphere-erf": gpntk.SphericalCNN(2, 2, 2, quadrature_bandlimit=4, activation=gpntk.Erf(), **VARIANCES),
    "sphere-inversion": gpntk.SphericalCNN(
        2, 2, 2, quadrature_bandlimit=4, inversion=True, activation=gpntk.Erf(), **VARIANCES
    ),
}
DEFAULT = "finite-subsets"


@pytest.mark.parametrize(
    "name", [name if name == DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_sampled_networks_have_these_kernels(name):
    net, width, n_samples = NETWORKS[name], 16, 7000
    x = np.random.default_rng(0).normal(size=(2, net.n_features)).astype(np.float32)
    # A common part, so that no entry is small against its error.
    x[1] = 0.6 * x[0] + 0.8 * x[1]
    keys = jax.random.split(jax.random.key(1))
    narrow, wide = (
        sample_kernels(net, x, w, n_samples, key) for w, key in zip((width, 2 * width), keys, strict=True)
    )
    for kind, theory in zip(("nngp", "ntk"), gpntk.nngp_and_ntk(net, x), strict=True):
        # The mean at width n is off by O(1/n); the combination of two widths by O(1/n^2).
        extrapolated = 2 * getattr(wide, kind) - getattr(narrow, kind)
        error = np.hypot(2 * getattr(wide, f"{kind}_se"), getattr(narrow, f"{kind}_se"))
        assert np.linalg.norm(error) < 0.01 * np.linalg.norm(theory)
        assert np.all(np.abs(extrapolated - theory) < 4 * error)
        assert not np.all(np.abs(extrapolated - 1.05 * theory) < 4 * error)
