"""What every kernel is, at any magnitude: symmetric, positive semidefinite, finite, invariant, homogeneous.

Inputs mix rows of very different sizes with zeros, copies and opposites of each other, in both precisions.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import gpntk
from gpntk import groups

TRIVIAL = groups.FiniteGroup.cyclic(1, channels=2)


class Case(NamedTuple):
    kernel: Callable
    columns: int
    kinked: bool = True
    homogeneous: bool = False
    """Whether k(cx, cy) = c^2 k(x, y)."""
    group: groups.AbstractGroup | None = None
    """One that it is invariant under."""
    largest: int = 1000
    """Decimal exponent of the largest inputs: those that saturate erf need quadratures of high order."""


CASES = {
    "NTK, ReLU": Case(lambda: gpntk.NTK(gpntk.MLP(2)), 3, homogeneous=True),
    "NNGP, LeakyReLU": Case(lambda: gpntk.NNGP(gpntk.MLP(3, gpntk.LeakyReLU(0.1))), 1, homogeneous=True),
    "NTK, Abs": Case(lambda: gpntk.NTK(gpntk.MLP(1, gpntk.Abs())), 2, homogeneous=True),
    "NTK, ReLU with biases": Case(lambda: gpntk.NTK(gpntk.MLP(2, bias_variance=0.3)), 1),
    "NTK, Erf": Case(lambda: gpntk.NTK(gpntk.MLP(2, gpntk.Erf(), bias_variance=0.1)), 3, kinked=False),
    "NNGP, GELU": Case(lambda: gpntk.NNGP(gpntk.MLP(1, gpntk.GELU())), 2, kinked=False),
    "NNGP, Sign": Case(lambda: gpntk.NNGP(gpntk.MLP(1, gpntk.Sign())), 2),
    "NTK, Sin": Case(lambda: gpntk.NTK(gpntk.MLP(1, gpntk.Sin())), 2, kinked=False),
    "sum": Case(lambda: gpntk.NTK(gpntk.MLP(1)) + gpntk.NNGP(gpntk.MLP(2)), 2, homogeneous=True),
    "one point": Case(lambda: gpntk.NTK(gpntk.FiniteGroupCNN(TRIVIAL, channels=2, depth=1)), 2, homogeneous=True),
    "GroupAveraged": Case(
        lambda: gpntk.GroupAveraged(gpntk.NTK(gpntk.MLP(1)), groups.FiniteGroup.dihedral(3)),
        3,
        homogeneous=True,
        group=groups.FiniteGroup.dihedral(3),
    ),
    "FiniteGroupCNN": Case(
        lambda: gpntk.NTK(gpntk.FiniteGroupCNN(groups.FiniteGroup.cyclic(3), depth=2)),
        3,
        homogeneous=True,
        group=groups.FiniteGroup.cyclic(3),
    ),
    "CNN": Case(lambda: gpntk.NTK(gpntk.CNN((2, 2, 1), depth=1, padding="circular")), 4, homogeneous=True),
    "PlanarGroupCNN": Case(
        lambda: gpntk.NTK(gpntk.PlanarGroupCNN("D4", (2, 2, 1), depth=1)),
        4,
        homogeneous=True,
        group=groups.D4((2, 2, 1)),
    ),
    "SphericalCNN": Case(
        lambda: gpntk.NTK(
            gpntk.SphericalCNN(2, depth=1, activation=gpntk.Erf(), sampling="coefficients", quadrature_bandlimit=8)
        ),
        4,
        kinked=False,
        largest=0,
    ),
    "SetSum": Case(
        lambda: gpntk.SetSum(gpntk.NTK(gpntk.MLP(1)), max_size=2),
        4,
        homogeneous=True,
        group=groups.FiniteGroup.cyclic(2, channels=2),
    ),
    "SlotSum": Case(lambda: gpntk.SlotSum(gpntk.NTK(gpntk.MLP(1)), max_size=2), 4, homogeneous=True),
}
# Decimal exponents at which squares of the inputs still are numbers of the precision, and of full accuracy.
EXPONENTS = {np.float32: 15, np.float64: 150}


@st.composite
def inputs(draw, case: Case, dtype: type, most_different: int) -> np.ndarray:
    """Rows of sizes up to `most_different` orders of magnitude apart, some of them zero, equal or opposite."""
    limit = EXPONENTS[dtype]
    n = draw(st.sampled_from([1, 4]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    common = draw(st.integers(-limit, limit))
    rows = []
    for i in range(n):
        exponent = common + draw(st.integers(-most_different, most_different))
        row = rng.normal(size=case.columns) * 10.0 ** np.clip(exponent, -limit, min(limit, case.largest))
        of_others = [lambda j=j, s=s: s * rows[j] for j in range(i) for s in (1, -1)]
        row = draw(st.sampled_from([lambda row=row: row] * 3 + [lambda row=row: 0 * row] + of_others))()
        rows.append(row)
    return np.array(rows, dtype)


def _gram(case: Case, x) -> np.ndarray:
    return np.asarray(case.kernel().gram(x).as_matrix())


def check(name: str, dtype: type, x: np.ndarray) -> None:
    case, eps = CASES[name], float(np.finfo(dtype).eps)
    kernel = case.kernel()
    with jax.enable_x64(dtype is np.float64):
        x = jnp.asarray(x, dtype)
        gram = _gram(case, x)
        assert gram.dtype == dtype
        assert np.isfinite(gram).all()
        np.testing.assert_array_equal(gram, gram.T)
        np.testing.assert_array_equal(np.diagonal(gram), np.diagonal(kernel.diagonal(x).as_matrix()))
        scale = np.sqrt(np.diagonal(gram)).astype(np.float64)
        bound = np.multiply.outer(scale, scale)
        normalised = np.divide(gram, bound, out=np.zeros(gram.shape), where=bound > 0)
        # Kinked activations lose up to 4 sqrt(eps) in the angle of almost equal inputs.
        tolerance = len(gram) * (4 * eps**0.5 if case.kinked else 64 * eps)
        assert np.linalg.eigvalsh(normalised)[0] >= -tolerance
        assert (np.abs(normalised) <= 1 + tolerance).all()

        limit = tolerance * bound + np.finfo(dtype).tiny
        cross = np.asarray(kernel.cross_covariance(x, x))
        np.testing.assert_array_less(np.abs(cross - gram), limit)
        order = np.arange(len(x))[::-1]
        moved, permuted = _gram(case, x[order]), np.ix_(order, order)
        np.testing.assert_array_less(np.abs(moved - gram[permuted]), limit[permuted])
        if case.group is not None:
            transformed = case.group.transform(x, case.group.order - 1)
            values = np.asarray(kernel.cross_covariance(transformed, x))
            np.testing.assert_array_less(np.abs(values - gram), limit)
        if case.homogeneous:
            # By a power of two, which scales every number without rounding. XLA makes zeros of what is below tiny:
            # of either addend, NNGP and NTK, in each of up to three layers.
            factor = 0.25 if np.abs(x).max() > 1 else 4.0
            flushed = 6 * max(1.0, factor**2) * np.finfo(dtype).tiny
            np.testing.assert_allclose(_gram(case, factor * x), factor**2 * gram, rtol=64 * eps, atol=flushed)


PRECISIONS = {"float32": np.float32, "float64": np.float64}


def _examples(count: int):
    def decorate(test):
        limits = settings(max_examples=count, deadline=None, derandomize=True, database=None)
        return limits(given(data=st.data())(test))

    return decorate


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["NTK, ReLU", "NTK, Erf", "NTK, ReLU with biases", "FiniteGroupCNN", "SetSum"])
@_examples(8)
def test_kernels(name, precision, data):
    dtype = PRECISIONS[precision]
    check(name, dtype, data.draw(inputs(CASES[name], dtype, most_different=3)))


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("most_different", [3, 300])
@pytest.mark.parametrize("name", CASES)
@_examples(25)
def test_all_kernels(name, most_different, precision, data):
    dtype = PRECISIONS[precision]
    check(name, dtype, data.draw(inputs(CASES[name], dtype, most_different=most_different)))


ONE_SITE = {
    "convolution of one pixel": gpntk.CNN((1, 1, 3), depth=2, filter_size=1),
    "flattened": gpntk.CNN((1, 1, 3), depth=2, filter_size=3, readout="flatten"),
    "rotations of one pixel": gpntk.PlanarGroupCNN("D4", (1, 1, 3), depth=2, filter_size=1),
    "trivial group": gpntk.FiniteGroupCNN(groups.FiniteGroup.cyclic(1), channels=3, depth=2),
}


@pytest.mark.parametrize("name", ONE_SITE)
def test_networks_on_one_site_are_fully_connected(name, x64):
    x = np.random.default_rng(0).normal(size=(4, 3))
    net = ONE_SITE[name]
    # The area of the filter counts the zeros around the pixel too.
    area = 9.0 if name == "flattened" else 1.0
    expected = _kernels(x, [2 / area, 2 / area, 2])
    for values, wanted in zip(gpntk.nngp_and_ntk(net, x), expected, strict=True):
        np.testing.assert_allclose(values, wanted, rtol=1e-12)


def _kernels(x, variances):
    """NNGP and NTK of a ReLU network without biases, of the given weight variance in every layer."""
    k = variances[0] * x @ x.T / x.shape[1]
    theta = k
    for variance in variances[1:]:
        moments = k, np.diag(k)[:, None], np.diag(k)
        dual, slope = (np.asarray(f(*moments)) for f in (gpntk.ReLU().dual, gpntk.ReLU().dual_derivative))
        k, theta = variance * dual, variance * (dual + slope * theta)
    return k, theta


def test_averages_over_the_trivial_group_change_nothing(x64):
    x = np.random.default_rng(1).normal(size=(4, 2))
    kernel = gpntk.NTK(gpntk.MLP(2, bias_variance=0.1))
    for sides in ("one", "both"):
        averaged = gpntk.GroupAveraged(kernel, TRIVIAL, sides)
        np.testing.assert_allclose(averaged.gram(x).as_matrix(), kernel.gram(x).as_matrix(), rtol=1e-14)


@pytest.mark.parametrize("scale", [1e-100, 1.0, 1e100])
def test_predictions_from_degenerate_data(scale):
    """One point, one feature, copies, zeros: of any size, for a kernel that grows with its inputs."""
    x = scale * np.array([[1.0], [1.0], [0.0], [-1.0]])
    y = np.array([1.0, 1.0, 0.0, -2.0])
    for rows in (slice(0, 1), slice(0, 2), slice(0, 4)):
        alpha = 1e-8 * scale**2
        model = gpntk.NTKRegressor(gpntk.MLP(1), alpha=alpha).fit(x[rows], y[rows])
        mean, std = model.predict(x, return_std=True)
        np.testing.assert_allclose(mean[rows], y[rows], atol=1e-6)
        assert np.isfinite(std).all()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_cumulants_of_degenerate_inputs(scale):
    """V of a homogeneous network grows with the fourth power of the inputs, copies, opposites and zeros too."""
    x = np.array([[1.0, 0.5], [1.0, 0.5], [-1.0, -0.5], [0.0, 0.0]])
    unit, c = (gpntk.cumulants(gpntk.MLP(2), size * x) for size in (1.0, scale))
    for name, power in (("K", 2), ("theta", 2), ("K1", 2), ("V", 4), ("D", 4), ("A", 4), ("B", 4)):
        values, wanted = getattr(c, name), getattr(unit, name) * scale**power
        np.testing.assert_allclose(values, wanted, rtol=1e-9, atol=1e-9 * np.abs(wanted).max())
    assert (c.V[3] == 0).all()
    assert abs(c.V[0, 0, 0, 0] - 10 * c.K[0, 0] ** 2) < 4 * c.error_estimate["V"]
