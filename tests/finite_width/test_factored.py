"""V of many inputs in factored form, against the tensor with all its entries."""

import numpy as np
import pytest

import gpntk

GENERIC = {"weight_variance": 1.7, "bias_variance": 0.2}
X = np.random.default_rng(0).normal(size=(6, 3))
N_PAIRS = 21


def entries(factored):
    """The tensor that the factors stand for, without and with the residual."""
    V = np.einsum("rab,rcd->abcd", factored.V_factors, factored.V_factors)
    diagonal = np.zeros_like(V)
    a, b = np.indices(factored.K.shape)
    diagonal[a, b, a, b] = diagonal[a, b, b, a] = factored.V_residual
    return V, V + diagonal


@pytest.mark.parametrize("activation", [pytest.param(gpntk.ReLU(), marks=pytest.mark.slow), gpntk.Erf()], ids=repr)
def test_all_factors_make_the_tensor(activation):
    net = gpntk.MLP(2, activation, width_ratios=(0.5, 1.0), **GENERIC)
    c, factored = gpntk.cumulants(net, X, tolerance=1e-3), gpntk.cumulants(net, X, rank=N_PAIRS)
    V, _ = entries(factored)
    allowed = np.hypot(c.error_estimate["V"], factored.error_estimate["V"])
    assert np.linalg.norm(V - c.V) < 4 * allowed + factored.error_estimate["V_truncated"]
    assert allowed < 2e-3 * np.linalg.norm(c.V)
    for name in ("K", "theta", "K1", "theta1"):
        np.testing.assert_array_equal(getattr(factored, name), getattr(c, name))


def test_few_factors_leave_out_what_they_say():
    net = gpntk.MLP(3, gpntk.Erf(), **GENERIC)
    c = gpntk.cumulants(net, X, rank=N_PAIRS)
    few = gpntk.cumulants(net, X, rank=5)
    full, (V, with_residual) = entries(c)[0], entries(few)
    left_out = np.linalg.norm(full - V)
    # Every layer's share is computed; that they add up without cancelling is an estimate from above.
    assert 0.7 * few.error_estimate["V_truncated"] < left_out < few.error_estimate["V_truncated"]
    # Single variances are exact, so that the residual brings the tensor closer.
    a, b = np.indices((6, 6))
    exact = entries(c)[1][a, b, a, b]
    np.testing.assert_allclose(with_residual[a, b, a, b], exact, rtol=4e-3)
    assert np.linalg.norm(full - with_residual) < left_out
    gram = np.einsum("rab,sab->rs", few.V_factors, few.V_factors)
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=1e-10 * gram[0, 0])
    assert np.all(np.diff(np.diag(gram)) < 0)


def test_deep_linear_networks_in_closed_form():
    net = gpntk.MLP(3, gpntk.Identity(), weight_variance=1.0)
    factored = gpntk.cumulants(net, X, rank=N_PAIRS)
    K = X @ X.T / X.shape[1]
    expected = 3 * (np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K))
    np.testing.assert_allclose(entries(factored)[0], expected, atol=1e-10 * np.max(expected))
    # Three dimensions have six pairs of directions.
    assert len(factored.V_factors) == N_PAIRS
    np.testing.assert_allclose(factored.V_factors[6:], 0.0, atol=1e-6)


def test_at_a_width():
    factored = gpntk.cumulants(gpntk.MLP(2, gpntk.Erf(), **GENERIC), X, rank=4)
    at = factored.at(400)
    np.testing.assert_allclose(at.nngp, factored.K + factored.K1 / 400)
    np.testing.assert_allclose(at.ntk, factored.theta + factored.theta1 / 400)
    np.testing.assert_allclose(at.V_factors, factored.V_factors / 20)
    np.testing.assert_allclose(at.V_residual, factored.V_residual / 400)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [gpntk.ReLU(), gpntk.Erf()], ids=repr)
def test_a_hundred_and_fifty_inputs_to_one_in_a_thousand(activation):
    x = np.random.default_rng(0).normal(size=(150, 2))
    net = gpntk.MLP(2, activation, **GENERIC)
    coarse, fine = (gpntk.cumulants(net, x, rank=500, tolerance=t, seed=s) for t, s in ((1e-3, 0), (3e-4, 1)))
    size = np.linalg.norm(np.einsum("rab,sab->rs", fine.V_factors, fine.V_factors))
    assert coarse.error_estimate["V"] < 1e-3 * size
    assert coarse.error_estimate["V_truncated"] < 1e-3 * size
    # |A - B|^2 from inner products of the factors of both: the tensors themselves would take gigabytes.
    factors = np.concatenate([coarse.V_factors, fine.V_factors])
    sign = np.repeat([1.0, -1.0], [len(coarse.V_factors), len(fine.V_factors)])
    gram = np.einsum("rab,sab->rs", factors, factors)
    difference = np.sqrt(sign @ gram**2 @ sign)
    assert difference < 1.5e-3 * size


def test_bad_rank():
    with pytest.raises(ValueError, match="`rank` must be an integer >= 1, got 0"):
        gpntk.cumulants(gpntk.MLP(2), X, rank=0)
    with pytest.raises(ValueError, match=r"10000 factors on 1000 inputs need 480,000,000,000 bytes"):
        gpntk.cumulants(gpntk.MLP(2), np.ones((1000, 3)), rank=10_000)
