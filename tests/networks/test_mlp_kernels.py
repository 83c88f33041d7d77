"""Kernels of fully connected networks against an independent recursion, and where rounding hurts most."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_moments import angle, mean_of_product
from mpmath import mp, mpf
from scipy import special

import gpntk

C_W, C_B = 1.7, 0.2
FUNCTIONS = {
    "relu": (gpntk.ReLU(), lambda x: np.maximum(x, 0), lambda x: np.heaviside(x, 0.5)),
    "erf": (gpntk.Erf(), special.erf, lambda x: 2 / np.sqrt(np.pi) * np.exp(-(x**2))),
    "gelu": (
        gpntk.GELU(),
        lambda x: x * special.ndtr(x),
        lambda x: special.ndtr(x) + x * np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi),
    ),
    "tanh": (gpntk.Tanh(), np.tanh, lambda x: 1 / np.cosh(x) ** 2),
}
every_activation = pytest.mark.parametrize("name", FUNCTIONS)
# Gradients of the series take long to compile.
series_are_slow = pytest.mark.parametrize(
    "name", ["relu", "erf", "gelu", pytest.param("tanh", marks=pytest.mark.slow)]
)
every_depth = pytest.mark.parametrize("depth", [1, 3])


def recursion(functions, x, y, depth, relation=None):
    """NNGP and NTK of one pair of inputs, every moment by quadrature; `relation` is 1 or -1 where y = +-x."""
    function, derivative = functions
    k, q1, q2 = (C_B + C_W * float(np.mean(a * b)) for a, b in ((x, y), (x, x), (y, y)))
    theta = k
    for layer in range(depth):
        phi = 0.0 if relation == 1 else angle(k, q1, q2)
        k = C_B + C_W * mean_of_product(function, q1, q2, phi)
        theta = k + C_W * mean_of_product(derivative, q1, q2, phi) * theta
        if layer < depth - 1:
            q1, q2 = (C_B + C_W * mean_of_product(function, q, q, 0.0) for q in (q1, q2))
    return k, theta


def difficult_rows(d, rng, dtype):
    """Generic rows, a zero row, a duplicate, an antipode and a constant row with its duplicate."""
    x = rng.normal(size=(7, d)).astype(dtype)
    x[2], x[3], x[4] = 0.0, x[0], -x[1]
    x[5:] = dtype(0.1)
    return x


def kernels(net, *x):
    return np.stack(gpntk.nngp_and_ntk(net, *map(jnp.asarray, x)))


@pytest.mark.usefixtures("x64")
@every_activation
@every_depth
def test_kernels_match_the_recursion(name, depth):
    activation, *functions = FUNCTIONS[name]
    x = difficult_rows(5, np.random.default_rng(0), np.float64)
    values = kernels(gpntk.MLP(depth, activation, C_W, C_B), x)
    for i, j, relation in (
        (0, 1, None),
        (0, 2, None),
        (1, 4, None),
        (2, 2, 1),
        (0, 3, 1),
        (5, 6, 1),
        (4, 5, None),
    ):
        # Sums of 1e5 terms per moment; tanh at these variances converges to rounding.
        np.testing.assert_allclose(
            values[:, i, j], recursion(functions, x[i], x[j], depth, relation), rtol=2e-12, err_msg=str((i, j))
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "depth"), [("relu", 1), *((name, 3) for name in FUNCTIONS)])
def test_duplicates_and_antipodes_are_exact_in_many_dimensions(name, depth, dtype):
    """A matrix product rounds <x, x> in an order of its own; kinks would turn that into its root."""
    with jax.enable_x64(dtype == np.float64):
        x = difficult_rows(784, np.random.default_rng(1), dtype)
        net = gpntk.MLP(depth, FUNCTIONS[name][0], 2.0)
        gram, cross = kernels(net, x), kernels(net, x, x)
    assert gram.dtype == dtype
    assert (gram == gram.swapaxes(1, 2)).all()
    eps = 1e-12 if dtype == np.float64 else 2e-6
    for values in (gram, cross):
        for i, j in ((0, 3), (5, 6)):
            np.testing.assert_allclose(values[:, i, j], gram[:, i, i], rtol=eps)
            np.testing.assert_allclose(values[:, i], values[:, j], rtol=eps, atol=1e-30)
        np.testing.assert_allclose(
            np.diagonal(cross, axis1=1, axis2=2), np.diagonal(gram, axis1=1, axis2=2), rtol=eps
        )
    if name in ("erf", "tanh"):
        # Odd functions without biases: an antipode is minus the duplicate.
        np.testing.assert_allclose(gram[0, 1, 4], -gram[0, 1, 1], rtol=eps)
    if name == "relu" and depth == 1:
        # Opposite inputs never activate the same neuron.
        np.testing.assert_array_less(np.abs(gram[:, 1, 4]), 1e-30)


def exact_relu(x, y, depth):
    """The recursion of Cho & Saul in 60 digits, of these very floats."""
    with mp.workdps(60):
        dot = lambda a, b: 2 * mp.fsum(mpf(float(s)) * mpf(float(t)) for s, t in zip(a, b, strict=True)) / len(a)  # noqa: E731
        k, q1, q2 = dot(x, y), dot(x, x), dot(y, y)
        theta = k
        for _ in range(depth):
            rho = k / mp.sqrt(q1 * q2)
            t = mp.acos(min(rho, mpf(1)))
            k = mp.sqrt(q1 * q2) * (mp.sin(t) + (mp.pi - t) * mp.cos(t)) / mp.pi
            theta = k + (mp.pi - t) / mp.pi * theta
        return float(k), float(theta)


@pytest.mark.usefixtures("x64")
@every_depth
@pytest.mark.parametrize("d", [3, 784])
def test_relu_next_to_coincidence(depth, d):
    """Kinks cost half of the digits: an error of 4 sqrt(eps) in the angle of each layer is allowed."""
    rng = np.random.default_rng(2)
    x = np.full(d, 0.1) if d == 784 else rng.normal(size=d)
    direction = rng.normal(size=d)
    for step in (1e-4, 1e-6, 1e-7, 1e-8, 1e-10):
        y = x + step * direction
        values = kernels(gpntk.MLP(depth, gpntk.ReLU(), 2.0), np.stack([x, y]))[:, 0, 1]
        np.testing.assert_allclose(values, exact_relu(x, y, depth), rtol=4 * np.sqrt(2.2e-16) * depth)
    for factor in (2.0, 0.3, 1 + 1e-9):
        values = kernels(gpntk.MLP(depth, gpntk.ReLU(), 2.0), np.stack([x, factor * x]))[:, 0, 1]
        np.testing.assert_allclose(values, exact_relu(x, factor * x, depth), rtol=4 * np.sqrt(2.2e-16) * depth)


@pytest.mark.usefixtures("x64")
@series_are_slow
def test_input_gradients(name):
    """Finite everywhere, coincident inputs and zero rows among them; right for smooth activations."""
    net = gpntk.MLP(2, FUNCTIONS[name][0], C_W, C_B)
    x = jnp.asarray(difficult_rows(3, np.random.default_rng(3), np.float64)[:5])

    @jax.jit
    def total(x):
        """Of all pairs twice: as a Gram matrix, which knows its diagonal, and as one that does not."""
        matrices = (*gpntk.nngp_and_ntk(net, x), *gpntk.nngp_and_ntk(net, x, x))
        return sum(jnp.sum(jnp.sin(1 + k)) for k in matrices)

    gradient = jax.jit(jax.grad(total))(x)
    assert np.isfinite(gradient).all()
    if name != "relu":
        direction = np.random.default_rng(4).normal(size=x.shape)
        h = 1e-5
        difference = (total(x + h * direction) - total(x - h * direction)) / (2 * h)
        np.testing.assert_allclose(jnp.sum(gradient * direction), difference, rtol=1e-7)


@pytest.mark.usefixtures("x64")
@series_are_slow
def test_hyperparameter_gradients_are_exact(name):
    """On the diagonal, at duplicates, antipodes and zero rows alike, by central differences."""
    activation = FUNCTIONS[name][0]
    x = jnp.asarray(difficult_rows(40, np.random.default_rng(5), np.float64))

    @jax.jit
    def both(variances):
        return jnp.stack(gpntk.nngp_and_ntk(gpntk.MLP(2, activation, variances[0], variances[1]), x))

    point, h = np.array([C_W, C_B]), 1e-5
    gradient = jax.jit(jax.jacfwd(both))(point)
    for i, unit in enumerate(np.eye(2)):
        difference = (both(point + h * unit) - both(point - h * unit)) / (2 * h)
        # Twice the angle's 4 sqrt(eps) would be 1e-7; equal directions cancel it.
        np.testing.assert_allclose(gradient[..., i], difference, rtol=2e-7, atol=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["relu", "erf"])
def test_very_deep_networks(name, dtype):
    with jax.enable_x64(dtype == np.float64):
        x = difficult_rows(20, np.random.default_rng(6), dtype)[[0, 1, 3, 4, 5, 6]]
        weight_variance = 2.0 if name == "relu" else 1.5
        nngp, ntk = kernels(gpntk.MLP(100, FUNCTIONS[name][0], weight_variance), x)
    assert np.isfinite(nngp).all()
    eps = 100 * np.finfo(dtype).eps
    if name == "relu":
        # The variance is a fixed point, and each of the 101 layers adds it to the NTK.
        np.testing.assert_allclose(np.diag(nngp), 2 * np.mean(x.astype(float) ** 2, 1), rtol=2 * eps)
        np.testing.assert_allclose(np.diag(ntk), 101 * np.diag(nngp), rtol=2 * eps)
    for i, j in ((0, 2), (4, 5)):
        np.testing.assert_allclose(nngp[i, j], nngp[i, i], rtol=eps)
        np.testing.assert_allclose(ntk[i, j], ntk[i, i], rtol=eps)


@pytest.mark.parametrize(
    ("activation", "scale"),
    [(gpntk.Gaussian(b=1.0), 1.0), (gpntk.Exp(), 30.0), (gpntk.Elementwise(lambda x: jnp.exp(x**2)), 2.0)],
)
def test_diverging_moments_are_refused(activation, scale):
    x = jnp.array([[0.01, 0.01], [scale, scale]])
    net = gpntk.MLP(1, activation, 1.0)
    with pytest.raises(ValueError, match="not finite for 1 of 2 inputs, the first at row 1"):
        gpntk.nngp_and_ntk(net, x)
    with pytest.raises(ValueError, match=r"not finite .* Scale the inputs down or lower `weight_variance`"):
        gpntk.NTK(net).gram(x)
    with pytest.raises(ValueError, match="not finite for 1 of 1 inputs"):
        gpntk.NTK(net)(x[0], x[1])
    # Under jit values cannot be looked at: they are not finite, and nothing else happens.
    nngp, _ = jax.jit(lambda x: gpntk.nngp_and_ntk(net, x))(x)
    assert np.isfinite(nngp[0, 0])
    assert not np.isfinite(nngp[1, 1])


@pytest.mark.parametrize(
    ("activation", "scale", "warns"),
    [
        (gpntk.Tanh(), 3.0, False),
        (gpntk.Tanh(), 20.0, True),
        (gpntk.Softplus(), 10.0, False),
        (gpntk.Elementwise(lambda x: jnp.maximum(x, 0)), 1.0, True),
        (gpntk.Elementwise(lambda x: jnp.clip(x, -1, 1)), 1.0, True),
        (gpntk.ReLU(), 1e6, False),
    ],
)
def test_inaccurate_series_warn(activation, scale, warns):
    x = scale * jnp.ones((2, 3))
    net = gpntk.MLP(2, activation, 1.0)
    if warns:
        with pytest.warns(UserWarning, match="series that is not accurate at these inputs"):
            net.check_features(net.features(x))
    else:  # and any warning would be an error
        net.check_features(net.features(x))


@pytest.mark.parametrize(
    "activation", [gpntk.Erf(), gpntk.GELU(), gpntk.Sin(c=0.3), gpntk.Gaussian(), gpntk.Rbf()], ids=repr
)
def test_second_derivatives_at_an_input_of_zero(activation, x64):
    """Without biases its variance is zero and no correlation exists, but smooth kernels are smooth there."""
    kernel = gpntk.NTK(gpntk.MLP(2, activation, weight_variance=0.8))
    y, step, h = jnp.array([0.7, -1.2]), jnp.eye(2), 1e-4
    for value in (lambda x: kernel(x, y), lambda x: kernel(x, x)):
        gradient = jax.jit(jax.vmap(jax.grad(value)))
        difference = (gradient(h * step) - gradient(-h * step)) / (2 * h)
        np.testing.assert_allclose(jax.hessian(value)(jnp.zeros(2)), difference, atol=1e-6)


def test_networks_print_as_they_are_typed():
    net = gpntk.MLP(3, gpntk.Erf(), bias_variance=0.1)
    assert repr(net) == "MLP(depth=3, activation=Erf(a=1.0, b=1.0, c=0.0), bias_variance=0.1)"
    assert repr(gpntk.MLP()) == "MLP()"
    assert f"net={net!r}" in repr(gpntk.NTK(net) + gpntk.NNGP(net))
    assert net.get_params()["bias_variance"] == 0.1
    assert jax.jit(lambda x: (repr(net), x)[1])(1.0) == 1.0
