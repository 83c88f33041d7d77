"""Order-1/n statistics of inputs that are almost parallel, where derivatives of kinked duals diverge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp, mpf

import gpntk

DISTANCES = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7]


def at_angle(angle):
    return np.array([[1.0, 0.0], [np.cos(angle), np.sin(angle)]])


def relu_shifts(angle):
    r"""K1 and theta1 of two ReLU layers at criticality for unit inputs, in 50 digits, from the formulas.

    One random layer has $\hat K_{ab} = \frac{2}{n}\sum\sigma_a\sigma_b$ and the next maps it by the arc-cosine
    kernels, so that the shifts are half of their second derivatives times moments of four ReLUs.
    """
    with mp.workdps(50):
        phi, pi = mpf(angle), mp.pi
        integral = lambda f: mp.quad(f, [phi - pi / 2, pi / 2]) / (2 * pi)  # noqa: E731
        # E[relu(u)^m relu(v)^n], with u = r cos(t) and v = r cos(t - phi); K_aa = K_bb = 1 in the first layer / 2.
        radial = {0: mpf(1), 2: mpf(2), 4: mpf(8)}
        moment = lambda m, n: radial[m + n] * integral(lambda t: mp.cos(t) ** m * mp.cos(t - phi) ** n)  # noqa: E731
        q, scale = mpf(2), mpf(4)
        one = {"a": mpf(1) / 2, "b": mpf(1) / 2, "k": moment(1, 1)}
        powers = {"a": (2, 0), "b": (0, 2), "k": (1, 1)}
        single = radial[4] * mp.quad(lambda t: mp.cos(t) ** 4, [-pi / 2, pi / 2]) / (2 * pi)

        def source(i, j):
            if i == j and i != "k":
                return single - one[i] ** 2
            m, n = (x + y for x, y in zip(powers[i], powers[j], strict=True))
            return moment(m, n) - one[i] * one[j]

        # Variances of preactivations are 2, so that a product of two activations has a factor 2 and C_W another.
        V = {i + j: scale * q**2 * source(i, j) for i in "kab" for j in "kab"}
        D = {i: scale * (q * q * (source(i, "k") + _slopes(phi, i, one, moment))) for i in "kab"}
        F = {p: scale * q * q * _mixed(phi, p) for p in ("aa", "ab", "bb")}
        k = 2 * q * one["k"]
        theta = k + 2 * (1 - phi / pi) / 2 * (q * mp.cos(phi))
        dual, slope = _relu_dual, _relu_slope
        point = (k, q, q)
        hessian = lambda f: sum(  # noqa: E731
            mp.diff(f, point, tuple((x == i) + (x == j) for x in "kab")) * V[i + j] for i in "kab" for j in "kab"
        )
        gradient = {i: mp.diff(slope, point, tuple(int(x == i) for x in "kab")) for i in "kab"}
        kernel_shift = hessian(dual)
        ntk_shift = kernel_shift + theta * hessian(slope) + 2 * sum(gradient[i] * D[i] for i in "kab")
        ntk_shift += 2 * (2 * gradient["k"] * F["ab"] + 2 * gradient["a"] * F["aa"] + 2 * gradient["b"] * F["bb"])
        return float(kernel_shift), float(ntk_shift)


def _relu_dual(k, a, b):
    root = mp.sqrt(a * b - k * k)
    return (root + k * (mp.pi - mp.atan2(root, k))) / (2 * mp.pi)


def _relu_slope(k, a, b):
    return (mp.pi - mp.atan2(mp.sqrt(a * b - k * k), k)) / (2 * mp.pi)


def _slopes(phi, entry, one, moment):
    """Covariance of an entry with s'_a s'_b, times the NTK of the first layer over q, which is cos(phi)."""
    both = (mp.pi - phi) / (2 * mp.pi)
    powers = {"a": (2, 0), "b": (0, 2), "k": (1, 1)}[entry]
    return (moment(*powers) - one[entry] * both) * mp.cos(phi)


def _mixed(phi, entries):
    """Moments of two activations and both slopes, times the NTK of the first layer over q."""
    m, n = entries.count("a"), entries.count("b")
    f = lambda t: mp.cos(t) ** m * mp.cos(t - phi) ** n  # noqa: E731
    return 2 * mp.quad(f, [phi - mp.pi / 2, mp.pi / 2]) / (2 * mp.pi) * mp.cos(phi)


@pytest.mark.parametrize("angle", [0.7, *DISTANCES])
def test_relu_against_fifty_digits(angle):
    c = gpntk.cumulants(gpntk.MLP(2, gpntk.ReLU()), np.sqrt(2.0) * at_angle(angle), rank=1)
    kernel_shift, ntk_shift = relu_shifts(angle)
    # The angle itself is known to eps / angle^2 from a correlation in double precision.
    relative = 1e-11 + 4 * np.finfo(float).eps / angle**2
    assert c.K1[0, 1] == pytest.approx(kernel_shift, rel=relative, abs=1e-15 / angle)
    assert c.theta1[0, 1] == pytest.approx(ntk_shift, rel=relative, abs=1e-14 / angle)


@pytest.mark.parametrize(
    "activation", [gpntk.ReLU(), gpntk.ABReLU(-0.5, 1.0), gpntk.Erf(), gpntk.GELU()], ids=repr
)
@pytest.mark.parametrize("bias_variance", [0.0, 0.3])
def test_statistics_are_continuous(activation, bias_variance):
    """Shifts of a pair approach those of one input, at the rate of the angle; 1e-12 counts as coincidence."""
    net = gpntk.MLP(3, activation, weight_variance=1.7, bias_variance=bias_variance)
    x = np.concatenate([at_angle(d) for d in (0.0, *DISTANCES, 1e-8, 1e-10, 1e-12)])
    c = gpntk.cumulants(net, x, rank=1)
    pairs = np.arange(0, len(x), 2)
    for name in ("K1", "theta1"):
        values = getattr(c, name)[pairs, pairs + 1]
        scale = np.linalg.norm(getattr(c, "K" if name == "K1" else "theta")[0, 0])
        gaps = np.abs(values - values[0]) / scale
        assert np.all(np.isfinite(values))
        assert gaps[1] > 0
        assert np.all(gaps[1:7] < 3 * gaps[1] * np.array(DISTANCES) / DISTANCES[0] + 1e-9), name
        assert np.all(gaps[7:] < 1e-6), name


@pytest.mark.parametrize("angle", [1e-2, 1e-5, 1e-7])
def test_tensors_of_almost_parallel_inputs(x64, angle):
    net = gpntk.MLP(3, gpntk.ReLU(), weight_variance=1.7, bias_variance=0.2)
    pair, one = gpntk.cumulants(net, at_angle(angle), tolerance=1e-3), gpntk.cumulants(net, at_angle(0.0)[:1])
    for name in ("V", "D", "F", "A", "B"):
        exact = np.broadcast_to(getattr(one, name), (2, 2, 2, 2))
        gap = np.linalg.norm(getattr(pair, name) - exact)
        assert gap < 8 * pair.error_estimate[name] + 40 * angle * np.linalg.norm(exact), name
        assert pair.error_estimate[name] < 2e-3 * np.linalg.norm(exact), name


def test_input_gradients_are_finite_at_coincidence(x64):
    net = gpntk.MLP(2, gpntk.ReLU(), weight_variance=1.7, bias_variance=0.2)

    def total(x):
        return jnp.sum(gpntk.NTK(net, width=100.0).gram(x).as_matrix())

    assert np.isfinite(jax.grad(total)(jnp.array([[1.0, 0.5], [1.0, 0.5], [0.0, 0.0]]))).all()
