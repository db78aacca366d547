"""Neurons of a network that a fit of the GIF neuron to a recording has found."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import runs
from runs import BadInput

import numpy as np

SCRIPT = "neuron_fitting_of_gif_model"
# Of the neuron itself; a fit has parameters of the electrode and of escape noise besides, which are left behind.
POTENTIALS = ("V_reset", "V_th_inf", "V_th_reset", "V_i", "E_g")  # mV
DIFFERENCES = ("A_th", "A_th2", "k_i")  # mV
CURRENTS = ("A1", "A2", "A3")  # nA
OTHERS = ("tau", "t_ref", "a", "b", "b2", "k1", "k2", "k3", "k_g", "R1", "R2")  # ms, 1/ms and factors
ABSENT = dict(A_th=0.0, A_th2=0.0, A3=0.0, A_g=0.0, b2=0.01, k3=0.05, k_g=0.05, E_g=0.0, V_i=0.0, k_i=0.0, t_ref=0.0)
DRAWS = ("even", "random")


@dataclasses.dataclass(frozen=True)
class FittedNeuron:
    """A neuron that a run of the fit has found.

    Args:
        run: its folder.
        constants: {name: value} of `utils.GIF`, in mV, ms, 1/ms, nA and Mohm.
        width: of its escape noise (mV), which the neuron of a network does not have; None without.
        at_bounds: parameters that the fit has left at their bounds, which are those of the search, not of the cell.
    """

    run: Path
    constants: dict[str, float]
    width: float | None
    at_bounds: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """V_th_inf - V_rest (mV), the unit of potentials in a network."""
        return self.constants["V_th_inf"] - self.constants["V_rest"]

    def dimensionless(self, currents: bool = True) -> dict[str, float]:
        """The constants of the same neuron with V_rest = 0, V_th_inf = 1 and R = 1; rates and times stay as they are.

        A current is multiplied by R / (V_th_inf - V_rest), a conductance by R.

        Args:
            currents: whether it keeps its spike-triggered currents, and conductance.
        """
        own = self.constants
        found = {name: self.potential(own[name]) for name in POTENTIALS}
        found |= {name: own[name] / self.scale for name in DIFFERENCES}
        found |= {name: own[name] * own["R"] / self.scale * currents for name in CURRENTS}
        found |= dict(A_g=own["A_g"] * own["R"] * currents, R=1.0, V_rest=0.0)
        return found | {name: own[name] for name in OTHERS}

    def potential(self, V: float) -> float:
        """A potential in mV, such as a reversal potential, as V in the network."""
        return (V - self.constants["V_rest"]) / self.scale

    def told(self, dt: float) -> str:
        """A line that says which neuron it is, in a network of time step dt (ms)."""
        own = self.constants
        t_ref = f"t_ref {own['t_ref']:.3g} ms" + (f" ({round(own['t_ref'] / dt) * dt:g} here)" if own["t_ref"] else "")
        noise = "" if self.width is None else f"; without its escape noise ({self.width:.2g} mV)"
        bounds = f"; at the bounds of the fit: {', '.join(self.at_bounds)}" if self.at_bounds else ""
        return f"{self.run}: tau {own['tau']:.3g} ms, threshold {self.scale:.3g} mV above rest, {t_ref}{noise}{bounds}"


def read_neuron(run: Path, argument: str) -> FittedNeuron:
    """The neuron of the run folder of a fit, which `argument` names.

    Raises:
        BadInput: the folder has no such fit, or its neuron has no place in a network.
    """
    result = runs.load_json(run / "result.json")
    if not isinstance(result, dict) or result.get("script") != SCRIPT or "parameters" not in result:
        expected = f"the run folder of a fit by {SCRIPT}.py"
        raise BadInput(f"argument --{argument}: found no result.json of one in {run}, expected {expected}")
    if result.get("interrupted"):
        raise BadInput(
            f"argument --{argument}: found a fit in {run} that was interrupted, expected a whole one (--resume)"
        )
    found = result["constants"] | result["parameters"]
    width = found.get("width", result.get("width_mV"))
    names = ("V_rest", "R", "A_g", *POTENTIALS, *DIFFERENCES, *CURRENTS, *OTHERS)
    # The escape rate of recordings has no floor of the threshold.
    known = ABSENT | ({"V_th_reset": -np.inf} if result.get("escape") == "exponential" else {}) | found
    if missing := [name for name in names if name not in known]:
        raise BadInput(f"{run / 'result.json'}: found no {', '.join(missing)}, expected all parameters of the neuron")
    reasons = result.get("identifiability", {}).get("without_error", {})
    at_bounds = tuple(name for name in names if reasons.get(name, "").startswith("at its bound"))
    neuron = FittedNeuron(run, {name: float(known[name]) for name in names}, width, at_bounds)
    if neuron.scale <= 0:
        values = f"V_rest {known['V_rest']:.4g} mV at or above V_th_inf {known['V_th_inf']:.4g} mV"
        raise BadInput(f"argument --{argument}: found {values} in {run}, expected a neuron that is silent at rest")
    return neuron


def draw(n_kind: int, n: int, rng: np.random.Generator, how: str) -> np.ndarray:
    """Which of n_kind neurons each of the n of a population is: 'even', as many of each as can be, or 'random'."""
    return rng.permutation(np.arange(n) % n_kind) if how == "even" else rng.integers(n_kind, size=n)


def constants_of(neurons: Sequence[FittedNeuron], which: np.ndarray, currents: bool = True) -> dict[str, np.ndarray]:
    """{name: (n,)} of the neurons of a population, dimensionless."""
    rows = [neuron.dimensionless(currents) for neuron in neurons]
    return {name: np.array([row[name] for row in rows])[which] for name in rows[0]}
