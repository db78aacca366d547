"""Held-out spike counts of the GIF neuron fitted to a step protocol alone, beside what the cell itself does.

    python tests/benchmarks/gif_steps.py [--model_terms auto] [--n_trial 1000]

The steps are those of data/recording.nwb: every other one is fitted, the others are held out, once each. How many
spikes one has is partly chance, by the noise of the cell's synapses. Its equations (data/make_recording.py, with the
constants of data/recording.json) are therefore integrated in n_trial trials a step, by the same scheme: fourth-order
Runge-Kutta at 0.01 ms, in each step of which the noise is constant. A line a held-out step: the spikes recorded, the
mean of the model with its escape noise, mean and s.d. of the cell, and its share of trials with each count. The last
line has the largest difference of the model from the recording, and from the mean of the cell. 10 minutes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import jax
import jax.numpy as jnp
import numpy as np
from common import fit
from jax.typing import ArrayLike

from numerics import exprel

SCRIPT, FILE = "neuron_fitting_of_gif_model.py", "data/recording.nwb"
FITTED, HELD_OUT = range(0, 11, 2), range(1, 11, 2)  # steps; the sweeps of noise come before them
N_NOISE, DT, T_REST = 5, 0.01, 2000.0  # sweeps; ms; ms before each sweep
LEVEL, FALL = 0.0, 10.0  # mV: a spike crosses the first, and then falls below it by the second


def slopes(cell: Mapping[str, float], y: jax.Array, I: ArrayLike, x: jax.Array) -> jax.Array:
    """dy/dt of V, m, h, n, p and q (6, n), per ms, under a current I (nA) and noise x of two conductances (2, n)."""
    V, m, h, n, p, q = y
    v = V - cell["V_T"]
    g_e, g_i = (jnp.maximum(cell[f"g{s}"] + cell[f"g{s}_sd"] * noise, 0) for s, noise in zip("ei", x, strict=True))
    out = cell["gL"] * (V - cell["EL"]) + cell["gNa"] * m**3 * h * (V - cell["ENa"])
    out += (cell["gK"] * n**4 + cell["gM"] * p) * (V - cell["EK"]) + cell["gh"] * q * (V - cell["Eh"])
    out += g_e * (V - cell["Ee"]) + g_i * (V - cell["Ei"])
    rates_m = 1.28 / exprel((13 - v) / 4), 1.4 / exprel((v - 40) / 5)
    rates_h = 0.128 * jnp.exp((17 - v) / 18), 4 / (1 + jnp.exp((40 - v) / 5))
    rates_n = 0.16 / exprel((15 - v) / 5), 0.5 * jnp.exp((10 - v) / 40)
    rates_q = 0.00643 * 11.9 / exprel((V + 154.9) / 11.9), 0.193 * jnp.exp(V / 33.1)
    gates = [a * (1 - gate) - b * gate for gate, (a, b) in zip((m, h, n), (rates_m, rates_h, rates_n), strict=True)]
    rate_p = (3.3 * jnp.exp((V + 35) / 20) + jnp.exp(-(V + 35) / 20)) / cell["tau_max"]
    dp = (1 / (1 + jnp.exp(-(V + 35) / 10)) - p) * rate_p
    return jnp.stack([(I - out) / cell["C"], *gates, dp, rates_q[0] * (1 - q) - rates_q[1] * q])


def counts_of_cell(facts: Mapping[str, Mapping[str, float]], steps: Sequence[int], n_trial: int) -> np.ndarray:
    """Spikes of the cell under steps of its protocol, each in n_trial trials: (len(steps), n_trial)."""
    cell, protocol = facts["cell"], facts["steps"]
    amplitudes = jnp.repeat(jnp.array([protocol["first"] + k * protocol["increment"] for k in steps]), n_trial)
    t_on, t_off = T_REST + protocol["zero_ms"], T_REST + protocol["zero_ms"] + protocol["step_ms"]
    decay = jnp.exp(-DT / jnp.array([[cell["tau_e"]], [cell["tau_i"]]]))

    def step(state, k):
        y, x, armed, count, key = state
        key, own = jax.random.split(key)
        x = decay * x + jnp.sqrt(1 - decay**2) * jax.random.normal(own, x.shape)
        I = jnp.where((k * DT >= t_on) & (k * DT < t_off), amplitudes, 0.0)
        k1 = slopes(cell, y, I, x)
        k2 = slopes(cell, y + DT / 2 * k1, I, x)
        k3 = slopes(cell, y + DT / 2 * k2, I, x)
        y = y + DT / 6 * (k1 + 2 * k2 + 2 * k3 + slopes(cell, y + DT * k3, I, x))
        seen = y[0] + facts["electrode"]["R_s"] * I
        count = count + (armed & (seen >= LEVEL) & (k * DT >= T_REST))
        return (y, x, (seen < LEVEL) & (armed | (seen < LEVEL - FALL)), count, key), None

    @jax.jit
    def run(key):
        start = jnp.array([-70.0, 0.0, 1.0, 0.0, 0.03, 0.0])[:, None] + 0 * amplitudes
        state = start, jnp.zeros((2, len(amplitudes))), amplitudes < jnp.inf, 0 * amplitudes, key
        n_step = round((t_off + protocol["after_ms"]) / DT)
        return jax.lax.scan(step, state, jnp.arange(n_step))[0][3]

    return np.asarray(run(jax.random.key(0)), int).reshape(len(steps), n_trial)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_terms", nargs="+", default=[], help="as the script has it; default: the script's")
    parser.add_argument("--n_trial", type=int, default=1000, help="trials of the cell a step; default: 1000")
    args = parser.parse_args(argv)
    runs.setup_jax(64)
    fitted, held_out = (",".join(str(N_NOISE + k) for k in part) for part in (FITTED, HELD_OUT))
    arguments = f"--recording {FILE} --sweeps {fitted} --validation_sweeps {held_out} --n_sample 8"
    arguments += f" --model_terms {' '.join(args.model_terms)}" if args.model_terms else ""
    print(f"python {SCRIPT} {arguments}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        validation = fit(SCRIPT, arguments, 0, Path(folder) / "run")["validation"]
    facts = json.loads((Path(__file__).resolve().parents[2] / FILE).with_suffix(".json").read_text())
    cell = counts_of_cell(facts, HELD_OUT, args.n_trial)
    recorded, model = np.array(validation["n_spikes"]), np.array(validation["n_spikes_noise"])
    for k, n, mean, counts in zip(HELD_OUT, recorded, model, cell, strict=True):
        shares = ", ".join(f"{i}: {np.mean(counts == i):.3f}" for i in np.unique(counts))
        print(f"step_{k:02}: {n} recorded, model {mean:.2f}, cell {counts.mean():.2f} ± {counts.std():.2f} ({shares})")
    away = np.abs(model - recorded).max(), np.abs(model - cell.mean(axis=1)).max()
    print("largest difference of the model from the recording {:.2f}, from the cell's mean {:.2f} spikes".format(*away))


if __name__ == "__main__":
    main()
