"""Integrated autocorrelation time of a column of numbers: a command line program, run by `demo.py` as an executable.

    python autocorrelation.py SERIES [SERIES ...]

Each SERIES is a text file with a column of energies and one of magnetisations. Prints one number: the integrated
autocorrelation time of the absolute magnetisation, in rows, averaged over the files; a mean over n rows is as good as
one over n / (2 time) independent ones. Knows nothing of asyncflow.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt


def integrated_time(series: npt.NDArray[np.float64]) -> float:
    """At least 0.5, which stands for independent rows.

    The sum over the autocorrelation function is cut at the first lag that is five times what the sum has reached:
    beyond, there is only noise (Sokal's window).
    """
    deviations = series - series.mean()
    # Padded with zeros to twice the length, or the end would be correlated with the beginning.
    spectrum = np.abs(np.fft.rfft(deviations, 2 * len(series))) ** 2
    covariance = np.fft.irfft(spectrum)[: len(series)]
    if covariance[0] <= 0:  # a series that never changes
        return 0.5
    times = np.cumsum(covariance / covariance[0]) - 0.5
    beyond = np.flatnonzero(np.arange(len(times)) >= 5 * times)
    return max(0.5, float(times[beyond[0]] if len(beyond) else times[-1]))


def main(paths: list[str]) -> int:
    """The exit code: 2 where there is nothing to read."""
    if not paths:
        print(__doc__, file=sys.stderr)
        return 2
    times = [integrated_time(np.abs(np.loadtxt(path, usecols=1))) for path in paths]
    print(f"{np.mean(times):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
