"""The quartic action: its density by quadrature, its moments in perturbation theory, sampling, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import MCMC, NUTS

import gpntk
from gpntk import QuarticAction

X = np.random.default_rng(0).normal(size=(2, 2))
NET = gpntk.MLP(2, gpntk.Erf(), weight_variance=1.7, bias_variance=0.2)


@pytest.fixture(scope="module")
def statistics():
    return gpntk.cumulants(NET, X)


def by_quadrature(action):
    """Mass, second and fourth moments of two outputs-by-inputs numbers on a polar grid of the support."""
    # Gauss-Legendre in the radius, trapezoidal in the angle: both converge geometrically.
    nodes, weights = np.polynomial.legendre.leggauss(200)
    outermost = min(np.sqrt(action.squared_radius), 14.0) * (1 - 1e-12)
    radius, weights = 0.5 * outermost * (nodes + 1), 0.5 * outermost * weights
    angle = 2 * np.pi * np.arange(64) / 64
    whitened = np.stack([np.outer(radius, f(angle)).ravel() for f in (np.cos, np.sin)])
    factor = np.linalg.cholesky(np.linalg.inv(action.g))
    z = factor @ whitened.T.reshape(-1, *action.event_shape)
    measure = (
        np.outer(weights * radius, np.full(64, 2 * np.pi / 64)).ravel() * np.linalg.det(factor) ** action.n_outputs
    )
    measure = measure * np.exp(action.log_prob(jnp.asarray(z)))
    flat = z.reshape(-1, 2)
    second = np.einsum("s,sa,sb->ab", measure, flat, flat) / measure.sum()
    fourth = np.einsum("s,sa,sb,sc,sd->abcd", measure, flat, flat, flat, flat) / measure.sum()
    return measure.sum(), second, fourth


def connected(second, fourth):
    pairs = [np.einsum(f"{i},{j}->abcd", second, second) for i, j in (("ab", "cd"), ("ac", "bd"), ("ad", "bc"))]
    return fourth - sum(pairs)


def test_moments_in_perturbation_theory(x64, statistics):
    """N (moment - leading order) over n = 800 to 6400: the limit is the coefficient, the rest falls as 1/n."""
    c, widths = statistics, np.array([800, 1600, 3200, 6400])
    actions = [QuarticAction.from_cumulants(c, n) for n in widths]
    mass, second, fourth = zip(*map(by_quadrature, actions), strict=True)
    two_point = np.stack([n * (s - c.K) for n, s in zip(widths, second, strict=True)])
    four_point = np.stack([n * connected(s, f) for n, s, f in zip(widths, second, fourth, strict=True)])
    # E^c[z_1 z_2 z_3 z_4] of one output is V_(12)(34) and its two other pairings.
    expected = c.V + c.V.transpose(0, 2, 1, 3) + c.V.transpose(0, 2, 3, 1)
    for values, limit in ((two_point, c.K1), (four_point, expected)):
        flat = values.reshape(len(widths), -1)
        fitted = np.polynomial.polynomial.polyfit(1.0 / widths, flat, 2)[0].reshape(limit.shape)
        np.testing.assert_allclose(fitted, limit, atol=2e-4 * np.abs(expected).max())
        errors = np.linalg.norm(flat - limit.ravel(), axis=1)
        np.testing.assert_allclose(errors[:-1] / errors[1:], 2.0, rtol=0.1)
    # The normalisation is exact to order 1/n: what is left falls as 1/n^2.
    left = np.abs(np.array(mass) - 1.0)
    np.testing.assert_allclose(left[:-1] / left[1:], 4.0, rtol=0.15)
    assert left[0] < 1e-3


def test_random_kernel_comes_back_from_the_couplings(x64, statistics):
    c = statistics
    for n_outputs in (1, 3):
        errors = []
        for width in (1000, 2000):
            mean, covariance = QuarticAction.from_cumulants(c, width, n_outputs).random_kernel()
            errors.append(
                [np.abs(width * (mean - c.K) - c.K1).max(), np.abs(width * covariance - c.V).max() / c.V.max()]
            )
        assert np.max(errors[1]) < 0.02
        np.testing.assert_allclose(np.divide(*errors), 2.0, rtol=0.05)


def test_two_outputs_share_the_random_kernel(x64, statistics):
    """At one input, E[z_1^2 z_2^2] - E[z_1^2] E[z_2^2] of two outputs is V/n."""
    c = gpntk.cumulants(NET, X[:1])
    widths = np.array([800, 1600, 3200])
    values = []
    for width in widths:
        _, second, fourth = by_quadrature(QuarticAction.from_cumulants(c, width, 2))
        values.append(width * (fourth[0, 0, 1, 1] - second[0, 0] * second[1, 1]))
    fitted = np.polynomial.polynomial.polyfit(1.0 / widths, values, 2)[0]
    assert fitted == pytest.approx(c.V.item(), rel=2e-3)


def test_gradient_of_the_density(x64, statistics):
    action = QuarticAction.from_cumulants(statistics, 100, 2)
    z = 0.3 * np.random.default_rng(1).normal(size=(2, 2))
    second = z @ z.T
    force = action.g @ z - 0.5 * np.einsum("abcd,cd->ab", action.v, second) @ z
    np.testing.assert_allclose(jax.grad(action.log_prob)(jnp.asarray(z)), -force, rtol=1e-12)


def test_no_couplings_is_a_gaussian(x64, statistics):
    action = QuarticAction.from_cumulants(statistics, np.inf)
    z = np.random.default_rng(1).normal(size=(5, 2, 1))
    gaussian = numpyro.distributions.MultivariateNormal(covariance_matrix=statistics.K)
    np.testing.assert_allclose(action.log_prob(jnp.asarray(z)), gaussian.log_prob(z[..., 0]), rtol=1e-10)
    np.testing.assert_allclose(action.variance[:, 0], np.diag(statistics.K), rtol=1e-10)
    assert np.isfinite(action.sample(jax.random.key(0), (3,))).all()


@pytest.mark.parametrize("draw", ["sample", "NUTS"])
def test_draws_have_the_moments_of_the_density(x64, statistics, draw):
    action = QuarticAction.from_cumulants(statistics, 60)
    _, second, fourth = by_quadrature(action)
    if draw == "sample":
        z = np.asarray(action.sample(jax.random.key(0), (40_000,)))
        effective = len(z)
    else:
        sampler = NUTS(lambda: numpyro.sample("z", action))
        mcmc = MCMC(sampler, num_warmup=300, num_samples=4000, progress_bar=False)
        mcmc.run(jax.random.key(0))
        z = np.asarray(mcmc.get_samples()["z"])
        ess = numpyro.diagnostics.effective_sample_size(np.einsum("sa,sa->s", z[..., 0], z[..., 0])[None])
        effective = min(len(z), float(ess))
        assert not mcmc.get_extra_fields()["diverging"].any()
    assert np.asarray(action.support(z)).all()
    products = np.einsum("sa,sb->sab", z[..., 0], z[..., 0])
    for power, expected in ((products, second), (products**2, np.einsum("aabb->ab", fourth))):
        error = power.std(0) / effective**0.5
        assert np.all(np.abs(power.mean(0) - expected) < 4 * error)


def test_draws_of_many_outputs(x64, statistics):
    """Twelve numbers each, against importance sampling from the Gaussian."""
    action = QuarticAction.from_cumulants(statistics, 200, 6)
    squared_norm = lambda z: np.einsum("sai,ab,sbi->s", z, action.g, z)  # noqa: E731
    drawn = squared_norm(np.asarray(action.sample(jax.random.key(0), (20_000,))))
    factor = np.linalg.cholesky(np.linalg.inv(action.g))
    z = factor @ np.random.default_rng(4).normal(size=(200_000, *action.event_shape))
    value = squared_norm(z)
    weights = np.exp(0.5 * value - np.asarray(action.action(z))) * (value < action.squared_radius)
    for power in (1, 2, 3):
        expected = np.average(value**power, weights=weights)
        spread = np.sqrt(np.mean((weights * (value**power - expected)) ** 2) / 200_000) / weights.mean()
        error = np.hypot(spread, np.std(drawn**power) / 20_000**0.5)
        assert abs(np.mean(drawn**power) - expected) < 4 * error, power
        assert error < 0.03 * expected
    # The quartic term is seen.
    assert np.mean(drawn) > 12 + 10 * np.std(drawn) / 20_000**0.5
    assert drawn.max() < action.squared_radius


def test_keys_are_checked(statistics):
    with pytest.raises(TypeError, match="`key` must be a JAX random key such as"):
        QuarticAction.from_cumulants(statistics, 100).sample(0)


def test_support_and_its_coordinates(x64, statistics):
    action = QuarticAction.from_cumulants(statistics, 100, 2)
    transform = numpyro.distributions.biject_to(action.support)
    u = np.random.default_rng(2).normal(size=(2, 2)) * 3
    z = transform(u)
    assert action.support(z)
    np.testing.assert_allclose(transform.inv(z), u, rtol=1e-10)
    jacobian = jax.jacfwd(lambda a: transform(a.reshape(2, 2)).ravel())(u.ravel())
    assert transform.log_abs_det_jacobian(u, z) == pytest.approx(np.linalg.slogdet(jacobian)[1], rel=1e-10)
    outside = z * np.sqrt(action.squared_radius / np.einsum("ai,ab,bi->", z, action.g, z)) * 1.001
    with pytest.warns(UserWarning, match="Out-of-support"):
        assert action.log_prob(outside) == -np.inf
    # Within the default support the action grows along every ray: its slope at the edge is positive.
    assert np.sum(jax.grad(action.action)(outside) * outside) > 0


def test_refusals(statistics):
    c = statistics
    with pytest.raises(ValueError, match=r"`width` must be at least (\d+) for 2 inputs and 1 output\(s\), got 10"):
        QuarticAction.from_cumulants(c, 10)
    smallest = 10
    for width in range(11, 200):
        try:
            QuarticAction.from_cumulants(c, width)
        except ValueError as error:
            smallest = int(str(error).split("at least ")[1].split()[0]) if "at least" in str(error) else width + 1
        else:
            break
    assert width >= smallest
    action = QuarticAction.from_cumulants(c, 100)
    with pytest.raises(ValueError, match=r"`squared_radius` must be at most 2/lambda"):
        QuarticAction(action.g, action.v, squared_radius=2.1 / action.strongest)
    with pytest.raises(ValueError, match=r"do not fit into the support.*smaller by a factor of"):
        QuarticAction(action.g, 20 * action.v)
    with pytest.raises(ValueError, match="`g` must be positive definite"):
        QuarticAction(-action.g, action.v)
    with pytest.raises(ValueError, match="`v` must be symmetric"):
        QuarticAction(action.g, action.v + np.random.default_rng(0).normal(size=action.v.shape))
    with pytest.raises(ValueError, match=r"`v` must have shape \(2, 2, 2, 2\)"):
        QuarticAction(action.g, action.v[0])
    with pytest.raises(
        TypeError, match=r"`cumulants` must be what gpntk\.cumulants\(net, X\) returns without `rank`"
    ):
        QuarticAction.from_cumulants(gpntk.cumulants(NET, X, rank=2), 100)
    with pytest.raises(ValueError, match="singular"):
        QuarticAction.from_cumulants(gpntk.cumulants(NET, X[[0, 0]]), 100)
