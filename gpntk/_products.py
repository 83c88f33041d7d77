"""Products of arrays in the full precision of their numbers.

Unless told otherwise, JAX multiplies float32 matrices on recent GPUs with ten bits (TF32), an error of about 1e-3.
"""

import functools

import jax
import jax.numpy as jnp

matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
