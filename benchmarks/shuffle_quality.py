"""Does the computed shuffle look as random as NumPy's? Seven statistics of both, mean and worst over seeds.

    python benchmarks/shuffle_quality.py

Each statistic is scaled so that a random permutation gives about 0 to 1.5 on average and rarely more than 4.
"""

import numpy as np

from penstock import Epochs

SEEDS = 12
NAMES = ["order", "steps", "places", "parity", "residues", "far steps", "lags"]


def statistics(rows: np.ndarray) -> list[float]:
    """Seven numbers of a permutation of 0..n-1: correlations in units of their deviation, and chi-squares likewise."""
    n = len(rows)
    places = np.arange(n)
    steps = np.diff(rows) % n
    lags = [abs(correlation(rows[:-k], rows[k:])) for k in (1, 2, 447, 448, 449, 1000)]
    return [
        abs(correlation(places, rows)),
        chi_square(np.bincount(steps * 256 // n, minlength=256)),
        chi_square(np.bincount((places * 64 // n) * 64 + rows * 64 // n, minlength=4096)),
        abs(correlation(rows[:-1] & 1, rows[1:] & 1)),
        chi_square(np.bincount((rows[:-1] % 37) * 37 + rows[1:] % 37, minlength=1369)),
        chi_square(np.bincount((np.diff(rows[::449]) % n) * 32 // n, minlength=32)),
        max(lags),
    ]


def correlation(left: np.ndarray, right: np.ndarray) -> float:
    """Pearson's, times the root of the number of pairs: normal with deviation 1 where there is none."""
    return float(np.corrcoef(left, right)[0, 1] * np.sqrt(len(left)))


def chi_square(counts: np.ndarray) -> float:
    """Chi-square of equal expected counts, less its mean, in units of its deviation."""
    mean, degrees = counts.mean(), len(counts) - 1
    return float((((counts - mean) ** 2 / mean).sum() - degrees) / np.sqrt(2 * degrees))


def main() -> None:
    """Prints a table for four sizes."""
    print("| rows | shuffle | " + " | ".join(f"{name}: mean (worst)" for name in NAMES) + " |")
    print("| --- " * (len(NAMES) + 2) + "|")
    for n in (65_536, 200_000, 735_577, 1_000_003):
        kinds = {
            "Epochs": [Epochs(n, seed=seed).rows(0, n) for seed in range(SEEDS)],
            "numpy": [np.random.default_rng(seed).permutation(n) for seed in range(SEEDS)],
        }
        for kind, orders in kinds.items():
            found = np.array([statistics(order) for order in orders])
            cells = [f"{mean:.2f} ({worst:.2f})" for mean, worst in zip(found.mean(0), found.max(0), strict=True)]
            print(f"| {n:,} | {kind} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
