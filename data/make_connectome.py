"""Make the connectome of this folder: a made-up circuit of cortex, as a table of connections.

Run by hand, from any folder:

    python data/make_connectome.py

160 excitatory neurons, E000 to E159, and 40 inhibitory ones. The excitatory neurons are of two groups, in which a pair
is connected four times as often as across; nothing in the file says who is in which. Weights are log-normal, as those
of cortex are (Song et al. 2005), in arbitrary units.
"""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).resolve().parent
SEED = 0
N_EXC, N_INH = 160, 40
# Probability of a connection, median weight and s.d. of its logarithm.
WITHIN, ACROSS, FROM_INH = 0.2, 0.05, 0.25
WEIGHT = {"E": (1.0, 0.9), "I": (4.0, 0.6)}


def rows():
    """(pre, post, weight, type) of each connection."""
    rng = np.random.default_rng(SEED)
    names = [f"E{i:03}" for i in range(N_EXC)] + [f"I{i:03}" for i in range(N_INH)]
    group = rng.permutation(np.arange(N_EXC) % 2)
    for i, pre in enumerate(names):
        kind = pre[0]
        p = np.full(len(names), FROM_INH if kind == "I" else (WITHIN + ACROSS) / 2)
        if kind == "E":
            p[:N_EXC] = np.where(group == group[i], WITHIN, ACROSS)
        p[i] = 0
        median, sd = WEIGHT[kind]
        for j in np.flatnonzero(rng.random(len(names)) < p):
            yield pre, names[j], round(float(median * np.exp(sd * rng.standard_normal())), 3), kind


def main():
    lines = ["pre,post,weight,type", *(",".join(map(str, row)) for row in rows())]
    (FOLDER / "connectome.csv").write_text("\n".join(lines) + "\n")
    print(f"connectome.csv: {len(lines) - 1} connections")


if __name__ == "__main__":
    main()
