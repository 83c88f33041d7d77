"""Kernel values by an engine, for `test_many_devices.py`: in its own process on eight simulated devices.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python sharded_values.py FILE.npz
"""

import dataclasses
import sys

import gpjax as gpx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

import gpntk

RNG = np.random.default_rng(0)
# Eight devices divide 40, leave 5 of 35 and have more than they need for 3.
INPUTS = {size: RNG.normal(size=(size, 3)) for size in (40, 35, 3)}
OTHERS, VECTORS, IMAGES = RNG.normal(size=(13, 3)), RNG.normal(size=(40, 2)), RNG.normal(size=(5, 36))
NET = gpntk.MLP(2, gpntk.ReLU(), bias_variance=0.2)
SIZES = {"network": (40, 35, 3), "average": (35,)}
# The averaged kernel loops over the group.
KERNELS = {
    "network": lambda engine: gpntk.NTK(NET, compute_engine=engine),
    "average": lambda engine: gpntk.GroupAveraged(
        gpx.kernels.RBF(), gpntk.groups.FiniteGroup.cyclic(3), compute_engine=engine
    ),
}


def values(engine: gpntk.BlockedComputation) -> dict[str, np.ndarray]:
    found = {}
    for name, make in KERNELS.items():
        kernel = make(engine)
        for size in SIZES[name]:
            x = INPUTS[size]
            found[f"{name}, gram, {size}"] = kernel.gram(x).as_matrix()
            found[f"{name}, cross, {size}"] = kernel.cross_covariance(x, OTHERS)
            operator = gpntk.GramOperator(kernel, x)
            found[f"{name}, product, {size}"] = operator @ VECTORS[:size]
            found[f"{name}, cross product, {size}"] = operator.cross_product(OTHERS, VECTORS[:size])
            found[f"{name}, diagonal, {size}"] = lx.diagonal(kernel.diagonal(x))
    small = gpntk.CNN((6, 6, 1), depth=1)
    operator = gpntk.GramOperator(KERNELS["network"](engine), INPUTS[40])
    found["columns"] = operator.columns(np.array([7, 1]))
    found["with progress"] = (
        KERNELS["network"](dataclasses.replace(engine, progress=True)).gram(INPUTS[40]).as_matrix()
    )
    found["both, images"] = jnp.stack(gpntk.nngp_and_ntk(small, IMAGES, compute_engine=engine))
    found["single precision"] = KERNELS["network"](engine).gram(INPUTS[40].astype(np.float32)).as_matrix()

    def loss(weight_variance, evaluate):
        net = gpntk.MLP(2, gpntk.Erf(), weight_variance=weight_variance)
        return jnp.sum(WEIGHTS * evaluate(gpntk.NTK(net, compute_engine=engine), INPUTS[40]))

    for name, evaluate in GRADIENTS.items():
        found[f"gradient, {name}"] = jax.jit(jax.grad(loss), static_argnums=1)(1.3, evaluate)
    return found


WEIGHTS = np.random.default_rng(1).normal(size=(40, 40))
GRADIENTS = {
    "gram": lambda kernel, x: kernel.gram(x).as_matrix(),
    "cross": lambda kernel, x: kernel.cross_covariance(x, x),
    "product": lambda kernel, x: gpntk.GramOperator(kernel, x) @ WEIGHTS,
}


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    devices = jax.device_count()
    engine = gpntk.BlockedComputation(4, mesh=jax.make_mesh((2, devices // 2), ("rows", "more")))
    found = values(engine)
    # Each device holds its rows and nothing else.
    for name in ("network, gram, 40", "with progress"):
        shards = sorted((shard.index[0].start or 0, shard.data.shape) for shard in found[name].addressable_shards)
        found[f"rows of the devices: {name}"] = np.array([start for start, _ in shards])
        assert {shape for _, shape in shards} == {(40 // devices, 40)}
    np.savez(sys.argv[1], **{name: np.asarray(value) for name, value in found.items()})


if __name__ == "__main__":
    main()
