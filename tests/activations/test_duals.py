"""Duals and dual derivatives of every activation against quadrature, closed forms and each other."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_moments import angle, mean_of_product
from hypothesis import given, settings, strategies as st
from mpmath import mp, mpf
from scipy import special

import gpntk

ROOT_2PI = np.sqrt(2 * np.pi)


def piecewise(left, right):
    """A piecewise linear function and its slope, which is the mean of both sides at zero."""
    return (
        lambda x: np.where(x < 0, left * x, right * x),
        lambda x: np.where(x < 0, left, np.where(x > 0, right, 0.5 * (left + right))),
    )


# Each activation with NumPy code for the function and its derivative.
CASES = {
    "relu": (gpntk.ReLU(), *piecewise(0, 1)),
    "leaky_relu": (gpntk.LeakyReLU(0.2), *piecewise(0.2, 1)),
    "abrelu": (gpntk.ABReLU(-0.3, 1.4), *piecewise(-0.3, 1.4)),
    "abs": (gpntk.Abs(), *piecewise(-1, 1)),
    "sign": (gpntk.Sign(), np.sign, np.zeros_like),
    "identity": (gpntk.Identity(), *piecewise(1, 1)),
    "erf": (
        gpntk.Erf(0.7, 1.3, 0.4),
        lambda x: 0.7 * special.erf(1.3 * x) + 0.4,
        lambda x: 1.82 / np.sqrt(np.pi) * np.exp(-1.69 * x**2),
    ),
    "gelu": (
        gpntk.GELU(),
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * np.exp(-0.5 * x**2) / ROOT_2PI,
    ),
    "sin": (
        gpntk.Sin(0.7, 1.3, 0.4),
        lambda x: 0.7 * np.sin(1.3 * x + 0.4),
        lambda x: 0.91 * np.cos(1.3 * x + 0.4),
    ),
    "cos": (
        gpntk.Cos(0.7, 1.3, 0.4),
        lambda x: 0.7 * np.cos(1.3 * x + 0.4),
        lambda x: -0.91 * np.sin(1.3 * x + 0.4),
    ),
    "rbf": (
        gpntk.Rbf(0.4),
        lambda x: np.sqrt(2) * np.sin(np.sqrt(0.8) * x + np.pi / 4),
        lambda x: np.sqrt(1.6) * np.cos(np.sqrt(0.8) * x + np.pi / 4),
    ),
    "exp": (gpntk.Exp(0.7, 0.3), lambda x: 0.7 * np.exp(0.3 * x), lambda x: 0.21 * np.exp(0.3 * x)),
    "gaussian": (
        gpntk.Gaussian(1.2, -0.4),
        lambda x: 1.2 * np.exp(-0.4 * x**2),
        lambda x: -0.96 * x * np.exp(-0.4 * x**2),
    ),
    "monomial": (gpntk.Monomial(3), lambda x: x**3, lambda x: 3 * x**2),
    "polynomial": (
        gpntk.Polynomial([0.3, -0.7, 0.5, 0.2]),
        lambda x: 0.3 - 0.7 * x + 0.5 * x**2 + 0.2 * x**3,
        lambda x: -0.7 + x + 0.6 * x**2,
    ),
    "hermite": (
        gpntk.Hermite(5),
        lambda x: (x**5 - 10 * x**3 + 15 * x) / np.sqrt(120),
        lambda x: (5 * x**4 - 30 * x**2 + 15) / np.sqrt(120),
    ),
    "tanh": (gpntk.Tanh(), np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "sigmoid": (gpntk.Sigmoid(), special.expit, lambda x: special.expit(x) * special.expit(-x)),
    "silu": (
        gpntk.SiLU(),
        lambda x: x * special.expit(x),
        lambda x: special.expit(x) * (1 + x * special.expit(-x)),
    ),
    "softplus": (gpntk.Softplus(), lambda x: np.logaddexp(0, x), special.expit),
    "elementwise": (
        gpntk.Elementwise(lambda x: jnp.exp(-0.2 * x**2) * x),
        lambda x: np.exp(-0.2 * x**2) * x,
        lambda x: np.exp(-0.2 * x**2) * (1 - 0.4 * x**2),
    ),
}
SERIES = {"tanh", "sigmoid", "silu", "softplus", "elementwise"}
KINKED = {"relu", "leaky_relu", "abrelu", "abs", "sign"}
every_activation = pytest.mark.parametrize("name", CASES)
# One series goes through the same code as another, and takes long to compile.
one_series = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SERIES - {"tanh"} else name for name in CASES]
)

# Generic pairs, coincident and antipodal ones, one and two inputs of zero variance.
VARIANCES = np.array([(0.8, 1.7), (1.0, 1.0), (0.1, 10.0), (0.0, 1.3)])
CORRELATIONS = np.array([0.0, 0.6, -0.99, 1.0, -1.0])


def both(activation, k, q1, q2):
    """Dual and dual derivative, compiled once for every activation."""
    return np.stack(_both(activation, *(jnp.asarray(a) for a in (k, q1, q2))))


@eqx.filter_jit
def _both(activation, k, q1, q2):
    return activation.dual(k, q1, q2), activation.dual_derivative(k, q1, q2)


@functools.cache
def second_moment(function, q):
    return mean_of_product(function, q, q, 0.0)


def reference(functions, q1, q2, phi):
    """Both moments by quadrature, and the norms that errors are relative to."""
    values = np.array([mean_of_product(f, q1, q2, phi) for f in functions])
    norms = np.array([np.sqrt(second_moment(f, q1) * second_moment(f, q2)) for f in functions])
    return values, np.where(norms > 0, norms, 1.0)


def test_quadrature_agrees_with_mpmath():
    """The reference of this module against adaptive quadrature in another coordinate system."""
    rho, q1, q2 = 0.6, 0.8, 1.7
    inner = lambda y, x: mp.tanh(mp.sqrt(q1) * x) * mp.tanh(mp.sqrt(q2) * (rho * x + mp.sqrt(1 - rho**2) * y))  # noqa: E731
    with mp.workdps(12):
        exact = mp.quad(lambda x, y: inner(y, x) * mp.npdf(x) * mp.npdf(y), [-8, 0, 8], [-8, 0, 8], maxdegree=4)
    assert abs(mean_of_product(np.tanh, q1, q2, np.arccos(rho)) - float(exact)) < 1e-9


@pytest.mark.usefixtures("x64")
@every_activation
def test_moments_match_quadrature(name):
    activation, *functions = CASES[name]
    pairs = [(rho * np.sqrt(q1) * np.sqrt(q2), q1, q2, rho) for q1, q2 in VARIANCES for rho in CORRELATIONS]
    k, q1, q2, rho = np.array(pairs).T
    values = both(activation, k, q1, q2)
    for i in range(len(k)):
        degenerate = q1[i] * q2[i] == 0
        # The angle of coincident pairs is exact, not that of their rounded covariance.
        phi = angle(k[i], q1[i], q2[i]) if abs(rho[i]) < 1 or degenerate else np.arccos(rho[i])
        expected, norms = reference(functions, q1[i], q2[i], phi)
        # Both sides sum some 1e5 terms: a few hundred eps. Tanh at variance 10 is a truncated series.
        tolerance = 2e-7 if name in SERIES and q2[i] == 10 else 2e-13
        np.testing.assert_array_less(np.abs(values[:, i] - expected) / norms, tolerance, err_msg=str(pairs[i]))


@pytest.mark.usefixtures("x64")
@one_series
def test_moments_are_accurate_next_to_coincidence(name):
    activation, *functions = CASES[name]
    q1, q2 = 0.9, 1.6
    gaps = np.array([1e-9, 1e-12, 4e-15, 1e-15])
    k = np.concatenate([1.0 - gaps, gaps - 1.0]) * np.sqrt(q1 * q2)
    values = both(activation, k, np.full_like(k, q1), np.full_like(k, q2))
    for i, covariance in enumerate(k):
        expected, norms = reference(functions, q1, q2, angle(covariance, q1, q2))
        # Pairs whose correlation is within 8 eps of 1 count as coincident: an error of 4 sqrt(eps) in the angle.
        np.testing.assert_array_less(np.abs(values[:, i] - expected) / norms, 1e-7)


@pytest.mark.usefixtures("x64")
def test_arc_cosine_keeps_relative_accuracy_near_antipodes():
    """The dual of ReLU vanishes there like the cube of the angle, yet keeps its leading digits."""
    k = -1.0 + np.array([1e-3, 1e-6, 1e-9])
    value = gpntk.ReLU().dual(k, 1.0, 1.0)
    with mp.workdps(50):
        exact = [
            float((mp.sqrt(1 - mpf(r) ** 2) + mpf(r) * (mp.pi - mp.acos(mpf(r)))) / (2 * mp.pi))
            for r in map(float, k)
        ]
    np.testing.assert_allclose(value, exact, rtol=1e-13)


@one_series
def test_single_precision_agrees_with_double(name):
    activation = CASES[name][0]
    q1, q2, rho = np.meshgrid([0.1, 1.0, 10.0], [0.3, 10.0], [-0.999, -0.5, 0.0, 0.7, 0.999], indexing="ij")
    q1, q2, k = (a.ravel().astype(np.float32) for a in (q1, q2, 0.9999 * rho * np.sqrt(q1 * q2)))
    single = both(activation, k, q1, q2)
    assert single.dtype == np.float32
    with jax.enable_x64(True):
        double = both(activation, *(a.astype(np.float64) for a in (k, q1, q2)))
        norms = np.sqrt(np.prod([both(activation, q, q, q) for q in (q1.astype(float), q2.astype(float))], axis=0))
    np.testing.assert_array_less(np.abs(single - double), 1e-5 * norms + 1e-30)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abrelu", "abs", "identity"])
@pytest.mark.parametrize("scale", [1e-300, 1e-150, 1e150, 1e300])
def test_homogeneous_activations_scale(name, scale):
    activation = CASES[name][0]
    k, q1, q2 = np.array([0.3, 1.0, -1.0]), np.array([0.5, 1.0, 1.0]), np.array([1.5, 1.0, 1.0])
    values, scaled = both(activation, k, q1, q2), both(activation, scale * k, scale * q1, scale * q2)
    np.testing.assert_allclose(scaled / np.array([[scale], [1.0]]), values, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize(
    "name", sorted(set(CASES) - SERIES - {"exp", "monomial", "polynomial", "hermite"} | {"tanh"})
)
def test_huge_and_tiny_variances_are_finite(name, scale):
    activation = CASES[name][0]
    k, q = np.array([1.0, 0.5, -1.0]) * scale, np.full(3, scale)
    for dtype, factor in ((np.float32, 1.0), (np.float64, 1.0), (np.float64, scale**8)):
        with jax.enable_x64(dtype == np.float64):
            values = both(
                activation, (factor * k).astype(dtype), (factor * q).astype(dtype), (factor * q).astype(dtype)
            )
        assert np.isfinite(values).all()
        # Cauchy-Schwarz against the coincident pair, which comes first.
        assert (np.abs(values) <= np.abs(values[:, :1]) * (1 + 1e-5) + 1e-30).all()


@pytest.mark.usefixtures("x64")
def test_slope_of_gaussian_does_not_underflow():
    """The moment falls like q^(-1/2) although the cube in its formula underflows."""
    q = np.array([1e20, 1e240])
    # 4 a^2 b^2 q (1 + 4 |b| q)^(-3/2) for a = 1, b = -1.
    np.testing.assert_allclose(gpntk.Gaussian().dual_derivative(q, q, q), 0.5 / np.sqrt(q), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gelu_at_huge_variance_is_relu():
    q = np.array([1e30, 1e220, 1e300])
    np.testing.assert_allclose(gpntk.GELU().dual(q, q, q), 0.5 * q, rtol=1e-14)
    np.testing.assert_allclose(gpntk.GELU().dual(-0.5 * q, q, q), gpntk.ReLU().dual(-0.5 * q, q, q), rtol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_slope_of_gelu_at_huge_variance_is_that_of_relu(dtype):
    """For almost opposite inputs too, whose correlation is rounded and whose slope nearly vanishes."""
    rng = np.random.default_rng(0)
    q1, q2 = 10 ** rng.uniform(*({np.float32: (10, 36), np.float64: (20, 300)}[dtype]), size=(2, 200))
    k = rng.choice([-1.0, 0.3, 1.0], 200) * np.sqrt(q1) * np.sqrt(q2)
    k, q1, q2 = (a.astype(dtype) for a in (k, q1, q2))
    with jax.enable_x64(dtype == np.float64):
        slope, limit = (activation.dual_derivative(k, q1, q2) for activation in (gpntk.GELU(), gpntk.ReLU()))
    # It approaches the limit like q^(-1/2).
    np.testing.assert_allclose(slope, limit, atol=np.finfo(dtype).eps ** 0.5 / 8)


@pytest.mark.parametrize(("dtype", "size"), [(np.float32, 1e-8), (np.float64, 1e-16)])
def test_sines_of_small_variance_keep_relative_accuracy(dtype, size):
    """sin(x) = x for small x: the moments of it are those of the identity."""
    k, q1, q2 = (dtype(size * number) for number in (-0.5, 1.0, 0.7))
    with jax.enable_x64(dtype == np.float64):
        moments = [
            gpntk.Sin().dual(k, q1, q2),
            gpntk.Sin().dual(-k, q1, q2),
            -gpntk.Cos().dual_derivative(k, q1, q2),
        ]
    np.testing.assert_allclose(np.array(moments) / k, [1.0, -1.0, -1.0], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("k", [10, 40, 90])
def test_hermite_dual_is_a_power_at_unit_variance(k):
    """Mehler's formula; a sum over powers would lose all digits at high degree."""
    rho = np.array([0.9, -0.5, 0.0, 1.0])
    np.testing.assert_allclose(gpntk.Hermite(k).dual(rho, 1.0, 1.0), rho**k, rtol=1e-13, atol=1e-300)
    x = np.linspace(-2.0, 2.0, 5)
    expected = special.eval_hermitenorm(k, x) / np.sqrt(special.gamma(k + 1.0))
    np.testing.assert_allclose(gpntk.Hermite(k)(x), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.usefixtures("x64")
@one_series
def test_gradients(name):
    activation = CASES[name][0]
    gradient = jax.jit(jax.vmap(jax.grad(activation.dual, argnums=(0, 1, 2))))
    # Generic, coincident, antipodal, and with inputs of zero variance.
    k = np.array([0.3, -0.8, 1.3, -1.3, 0.0, 0.0])
    q1 = np.array([0.9, 1.2, 1.3, 1.3, 0.0, 0.0])
    q2 = np.array([1.4, 0.9, 1.3, 1.3, 1.1, 0.0])
    slopes = np.stack(gradient(k, q1, q2))
    assert np.isfinite(slopes).all()
    if name != "sign":
        # Price's theorem; also at coincidence, where series are differentiated at the end of their range.
        derivative = activation.dual_derivative(k, q1, q2)
        # Inputs of zero variance are the tip of a cone for kinked activations.
        smooth = q1 * q2 > 0 if name in KINKED else np.full(k.shape, True)
        np.testing.assert_allclose(slopes[0][smooth], derivative[smooth], rtol=1e-9, atol=1e-12)
    h = 1e-5
    for i in range(2):
        point = np.array([k[i], q1[i], q2[i]])
        steps = point + h * np.concatenate([np.eye(3), -np.eye(3)])
        up_down = both(activation, *steps.T)[0]
        # Central differences: h^2 times third derivatives, and eps / h of rounding.
        np.testing.assert_allclose(slopes[:, i], (up_down[:3] - up_down[3:]) / (2 * h), rtol=3e-8, atol=3e-9)


@pytest.mark.usefixtures("x64")
@one_series
def test_gradients_along_coincident_pairs(name):
    """What hyperparameters see of a Gram diagonal, of duplicates and antipodes: k = +-q1 = +-q2 all along."""
    activation = CASES[name][0]
    sign = jnp.array([1.0, -1.0])

    @jax.jit
    def along(q):
        return jnp.stack([m(sign * q, q, q) for m in (activation.dual, activation.dual_derivative)])

    q, h = 1.3, 1e-5
    difference = (along(q + h) - along(q - h)) / (2 * h)
    np.testing.assert_allclose(jax.jacrev(along)(q), difference, rtol=3e-8, atol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "name", ["erf", "gelu", "sin", "gaussian", "exp", pytest.param("tanh", marks=pytest.mark.slow)]
)
def test_second_derivatives_at_coincidence(name):
    """E[s'' s''], by differentiating the formula and by quadrature."""
    activation = CASES[name][0]
    q, h = 1.1, 1e-3
    second = CASES[name][2]

    def curvature(x):
        return (8 * (second(x + h) - second(x - h)) - second(x + 2 * h) + second(x - 2 * h)) / (12 * h)

    for k, phi in ((q, 0.0), (-q, np.pi), (0.0, 0.5 * np.pi)):
        value = jax.grad(jax.grad(activation.dual))(k, q, q)
        # Differences of order h^4 and eps / h.
        np.testing.assert_allclose(value, mean_of_product(curvature, q, q, phi), rtol=1e-9, atol=1e-10)


@one_series
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), log_scale=st.floats(-2.0, 1.0))
def test_gram_matrices_are_symmetric_and_psd(name, seed, log_scale):
    x = np.random.default_rng(seed).normal(size=(6, 3)) * 10**log_scale
    x[4], x[5] = x[0], -x[1]
    cov = x @ x.T / 3
    q = np.diag(cov)
    with jax.enable_x64(True):
        values = both(CASES[name][0], cov, q[:, None], q[None, :])
    for gram in values:
        np.testing.assert_allclose(gram, gram.T, rtol=1e-13, atol=1e-15 * np.abs(gram).max())
        # Roots of rounding errors where kinked activations meet duplicates.
        assert np.linalg.eigvalsh(0.5 * (gram + gram.T))[0] >= -1e-7 * np.abs(gram).max()


@every_activation
def test_call_and_its_slope(name):
    activation, function, slope = CASES[name]
    x = np.array([-3.0, -0.7, 0.0, 0.4, 2.5])
    with jax.enable_x64(True):
        np.testing.assert_allclose(activation(jnp.asarray(x)), function(x), rtol=1e-14, atol=1e-15)
        slopes = jax.vmap(jax.grad(lambda t: activation(t)))(jnp.asarray(x))
        # At a kink, the mean of both sides.
        np.testing.assert_allclose(slopes, slope(x), rtol=1e-13, atol=1e-15)
    assert activation(jnp.asarray(x, jnp.float32)).dtype == jnp.float32


def test_dual_takes_numbers_and_arrays():
    activation = gpntk.Erf()
    expected = 2 / np.pi * np.arcsin(2 * 0.5 / np.sqrt(3 * 5))
    assert float(activation.dual(0.5, 1, 2)) == pytest.approx(expected, rel=1e-6)
    assert activation.dual(0.5, 1, 2).dtype == jnp.float32
    assert activation.dual(jnp.float32(0.5), 1, np.int64(2)).dtype == jnp.float32
    assert activation.dual(np.full((4, 1), 0.5), np.ones(3), 2.0).shape == (4, 3)
    assert activation.dual_derivative(jnp.zeros((2, 1, 3)), 1.0, jnp.ones((4, 1))).shape == (2, 4, 3)
    with jax.enable_x64(True):
        value = activation.dual(jnp.float32(0.5), np.float64(1.0), 2)
        assert value.dtype == jnp.float64
        assert float(value) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, -1.0, 1.0), "`q1` must be a finite variance >= 0, got -1"),
        ((0.0, 1.0, np.nan), "`q2` must be finite, got NaN"),
        ((0.0, np.inf, 1.0), "`q1` must be finite, got infinity"),
        ((1.5, 1.0, 1.0), "`k` must be at most sqrt"),
        ((np.nan, 1.0, 1.0), "`k` must be finite, got NaN"),
    ],
)
def test_impossible_moments_are_refused(arguments, message):
    for method in (gpntk.ReLU().dual, gpntk.Tanh().dual_derivative):
        with pytest.raises(ValueError, match=message):
            method(*arguments)


@pytest.mark.parametrize("activation", [gpntk.Gaussian(b=1.0), gpntk.Exp(b=40.0), gpntk.Monomial(60)], ids=repr)
def test_moments_that_diverge_or_overflow_are_refused(activation):
    with pytest.raises(ValueError, match=r"The Gaussian moments of .* are not finite"):
        activation.dual(jnp.float32(0.5), jnp.float32(0.5), jnp.float32(0.5))


@pytest.mark.parametrize("fn", [lambda x: 1.0 / x, lambda x: jnp.log(jnp.abs(x)), jnp.sign])
def test_functions_whose_series_fails_are_refused(fn):
    with pytest.raises(ValueError, match=r"The Gaussian moments of .* cannot be computed"):
        gpntk.nngp_and_ntk(gpntk.MLP(1, gpntk.Elementwise(fn)), np.eye(3))


@pytest.mark.parametrize("k", [160, 200, 1000])
def test_hermite_polynomials_of_high_degree_have_unit_norm(k):
    assert float(gpntk.Hermite(k).dual(jnp.float32(1), jnp.float32(1), jnp.float32(1))) == 1.0


def test_steep_error_functions_become_signs():
    # 2/pi arcsin(1/2) = 1/3, the dual of the sign.
    steep = gpntk.Erf(b=1e18).dual(jnp.float32(0.5), jnp.float32(1), jnp.float32(1))
    assert float(steep) == pytest.approx(1 / 3, rel=1e-6)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: gpntk.Erf(b=1e200), ValueError, "`b` must be a real number of size at most 1e150, got 1e"),
        (lambda: gpntk.Monomial(400), ValueError, "`k` must be of a lower degree or smaller"),
        (lambda: gpntk.Elementwise(np.tanh), TypeError, "`fn` must be made of functions of jax.numpy"),
        (lambda: gpntk.ABReLU("x", 1), TypeError, "`a` must be a finite real number"),
        (lambda: gpntk.ABReLU(1, np.nan), ValueError, "`b` must be a finite real number"),
        (lambda: gpntk.LeakyReLU(None), TypeError, "`negative_slope` must be"),
        (lambda: gpntk.Erf(b=np.inf), ValueError, "`b` must be a finite real number"),
        (lambda: gpntk.Sin(c="0"), TypeError, "`c` must be"),
        (lambda: gpntk.Rbf(-1), ValueError, "`gamma` must be a finite real number > 0, got -1"),
        (lambda: gpntk.Rbf(0.0), ValueError, "`gamma` must be a finite real number > 0, got 0"),
        (lambda: gpntk.Monomial(-1), ValueError, "`k` must be an integer >= 0, got -1"),
        (lambda: gpntk.Monomial(2.0), TypeError, "`k` must be an integer >= 0, got 2.0"),
        (lambda: gpntk.Hermite(True), TypeError, "`k` must be an integer >= 0"),
        (lambda: gpntk.Polynomial([]), ValueError, "`coefficients` must hold at least one number"),
        (lambda: gpntk.Polynomial([1.0, "a"]), TypeError, r"`coefficients\[1\]` must be"),
        (lambda: gpntk.Polynomial(3.0), TypeError, "`coefficients` must be"),
        (lambda: gpntk.Elementwise(3), TypeError, "`fn` must be a function of one array, got 3"),
        (lambda: gpntk.Elementwise(jnp.sum), ValueError, "`fn` must map an array"),
    ],
)
def test_bad_parameters_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("name", CASES)
def test_of_nothing_there_are_no_moments(name):
    activation = CASES[name][0]
    for moments in (activation.dual, activation.dual_derivative):
        assert moments(np.zeros((0, 2)), 1.0, np.ones(2)).shape == (0, 2)
