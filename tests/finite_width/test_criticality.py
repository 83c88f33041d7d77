"""Critical initialisations and susceptibilities."""

import numpy as np
import pytest

import gpntk


def test_known_values():
    # Roberts, Yaida & Hanin (2022), chapter 5.
    assert gpntk.critical_initialization(gpntk.ReLU())[:2] == pytest.approx((2.0, 0.0))
    assert gpntk.critical_initialization(gpntk.LeakyReLU(0.5))[0] == pytest.approx(2 / 1.25)
    gelu = gpntk.critical_initialization(gpntk.GELU())
    assert gelu[:2] == pytest.approx((1.98305826, 0.17292239), abs=1e-8)
    assert gelu.kind == "half-stable"
    for activation, slope in ((gpntk.Tanh(), 1.0), (gpntk.Erf(), 2 / np.sqrt(np.pi)), (gpntk.Sin(b=2.0), 2.0)):
        assert gpntk.critical_initialization(activation)[:3] == pytest.approx((1 / slope**2, 0.0, 0.0))


@pytest.mark.parametrize("activation", [gpntk.GELU(), gpntk.SiLU()], ids=repr)
def test_fixed_point_of_the_kernel_with_unit_susceptibilities(x64, activation):
    weight_variance, bias_variance, fixed_point, _ = gpntk.critical_initialization(activation)
    # An input whose first preactivations have the variance of the fixed point keeps it, and nearby ones stay near.
    x = np.sqrt((fixed_point - bias_variance) / weight_variance) * np.array([[1.0], [1.0 + 1e-4]])
    net = gpntk.MLP(30, activation, weight_variance, bias_variance)
    nngp, _ = gpntk.nngp_and_ntk(net, x)
    first, _ = gpntk.nngp_and_ntk(net.replace(depth=1), x)
    assert float(nngp[0, 0]) == pytest.approx(fixed_point, rel=1e-7)
    assert float(nngp[1, 1] - nngp[0, 0]) == pytest.approx(float(first[1, 1] - first[0, 0]), rel=0.02)
    np.testing.assert_allclose(gpntk.susceptibilities(activation, weight_variance, fixed_point), 1.0, rtol=1e-10)


def test_susceptibilities_are_slopes_of_the_kernel_map(x64):
    activation, step = gpntk.Tanh(), 1e-6
    parallel, perpendicular = gpntk.susceptibilities(activation, 1.5, [0.3, 2.0])
    for q, chi_parallel, chi_perpendicular in zip([0.3, 2.0], parallel, perpendicular, strict=True):
        dual = lambda k, q1, q2: float(activation.dual(k, q1, q2))  # noqa: E731
        difference = dual(q + step, q + step, q + step) - dual(q - step, q - step, q - step)
        assert chi_parallel == pytest.approx(1.5 * difference / (2 * step), rel=1e-7)
        assert chi_perpendicular == pytest.approx(1.5 * float(activation.dual_derivative(q, q, q)), rel=1e-12)


@pytest.mark.parametrize("activation", [gpntk.Softplus(), gpntk.Sigmoid(), gpntk.Sign()], ids=repr)
def test_none_exists(activation):
    with pytest.raises(ValueError, match="must have a critical initialisation, got"):
        gpntk.critical_initialization(activation)


def test_depth_to_width():
    assert gpntk.depth_to_width(gpntk.MLP(6), 300) == pytest.approx(0.02)
    assert gpntk.depth_to_width(gpntk.MLP(2, width_ratios=(4.0, 1.0)), 50) == pytest.approx(0.025)
    with pytest.raises(ValueError, match=r"`width` must be .* >= 1, got 0"):
        gpntk.depth_to_width(gpntk.MLP(2), 0)


def test_bad_input():
    with pytest.raises(TypeError, match=r"Did you mean ReLU\(\)"):
        gpntk.critical_initialization(gpntk.ReLU)
    with pytest.raises(ValueError, match="`variance` must be >= 0, got -1"):
        gpntk.susceptibilities(gpntk.ReLU(), 2.0, -1.0)
    with pytest.raises(ValueError, match="`weight_variance` must be"):
        gpntk.susceptibilities(gpntk.ReLU(), 0.0, 1.0)
