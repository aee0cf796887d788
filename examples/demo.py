"""The main job: an ensemble of Ising simulations on all cores, analysed as they finish, plotted at the end.

    make demo                                          or
    python examples/demo.py --size 64 --sweeps 20000

What to look at: `campaign` registers the whole graph at once, a few hundred tasks, and waits for nothing. For each
temperature it is

    simulate (one per seed, NumPy)  ->  autocorrelation (a command line program)  ->  analyse  ->  draw

and each future simply stands where its value is wanted. The loop below then takes the temperatures in the order in
which they finish.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import ising
import numpy as np

from asyncflow import TaskFuture, WorkflowEngine, executable_task, function_task


@function_task
def simulate(temperature: float, seed: int, size: int, sweeps: int, path: Path) -> Path:
    return ising.simulate(temperature, seed, size, sweeps, path)


@executable_task
def autocorrelation(series: list[Path]) -> list[str | Path]:
    return [sys.executable, Path(ising.__file__).with_name("autocorrelation.py"), *series]


@function_task
def analyse(temperature: float, size: int, series: list[Path], time_in_sweeps: str) -> ising.Point:
    return ising.analyse(temperature, size, series, float(time_in_sweeps))


@function_task
def draw(points: list[ising.Point], title: str, path: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")  # before pyplot is imported: there may be no display here
    from matplotlib import pyplot as plt

    grid = np.linspace(points[0].temperature, points[-1].temperature, 1001, dtype=np.float64)
    panels = [
        ("magnetisation", r"magnetisation $\langle|m|\rangle$", ising.exact_magnetisation),
        ("energy", r"energy $E$", ising.exact_energy),
        ("specific_heat", r"specific heat $C_v$", ising.exact_specific_heat),
        ("susceptibility", r"susceptibility $\chi$", None),
    ]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.5), sharex=True, layout="constrained")
    for axis, (name, label, exact) in zip(axes.flat, panels, strict=True):
        estimates: list[ising.Estimate] = [getattr(point, name) for point in points]
        values = [estimate.value for estimate in estimates]
        axis.axvline(ising.CRITICAL, color="0.6", linestyle="--", linewidth=1, label=f"$T_c$ = {ising.CRITICAL:.3f}")
        if exact is not None:
            axis.plot(grid, exact(grid), color="tab:orange", label="exact, infinite lattice (Onsager)")
        axis.errorbar(
            [point.temperature for point in points],
            values,
            yerr=[estimate.error for estimate in estimates],
            fmt="o",
            markersize=4,
            capsize=2,
            color="tab:blue",
            label="simulation",
        )
        axis.set_ylabel(label)
    # The exact one diverges; what a finite lattice can show is below.
    axes[1, 0].set_ylim(0, 1.3 * max(point.specific_heat.value + point.specific_heat.error for point in points))
    for axis in axes[1]:
        axis.set_xlabel(r"temperature $T$ ($J/k_B$)")
    figure.suptitle(title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=150)
    return path


def temperatures(count: int) -> list[float]:
    """From 0.9 below the critical temperature to 0.9 above, three times as dense near it."""
    steps = np.linspace(-1, 1, count)
    return [float(temperature) for temperature in ising.CRITICAL + 0.3 * steps + 0.6 * steps**3]


def campaign(options: argparse.Namespace) -> tuple[list[TaskFuture[ising.Point]], TaskFuture[Path]]:
    """Register everything: the futures of the points, and that of the picture."""
    series = options.output / "series"
    series.mkdir(parents=True, exist_ok=True)
    points = []
    for t in temperatures(options.temperatures):
        runs = [
            simulate(t, seed, options.size, options.sweeps, series / f"T{t:.4f}-seed{seed}.txt")
            for seed in range(options.seeds)
        ]
        points.append(analyse(t, options.size, runs, autocorrelation(runs)))
    title = (
        f"2D Ising model, {options.size} x {options.size} spins, "
        f"{options.seeds} x {options.sweeps} Metropolis sweeps a temperature; all per spin"
    )
    return points, draw(points, title, options.output / "ising.png")


def row(point: ising.Point) -> str:
    observables = [point.energy, point.magnetisation, point.specific_heat, point.susceptibility, point.binder]
    values = "".join(f"{observable.value:9.4f}" for observable in observables)
    return f"{point.temperature:8.4f}{values}{point.correlation:7.1f}"


async def main(options: argparse.Namespace) -> None:
    options.output = options.output.resolve()
    started = time.perf_counter()
    async with WorkflowEngine.create(backend="processes") as flow, flow.workflow_scope("ising"):
        points, picture = campaign(options)
        names = "".join(f"{name:>9}" for name in ("E", "|m|", "C_v", "chi", "Binder"))
        print(f"{'finished':9}{'T':>8}{names}{'tau':>7}")
        for finished, point in enumerate(asyncio.as_completed(points), start=1):
            print(f"[{finished:3}/{len(points):3}]{row(await point)}", flush=True)
        path = await picture
    runs = options.temperatures * options.seeds
    print(f"\n{runs} simulations, {len(points)} programs and {len(points)} analyses ", end="")
    print(f"in {time.perf_counter() - started:.1f} s\npicture: {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="An ensemble of Ising simulations.")
    parser.add_argument("--size", type=int, default=32, help="edge of the lattice, even")
    parser.add_argument("--sweeps", type=int, default=8000, help="recorded sweeps of each simulation")
    parser.add_argument("--temperatures", type=int, default=24, help="how many")
    parser.add_argument("--seeds", type=int, default=4, help="simulations at each temperature")
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for series and picture")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(arguments()))
