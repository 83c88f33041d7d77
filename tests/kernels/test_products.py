"""Products with Gram matrices that are never held, against the matrices."""

import gpjax as gpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gpntk
from gpntk import NNGP, NTK, BlockedComputation, GramOperator

RNG = np.random.default_rng(0)
X, X_NEW = RNG.normal(size=(23, 5)), RNG.normal(size=(9, 5))
X[20] = X[3]  # a duplicate: an exact value away from the diagonal
VECTORS = RNG.normal(size=(23, 3))
NET = gpntk.MLP(2, gpntk.ReLU(), bias_variance=0.2)
KERNELS = {
    "network": lambda engine: NTK(NET, compute_engine=engine),
    "columns": lambda engine: NNGP(NET, active_dims=[0, 3], compute_engine=engine),
    "sum": lambda engine: gpntk.Sum(gpx.kernels.RBF(), NTK(NET, compute_engine=engine)),
    "gpjax": lambda engine: gpx.kernels.Matern32(lengthscale=0.7),
}


@pytest.mark.parametrize("block_size", [4, 10, 23, None])
@pytest.mark.parametrize("name", KERNELS)
def test_products_are_those_with_the_matrix(name, block_size, x64):
    kernel = KERNELS[name](BlockedComputation(block_size=block_size))
    operator = GramOperator(kernel, X)
    gram = np.asarray(kernel.gram(X).as_matrix())
    assert operator.size == 23
    np.testing.assert_allclose(operator @ VECTORS, gram @ VECTORS, atol=1e-12)
    np.testing.assert_allclose(operator @ VECTORS[:, 0], gram @ VECTORS[:, 0], atol=1e-12)
    np.testing.assert_allclose(operator.diagonal(), np.diag(gram), atol=1e-13)
    np.testing.assert_allclose(operator.columns(np.array([2, 7])), gram[:, [2, 7]], atol=1e-12)
    cross = np.asarray(kernel.cross_covariance(X_NEW, X))
    np.testing.assert_allclose(operator.cross_product(X_NEW, VECTORS), cross @ VECTORS, atol=1e-12)
    np.testing.assert_allclose(operator.cross_product(X_NEW, VECTORS[:, 0]), cross @ VECTORS[:, 0], atol=1e-12)


def test_a_single_precision_kernel_is_accumulated_in_double(x64):
    x = jnp.asarray(X, jnp.float32)
    operator = GramOperator(NTK(NET, compute_engine=BlockedComputation(block_size=5)), x)
    assert operator.dtype == jnp.float32
    product = operator @ VECTORS
    assert product.dtype == jnp.float64
    # The columns of the identity pick the entries of the very same tiles.
    entries = np.asarray(operator @ np.eye(23))
    np.testing.assert_allclose(product, entries @ VECTORS, rtol=1e-13, atol=1e-13)
    assert (operator @ VECTORS.astype(np.float32)).dtype == jnp.float32


def test_products_are_differentiable_and_work_in_transformations(x64):
    def through(product):
        def loss(weight_variance):
            kernel = NTK(NET.replace(weight_variance=weight_variance))
            return jnp.sum(jnp.sin(product(kernel)))

        return jax.value_and_grad(loss)(1.3)

    blocked = through(
        lambda k: GramOperator(NTK(k.net, compute_engine=BlockedComputation(block_size=6)), X) @ VECTORS
    )
    dense = through(lambda k: k.gram(X).as_matrix() @ VECTORS)
    np.testing.assert_allclose(blocked, dense, rtol=1e-11)
    operator = GramOperator(NTK(NET), X)
    batched = jax.jit(jax.vmap(lambda v: operator @ v, in_axes=1, out_axes=1))(VECTORS)
    np.testing.assert_allclose(batched, operator @ VECTORS, atol=1e-12)


def test_memory_is_that_of_the_vectors(x64):
    """A matrix of 60,000 x 60,000 would take 14 GB; temporaries of the product must not grow like it."""

    def temporaries(n):
        x = jax.ShapeDtypeStruct((n, 4), jnp.float32)
        compiled = jax.jit(lambda x, v: GramOperator(NTK(NET), x) @ v).lower(
            x, jax.ShapeDtypeStruct((n,), x.dtype)
        )
        return compiled.compile().memory_analysis().temp_size_in_bytes

    # Features and vectors take a few dozen numbers per input, tiles a few megabytes whatever the size.
    assert temporaries(60_000) < 60_000 * 4 * 50 + 2**25


def test_misuse_is_explained(x64):
    with pytest.raises(TypeError, match="`kernel` must be a GPJax kernel"):
        GramOperator(NET, X)
    with pytest.raises(ValueError, match="Expected 2D array"):
        GramOperator(NTK(NET), X[0])
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(23,\) or \(23, m\), got \(9, 5\)"):
        GramOperator(NTK(NET), X) @ X_NEW
    with pytest.raises(ValueError, match=r"`vectors` must have shape \(23,\) or \(23, m\), got \(24, 5\)"):
        GramOperator(NTK(NET), X).cross_product(X_NEW, np.ones((24, 5)))
    for kernel in (NTK(NET), gpx.kernels.RBF()):
        with pytest.raises(ValueError, match=r"x has 1 features, but the operator expects 5 features"):
            GramOperator(kernel, X).cross_product(X_NEW[:, :1], VECTORS)


@pytest.mark.parametrize("block_size", [2, 100])
def test_columns_are_those_of_the_matrix(block_size, x64):
    operator = GramOperator(NTK(NET, compute_engine=BlockedComputation(block_size)), X)
    taken = np.array([3, 0, 22])
    np.testing.assert_allclose(operator.columns(taken), (operator @ jnp.eye(len(X)))[:, taken], rtol=1e-12)
