"""Posteriors of a Bayesian network of finite width: NUTS over its random kernel against NUTS over its weights.

    python benchmarks/bayes.py             # some minutes
    python benchmarks/bayes.py --large     # and the posterior of 100 observations
    python benchmarks/bayes.py --short     # does it run?

The same network, data and noise; the figure of merit is effective samples per second of the posterior of the
outputs at test inputs (the smallest over inputs), the first call (set-up, compilation and warm-up) apart from
sampling. "At equal error": the seconds until the statistical error of the posterior mean equals the error of the
random kernel, which is measured against the exact posterior by importance sampling.

`--large` adds 100 training and 50 test inputs in two dimensions, depth 2, width 512, noise variance 0.1: set-up,
and 1,000 draws after 500 warm-up steps, of the random kernel alone.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS, Predictive

import gpntk
import measure
from gpntk import models

NETWORK = gpntk.MLP(depth=2, activation=gpntk.Erf(), weight_variance=2.0, bias_variance=0.3)
WIDTH, NOISE_VARIANCE, RESULTS = 32, 0.05, Path(__file__).parent / "results" / "bayes.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", action="store_true", help="also 100 training inputs at width 512")
    parser.add_argument("--output", type=Path, default=RESULTS, help="where the results go, as JSON")
    parser.add_argument("--short", action="store_true", help="few draws: only shows that the benchmark works")
    args = parser.parse_args()
    draws, networks = 1000, 100_000
    if args.short:
        draws, networks, args.output = 50, 2000, args.output.with_name("bayes_short.json")
    with jax.enable_x64(True):
        results = measure.context() | {"comparison": compare(draws, networks)}
        if args.large:
            results["large"] = large()
    measure.write_json(args.output, results)


def compare(draws, networks):
    """Both samplers with `draws` draws of each of two chains, against the posterior from so many networks."""
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(8, 2)), rng.normal(size=(10, 2))
    y = np.sin(1.5 * x[:, 0]) + NOISE_VARIANCE**0.5 * rng.normal(size=8)
    exact = gpntk.sample_finite_width_posterior(
        NETWORK,
        x,
        y,
        x_test,
        width=WIDTH,
        noise_variance=NOISE_VARIANCE,
        n_samples=networks,
        key=jax.random.key(0),
    )
    options = {"net": NETWORK, "width": WIDTH, "noise_variance": NOISE_VARIANCE}

    def kernel_outputs(mcmc):
        predict = Predictive(models.finite_width_regression, mcmc.get_samples())
        return predict(jax.random.key(1), x, y, x_test, **options)["f_mean"]

    candidates = {
        "random kernel": (models.finite_width_regression, (x, y), options, kernel_outputs),
        "weights": (weights_model, (x, y, x_test), {}, lambda mcmc: mcmc.get_samples()["f"]),
    }
    rows, results = [], {}
    for name, (model, arguments, keywords, outputs) in candidates.items():
        mcmc = MCMC(NUTS(model), num_warmup=draws // 2, num_samples=draws, num_chains=2, chain_method="sequential",
                    progress_bar=False)  # fmt: skip
        first = measure.seconds(lambda m=mcmc, a=arguments, k=keywords: m.warmup(jax.random.key(0), *a, **k))
        sampling = measure.seconds(lambda m=mcmc, a=arguments, k=keywords: m.run(jax.random.key(1), *a, **k))
        f = np.asarray(outputs(mcmc)).reshape(2, -1, len(x_test))
        rate = float(np.min(effective_sample_size(f))) / sampling
        systematic = float(np.sqrt(np.mean((f.mean((0, 1)) - exact.mean) ** 2)))
        # Draws of the random kernel are conditional means, which vary less than outputs do.
        variance = float(np.mean(f.var((0, 1))))
        results[name] = {
            "first_call_s": first, "sampling_s": sampling, "effective_samples_per_s": rate,
            "rms_error_of_mean": systematic, "variance_of_draws": variance,
            "r_hat": float(np.max(split_gelman_rubin(f))),
            "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
        }  # fmt: skip
    error = results["random kernel"]["rms_error_of_mean"]
    for name, result in results.items():
        result["seconds_to_equal_error"] = (
            result["variance_of_draws"] / error**2 / result["effective_samples_per_s"]
        )
        rows.append([
            name, f"{result['first_call_s']:.1f}", f"{result['sampling_s']:.2f}",
            f"{result['effective_samples_per_s']:.0f}", f"{result['rms_error_of_mean']:.4f}",
            f"{result['seconds_to_equal_error']:.2f}", f"{result['r_hat']:.3f}", str(result["divergences"]),
        ])  # fmt: skip
    header = [
        "NUTS over",
        "first s",
        "sampling s",
        "ESS/s",
        "error of mean",
        "s to equal error",
        "r-hat",
        "diverging",
    ]
    print(measure.table(header, rows))
    ratio = results["random kernel"]["effective_samples_per_s"] / results["weights"]["effective_samples_per_s"]
    equal = results["weights"]["seconds_to_equal_error"] / results["random kernel"]["seconds_to_equal_error"]
    print(
        f"Effective samples per second: {ratio:.0f} times those of the weights; at equal error {equal:.0f} times."
    )
    return {"methods": results, "ratio_of_rates": ratio, "ratio_at_equal_error": equal}


def weights_model(x, y, x_test):
    """The network itself, with all its weights."""
    shapes = jax.eval_shape(lambda key: NETWORK.init(key, x.shape[1], WIDTH), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shapes)
    weights = [
        numpyro.sample(f"weights_{i}", numpyro.distributions.Normal(jnp.zeros(leaf.shape), 1.0).to_event())
        for i, leaf in enumerate(leaves)
    ]
    outputs = NETWORK.apply(jax.tree.unflatten(structure, weights), jnp.concatenate([x, x_test]))[:, 0]
    numpyro.sample("y", numpyro.distributions.Normal(outputs[: len(x)], NOISE_VARIANCE**0.5).to_event(), obs=y)
    numpyro.deterministic("f", outputs[len(x) :])


def large():
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(100, 2)), rng.normal(size=(50, 2))
    y = np.sin(1.5 * x[:, 0]) + 0.1**0.5 * rng.normal(size=100)
    options = {"net": NETWORK, "width": 512, "noise_variance": 0.1}
    model = models.finite_width_regression
    start = time.perf_counter()
    # The model prepares itself when it is first traced, for the test inputs too.
    sites = numpyro.handlers.trace(numpyro.handlers.seed(model, 0)).get_trace(x, y, x_test, **options)
    setup = time.perf_counter() - start
    mcmc = MCMC(NUTS(model), num_warmup=500, num_samples=1000, progress_bar=False)
    sampling = measure.seconds(lambda: mcmc.run(jax.random.key(0), x, y, **options))
    predict = Predictive(model, mcmc.get_samples())
    prediction = measure.seconds(
        lambda: jax.block_until_ready(predict(jax.random.key(1), x, y, x_test, **options)["f_mean"])
    )
    modes = len(sites["kernel_modes"]["value"])
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    print(f"100 training, 50 test inputs, width 512: {modes} modes, {divergences} divergences")
    print(
        f"set-up {setup:.0f} s, 500 warm-up steps and 1000 draws {sampling:.0f} s, prediction {prediction:.0f} s"
    )
    return {
        "modes": modes, "setup_s": setup, "warmup_and_1000_draws_s": sampling, "prediction_s": prediction,
        "divergences": divergences,
    }  # fmt: skip


if __name__ == "__main__":
    main()
