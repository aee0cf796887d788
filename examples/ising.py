"""The two-dimensional Ising model: a Metropolis simulation, its observables, and the exact solution beside it.

Nothing here knows of asyncflow: these are the functions that one has already. Units: J = k_B = 1; all per spin.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: The critical temperature of the infinite lattice (Onsager 1944).
CRITICAL = 2 / math.log(1 + math.sqrt(2))


def simulate(temperature: float, seed: int, size: int, sweeps: int, path: Path) -> Path:
    """Sweep a periodic `size` x `size` lattice and write energy and magnetisation after each sweep to `path`.

    `size` must be even, for the lattice to be a checkerboard: spins of one colour have neighbours of the other only,
    so all of them can be updated at once. A fifth as many sweeps go before, unrecorded, to reach equilibrium. The
    start is all spins up; from a random start a cold lattice may freeze in stripes.
    """
    if size % 2:
        raise ValueError(f"size={size} must be even")
    rng = np.random.default_rng([seed, round(temperature * 1e9)])
    spins = np.ones(size * size)
    (black, beside_black), (white, beside_white) = _checkerboard(size)
    equilibration = sweeps // 5
    series = np.empty((sweeps, 2))
    for sweep in range(-equilibration, sweeps):
        _update(spins, black, beside_black, temperature, rng)
        field = _update(spins, white, beside_white, temperature, rng)
        if sweep >= 0:
            # Each bond has one white end, so the field there counts each bond once.
            series[sweep] = -np.dot(spins[white], field), spins.sum()
    np.savetxt(path, series / size**2, fmt="%.9g", header="energy magnetisation")
    return path


def _checkerboard(size: int) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """For either colour: the sites of that colour, and the four neighbours of each."""
    site = np.arange(size * size).reshape(size, size)
    beside = np.stack([np.roll(site, step, axis) for axis in (0, 1) for step in (1, -1)])
    colour = np.indices((size, size)).sum(axis=0) % 2
    return [(site[colour == c], beside[:, colour == c]) for c in (0, 1)]


def _update(
    spins: Floats,
    sites: npt.NDArray[np.intp],
    beside: npt.NDArray[np.intp],
    temperature: float,
    rng: np.random.Generator,
) -> Floats:
    """One Metropolis step for every site of one colour; the field of their neighbours, which it leaves unchanged."""
    field: Floats = spins[beside].sum(axis=0)
    old = spins[sites]
    # A flip costs 2 * spin * field.
    flips = rng.random(len(sites)) < np.exp((-2 / temperature) * old * field)
    spins[sites] = np.where(flips, -old, old)
    return field


@dataclass(frozen=True)
class Estimate:
    """A mean and its statistical error."""

    value: float
    error: float


@dataclass(frozen=True)
class Point:
    """What the simulations at one temperature say."""

    temperature: float
    energy: Estimate
    magnetisation: Estimate
    specific_heat: Estimate
    susceptibility: Estimate
    #: 2/3 in an ordered phase, 0 in a disordered one; curves of different sizes cross at the critical temperature.
    binder: Estimate
    #: Integrated autocorrelation time of the magnetisation, in sweeps.
    correlation: float


def analyse(temperature: float, size: int, paths: list[Path], correlation: float) -> Point:
    """Observables of all series of one temperature, with errors from a jackknife.

    Its blocks are ten autocorrelation times long, where the series are long enough to leave four of each, so that
    neighbouring blocks are close to independent.
    """
    blocks = []
    for path in paths:
        e, m = np.loadtxt(path, unpack=True)
        count = max(4, min(50, int(len(e) / (10 * correlation))))
        moments = np.stack([e, e**2, np.abs(m), m**2, m**4])
        length = len(e) // count
        blocks.append(moments[:, : count * length].reshape(len(moments), count, length).mean(axis=2))
    means: Floats = np.concatenate(blocks, axis=1)
    count = means.shape[1]
    total = _observables(means.mean(axis=1), temperature, size)
    without_one = _observables((means.sum(axis=1, keepdims=True) - means) / (count - 1), temperature, size)
    errors = np.sqrt((count - 1) * without_one.var(axis=1))
    energy, magnetisation, specific_heat, susceptibility, binder = (
        Estimate(float(value), float(error)) for value, error in zip(total, errors, strict=True)
    )
    return Point(temperature, energy, magnetisation, specific_heat, susceptibility, binder, correlation)


def _observables(moments: Floats, temperature: float, size: int) -> Floats:
    """Energy, magnetisation, specific heat, susceptibility and Binder cumulant from means of e, e², |m|, m², m⁴."""
    e, e2, m, m2, m4 = moments
    spins = size**2
    return np.stack(
        [e, m, spins * (e2 - e**2) / temperature**2, spins * (m2 - m**2) / temperature, 1 - m4 / (3 * m2**2)]
    )


def exact_magnetisation(temperature: Floats) -> Floats:
    """Spontaneous magnetisation of the infinite lattice (Onsager 1949, Yang 1952)."""
    magnetisation: Floats = np.maximum(0.0, 1 - np.sinh(2 / temperature) ** -4) ** 0.125
    return magnetisation


def exact_energy(temperature: Floats) -> Floats:
    """Energy of the infinite lattice (Onsager 1944)."""
    beta = 1 / temperature
    q = 2 * np.tanh(2 * beta) ** 2 - 1
    # The complete elliptic integral K(k), by the arithmetic-geometric mean of 1 and sqrt(1 - k²), which is |q| here.
    a, b = np.ones_like(q), np.abs(q)
    for _ in range(12):
        a, b = (a + b) / 2, np.sqrt(a * b)
    energy: Floats = -(1 + q / a) / np.tanh(2 * beta)
    return energy


def exact_specific_heat(temperature: Floats) -> Floats:
    """Specific heat of the infinite lattice: the slope of the exact energy. It diverges at the critical temperature."""
    step = 1e-5
    slope: Floats = (exact_energy(temperature + step) - exact_energy(temperature - step)) / (2 * step)
    return slope
