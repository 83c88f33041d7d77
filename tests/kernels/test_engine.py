"""The compute engine: tiles give the matrix that one evaluation would give, symmetric, and in bounded memory."""

import pickle
from typing import ClassVar

import equinox as eqx
import gpjax as gpx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import gpntk
from gpntk import BlockedComputation
from gpntk.kernels import _engine, _tiles
from gpntk.networks import _layers

NETS = {
    "relu": gpntk.MLP(3, gpntk.ReLU(), bias_variance=0.2),
    "erf": gpntk.MLP(2, gpntk.Erf(), weight_variance=1.3),
    "tanh": gpntk.MLP(1, gpntk.Tanh()),
}
# Rounding differs between tiles of different shapes; the kernels below are of order one.
TOLERANCE = {jnp.float32: 2e-6, jnp.float64: 1e-12}


def inputs(n, dtype, d=5, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, d)), dtype)


def relu_kernels(x, y, depth, weight_variance, bias_variance):
    """The arc-cosine recursion of Cho & Saul (2009) in NumPy, pair by pair."""

    def affine(k):
        return bias_variance + weight_variance * k

    k, q1, q2 = affine(x @ y.T / x.shape[1]), affine((x**2).mean(1))[:, None], affine((y**2).mean(1))[None, :]
    theta = k
    for _ in range(depth):
        norm = np.sqrt(q1 * q2)
        angle = np.arccos(np.clip(k / norm, -1, 1))
        slope = (np.pi - angle) / (2 * np.pi)
        k, q1, q2 = affine(norm * np.sin(angle) / (2 * np.pi) + k * slope), affine(q1 / 2), affine(q2 / 2)
        theta = k + weight_variance * slope * theta
    return k, theta


def test_kernels_are_those_of_a_recursion_in_numpy(x64):
    x, y = inputs(7, jnp.float64), inputs(4, jnp.float64, seed=1)
    net = gpntk.MLP(3, gpntk.ReLU(), weight_variance=1.7, bias_variance=0.2)
    expected = relu_kernels(np.asarray(x), np.asarray(y), 3, 1.7, 0.2)
    for kernel, values in zip((gpntk.NNGP(net), gpntk.NTK(net)), expected, strict=True):
        np.testing.assert_allclose(kernel.cross_covariance(x, y), values, rtol=1e-13)
    for together, values in zip(gpntk.nngp_and_ntk(net, x, y), expected, strict=True):
        np.testing.assert_allclose(together, values, rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "dtype", "block_size"),
    [("relu", dtype, size) for dtype in TOLERANCE for size in (1, 7, 23)]
    + [("erf", jnp.float64, 4), pytest.param("tanh", jnp.float64, 10, marks=pytest.mark.slow)],
)
def test_block_size_does_not_change_the_result(name, dtype, block_size, x64):
    x, y = inputs(23, dtype), inputs(10, dtype, seed=1)
    kernel = gpntk.NTK(NETS[name])
    blocked = gpntk.NTK(NETS[name], compute_engine=BlockedComputation(block_size=block_size))
    gram = blocked.gram(x).as_matrix()
    assert gram.dtype == dtype
    np.testing.assert_allclose(gram, kernel.gram(x).as_matrix(), rtol=0, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(
        blocked.cross_covariance(x, y), kernel.cross_covariance(x, y), rtol=0, atol=TOLERANCE[dtype]
    )
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(jnp.diagonal(gram), lx.diagonal(blocked.diagonal(x)))


@pytest.mark.parametrize("n", [1, 2, 9])
def test_lists_of_pairs_equal_tiles(n, x64):
    # 8 x 9 positions of a network with pooling: lists of 50 pairs, of which 36 and 63 leave some over.
    net = gpntk.CNN((8, 8, 1), depth=1, bias_variance=0.1)
    x, y = inputs(n, jnp.float64, d=64), inputs(7, jnp.float64, d=64, seed=1)
    listed, tiled = gpntk.NTK(net), gpntk.NTK(net, compute_engine=BlockedComputation(block_size=4))
    gram = listed.gram(x).as_matrix()
    np.testing.assert_allclose(gram, tiled.gram(x).as_matrix(), rtol=1e-13)
    np.testing.assert_allclose(listed.cross_covariance(y, x), tiled.cross_covariance(y, x), rtol=1e-13)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(jnp.diagonal(gram), lx.diagonal(listed.diagonal(x)))


def test_one_network_serves_both_precisions():
    net, x = gpntk.MLP(bias_variance=0.1), np.random.default_rng(0).normal(size=(4, 3))
    with jax.enable_x64(True):
        # The trace keeps the bias variance as a constant in double precision.
        _trace = jax.make_jaxpr(lambda x: x * net.bias_variance._unconstrained)(x)
        exact = gpntk.NTK(net).gram(x).as_matrix()
    single = gpntk.NTK(net).gram(x.astype(np.float32)).as_matrix()
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, rtol=1e-6)


@pytest.mark.parametrize("kind", [gpntk.NNGP, gpntk.NTK])
@pytest.mark.parametrize(("n", "dtype"), [(1, jnp.float64), (511, jnp.float32), (513, jnp.float64)])
def test_gram_is_symmetric_and_has_the_exact_diagonal_at_default_blocks(kind, dtype, n, x64):
    x = inputs(n, dtype)
    x = x.at[n // 2 :].set(x[: n - n // 2])  # duplicates
    kernel = kind(NETS["relu"])
    gram = kernel.gram(x).as_matrix()
    assert gram.shape == (n, n)
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(jnp.diagonal(gram), lx.diagonal(kernel.diagonal(x)))
    np.testing.assert_allclose(gram, kernel.cross_covariance(x, x), rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("sizes", [(1, 1), (9, 1), (5, 11)])
def test_cross_covariance_of_sets_of_different_sizes(sizes, x64):
    x, y = (inputs(n, jnp.float64, seed=n) for n in sizes)
    kernel = gpntk.NNGP(NETS["erf"], compute_engine=BlockedComputation(4))
    expected = [[kernel(a, b) for b in y] for a in x]
    np.testing.assert_allclose(kernel.cross_covariance(x, y), expected, rtol=1e-13)


def test_nngp_and_ntk_are_the_two_kernels(x64):
    x, y = inputs(13, jnp.float64), inputs(6, jnp.float64, seed=1)
    for together, kind in zip(gpntk.nngp_and_ntk(NETS["relu"], x), (gpntk.NNGP, gpntk.NTK), strict=True):
        np.testing.assert_array_equal(together, kind(NETS["relu"]).gram(x).as_matrix())
    for together, kind in zip(gpntk.nngp_and_ntk(NETS["relu"], x, y), (gpntk.NNGP, gpntk.NTK), strict=True):
        np.testing.assert_array_equal(together, kind(NETS["relu"]).cross_covariance(x, y))


@pytest.mark.parametrize("method", ["gram", "cross_covariance"])
def test_gradients_through_tiles_equal_those_of_one_tile(method, x64):
    x, weights = inputs(11, jnp.float64), inputs(11, jnp.float64, d=11, seed=2)

    @eqx.filter_grad
    def gradient(arguments, block_size):
        x, weight_variance, bias_variance = arguments
        net = gpntk.MLP(2, gpntk.Erf(), weight_variance=weight_variance, bias_variance=bias_variance)
        kernel = gpntk.NTK(net, compute_engine=BlockedComputation(block_size))
        matrix = kernel.gram(x).as_matrix() if method == "gram" else kernel.cross_covariance(x, x)
        return jnp.sum(weights * matrix)

    arguments = (x, jnp.array(1.5), jnp.array(0.3))
    tiled, whole = gradient(arguments, 4), gradient(arguments, 11)
    for a, b in zip(tiled, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
        assert float(jnp.max(jnp.abs(b))) > 1e-3


def temporary_bytes(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_forward_memory_is_a_few_tiles():
    """A naive evaluation holds several N x N arrays at once; ours the two results and some tiles of 1 MiB."""
    x = jax.ShapeDtypeStruct((4096, 8), jnp.float32)
    temporary = temporary_bytes(lambda x: gpntk.nngp_and_ntk(NETS["relu"], x), x)
    assert temporary < 0.5 * 4 * 4096**2


def test_backward_memory_grows_like_the_results_and_not_like_layers_times_pairs():
    def loss(variance, x, depth):
        nngp, ntk = gpntk.nngp_and_ntk(gpntk.MLP(depth, gpntk.Erf(), weight_variance=variance), x)
        return jnp.sum(nngp * ntk)

    def temporary(n, depth):
        x = jax.ShapeDtypeStruct((n, 8), jnp.float32)
        return temporary_bytes(jax.grad(lambda v, x: loss(v, x, depth)), jnp.float32(1.5), x)

    small, large = ([temporary(n, depth) for depth in (2, 12)] for n in (2048, 4096))
    # What grows with N^2: both matrices, their cotangents, and copies that XLA makes of them.
    assert large[0] - small[0] < 8 * 0.75 * (4 * 4096**2)
    # Ten more layers cost memory for one tile, however many pairs there are, and not one number per pair.
    assert large[1] - large[0] < 1.1 * (small[1] - small[0])
    assert large[1] - large[0] < 10 * (4 * 4096**2) / 2


def test_what_accelerators_do_differently_gives_the_same_numbers(x64, monkeypatch):
    """Several layers in one pass, and tiles with aligned rows: 68 of them in the place of 67."""

    def computed(engine):
        net = gpntk.MLP(3, gpntk.ReLU(), bias_variance=0.1)
        kernel = gpntk.NTK(net, compute_engine=engine)
        x, y = inputs(133, jnp.float64), inputs(100, jnp.float64, seed=1)
        both = gpntk.nngp_and_ntk(net, x, compute_engine=engine)
        slope = jax.grad(lambda x: jnp.sum(kernel.gram(x).as_matrix() ** 2))(x)
        products = gpntk.GramOperator(kernel, x) @ x
        return *both, slope, products, kernel.cross_covariance(x, y), gpntk.stream_kernel_matrix(kernel, x)

    expected = computed(BlockedComputation(133))
    jax.clear_caches()
    for module in (_engine, _tiles, _layers):
        monkeypatch.setattr(module, "is_accelerated", lambda: True)
    monkeypatch.setattr(_tiles, "_ALIGNMENT", 2)
    monkeypatch.setattr(_layers, "_LAYERS_PER_PASS", 2)
    assert _tiles.Tiling.of(inputs(133, jnp.float64), 70) == _tiles.Tiling(133, 2, 68)
    found = computed(BlockedComputation(70))
    jax.clear_caches()
    for values, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            values, reference, rtol=0, atol=TOLERANCE[jnp.float64] * np.abs(reference).max()
        )


@pytest.mark.parametrize(
    ("memory", "sites", "side"),
    [(None, 1, 4096), (64e9, 1, 4096), (12e9, 1, 1920), (12e9, 5184, 26), (64e9, 10**9, 1)],
)
def test_tiles_of_accelerators_fit_their_memory_and_have_aligned_rows(memory, sites, side, monkeypatch):
    monkeypatch.setattr(_tiles, "is_accelerated", lambda: True)
    monkeypatch.setattr(_tiles, "accelerator_memory", lambda: memory and int(memory))
    assert _tiles.default_block_size(sites) == side


def test_engines_are_equal_by_value():
    assert BlockedComputation() == BlockedComputation(None)
    assert BlockedComputation(64) == BlockedComputation(64) != BlockedComputation(65)
    assert hash(BlockedComputation(64)) == hash(BlockedComputation(64))
    assert pickle.loads(pickle.dumps(BlockedComputation(64))) == BlockedComputation(64)


def test_gpjax_default_engine_gives_the_same_kernel(x64):
    x, y = inputs(9, jnp.float64), inputs(5, jnp.float64, seed=1)
    ours = gpntk.NTK(NETS["relu"])
    dense = gpntk.NTK(NETS["relu"], compute_engine=gpx.kernels.DenseKernelComputation())
    np.testing.assert_allclose(dense.gram(x).as_matrix(), ours.gram(x).as_matrix(), rtol=0, atol=1e-13)
    np.testing.assert_allclose(dense.cross_covariance(x, y), ours.cross_covariance(x, y), rtol=0, atol=1e-13)
    np.testing.assert_allclose(lx.diagonal(dense.diagonal(x)), lx.diagonal(ours.diagonal(x)), rtol=0, atol=1e-13)


def test_progress_changes_nothing_but_the_bar(capsys, x64):
    x, y = inputs(23, jnp.float64), inputs(10, jnp.float64, seed=1)
    net = NETS["relu"]
    silent, loud = (gpntk.NTK(net, compute_engine=BlockedComputation(4, progress=p)) for p in (False, True))
    expected = silent.gram(x).as_matrix(), silent.cross_covariance(x, y)
    together = gpntk.nngp_and_ntk(net, x), gpntk.nngp_and_ntk(net, x, y)
    assert not capsys.readouterr().err
    gram = loud.gram(x).as_matrix()
    assert "100%" in capsys.readouterr().err
    np.testing.assert_array_equal(gram, gram.T)
    np.testing.assert_array_equal(jnp.diagonal(gram), lx.diagonal(silent.diagonal(x)))
    for values, reference in zip((gram, loud.cross_covariance(x, y)), expected, strict=True):
        np.testing.assert_allclose(values, reference, rtol=0, atol=TOLERANCE[jnp.float64])
    for reference, arguments in zip(together, ((x,), (x, y)), strict=True):
        for a, b in zip(
            gpntk.nngp_and_ntk(net, *arguments, compute_engine=BlockedComputation(4, progress=True)),
            reference,
            strict=True,
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[jnp.float64])
    capsys.readouterr()
    np.testing.assert_allclose(jax.jit(lambda x: loud.gram(x).as_matrix())(x), gram, rtol=0, atol=1e-12)
    assert not capsys.readouterr().err
    with pytest.raises(TypeError, match="`progress` must be True or False, got 1"):
        BlockedComputation(progress=1)


@pytest.mark.parametrize("progress", [False, True])
def test_matrices_beyond_the_memory_are_refused_before_they_are_computed(progress, monkeypatch):
    x = inputs(100, jnp.float32)
    engine = BlockedComputation(progress=progress)
    kernel = gpntk.NTK(NETS["relu"], compute_engine=engine)
    monkeypatch.setattr(_engine, "_host_memory", lambda: 40_000)
    assert kernel.gram(x).as_matrix().shape == (100, 100)
    monkeypatch.setattr(_engine, "_host_memory", lambda: 39_999)
    for compute in (kernel.gram, lambda x: kernel.cross_covariance(x, x)):
        with pytest.raises(ValueError, match=r"\(100, 100\) need 40,000 bytes, more than the 39,999 there are"):
            compute(x)
    # Two matrices.
    with pytest.raises(ValueError, match=r"need 80,000 bytes, .*stream_kernel_matrix"):
        gpntk.nngp_and_ntk(NETS["relu"], x, compute_engine=engine)


class Counting(gpntk.activations.AbstractActivation):
    """The identity, counting how often it is traced."""

    traces: ClassVar[list] = []

    def __call__(self, x):
        return x

    def features(self, variance):
        return jnp.zeros_like(variance)

    def pair(self, covariance, features1, features2):
        type(self).traces.append(covariance.shape)
        return covariance + 0.0 * (features1 + features2), jnp.ones_like(covariance)


def test_equal_kernels_share_their_compiled_code():
    """Equal, copied and unpickled kernels, and kernels with other parameter values, are not compiled again."""
    x = inputs(6, jnp.float32)

    def make(weight_variance=1.0):
        return gpntk.NTK(gpntk.MLP(2, Counting(), weight_variance=weight_variance), active_dims=[0, 2])

    kernel = make()
    kernel.gram(x)
    kernel(x[0], x[1])
    as_argument = eqx.filter_jit(lambda kernel, x: kernel.gram(x).as_matrix())
    as_argument(kernel, x)
    traces = len(Counting.traces)
    assert traces > 0
    for other in (make(), make(2.0), pickle.loads(pickle.dumps(kernel))):
        other.gram(x)
        other(x[1], x[2])
        as_argument(other, x)
    assert len(Counting.traces) == traces
    kernel.gram(x[:5])
    assert len(Counting.traces) > traces
