"""Scan the energy of a water molecule over bond length and bond angle, and find its equilibrium geometry.

Each point of the grid is one task: a Hartree-Fock and an MP2 energy, computed with PySCF. Such a scan of water is the
throughput study in the Balsam paper (Salim et al., arXiv:1909.08704). Here it is an ordinary Parsl program, in five
steps:

1. ``energy``     one point of the grid, on one core
2. ``write_row``  the points of one bond length, into a file
3. ``sort_rows``  all rows into one table, the lowest energy first (a shell command)
4. ``fit``        a polynomial through the table, and its minimum
5. ``energy``     once more, at that minimum: how good is the polynomial?

Try it, kill it in the middle (Ctrl-C, or worse), and start it again: points that were computed are not computed again.

    python examples/water_scan.py
    python examples/water_scan.py --grid 30x30 --basis cc-pvtz --database postgresql:///me
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np
import parsl
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from parsl.app.app import bash_app, python_app
from parsl.data_provider.files import File
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from scipy.interpolate import RectBivariateSpline

from parsl_balsam import BalsamExecutor

KJ_PER_MOL = 2625.4996  # one hartree, CODATA 2018

# Bond length (Angstrom) and angle (degrees). The equilibrium geometry is that of Csaszar et al., J. Chem. Phys. 122,
# 214305 (2005), doi:10.1063/1.1924506; Hoy and Bunker, J. Mol. Spectrosc. 74, 1 (1979), found the same by experiment.
EQUILIBRIUM = (0.9578, 104.48)
# Minimum of frozen-core MP2/cc-pVDZ, optimised without a grid, with the settings of `energy`.
MP2_CC_PVDZ = (0.9649, 101.90)


@python_app
def energy(r: float, angle: float, basis: str) -> tuple[float, float]:
    """Return the Hartree-Fock and frozen-core MP2 energies, in hartree, of H2O with both bonds ``r`` Angstrom long."""
    import pyscf

    pyscf.lib.num_threads(1)  # tasks run side by side, one per core
    water = pyscf.M(atom=f"O; H 1 {r}; H 1 {r} 2 {angle}", basis=basis, verbose=0)
    hartree_fock = water.RHF().run()
    if not hartree_fock.converged:
        raise RuntimeError(f"Hartree-Fock did not converge at r={r}, angle={angle}")
    mp2 = hartree_fock.MP2(frozen=1).run()
    return float(hartree_fock.e_tot), float(mp2.e_tot)


@python_app
def write_row(r: float, angles: list[float], inputs: list[tuple[float, float]], outputs: list[File]) -> None:
    """Write one line for each angle: bond length, angle, Hartree-Fock energy, MP2 energy."""
    with open(outputs[0].filepath, "w") as row:
        for angle, (hartree_fock, mp2) in zip(angles, inputs, strict=True):
            row.write(f"{r:.4f} {angle:.3f} {hartree_fock:.9f} {mp2:.9f}\n")


@bash_app
def sort_rows(inputs: list[File], outputs: list[File], stderr: str) -> str:
    """Join the rows in one table, the lowest MP2 energy first."""
    import shlex

    rows = shlex.join(row.filepath for row in inputs)
    return f"LC_ALL=C sort --numeric-sort --key=4 {rows} > {shlex.quote(outputs[0].filepath)}"


@python_app
def fit(inputs: list[File]) -> tuple[float, float, float]:
    """Fit a quartic to the MP2 energies of a table; return bond length, angle and energy of its minimum.

    The fit is by least squares with the weight exp(-E / 30 kJ/mol), E being the energy above the lowest point: the
    minimum matters, the repulsive wall does not. On the default grid this brings the minimum to within 0.0001 Angstrom
    and 0.01 degrees of a direct optimisation.
    """
    import numpy as np
    from scipy.optimize import minimize

    r, angle, _, mp2 = np.loadtxt(inputs[0].filepath, unpack=True)
    lowest = mp2[0]
    weight = np.exp(-(mp2 - lowest) * 2625.4996 / 30)
    powers = [(i, j) for i in range(5) for j in range(5 - i)]

    def terms(r: np.ndarray, angle: np.ndarray) -> np.ndarray:
        x, y = (r - 0.96) / 0.2, (angle - 104) / 20
        return np.stack([x**i * y**j for i, j in powers], axis=-1)

    coefficients, *_ = np.linalg.lstsq(terms(r, angle) * weight[:, None], (mp2 - lowest) * weight, rcond=None)
    minimum = minimize(lambda x: terms(*x) @ coefficients, [r[0], angle[0]], method="Nelder-Mead", tol=1e-9)
    return float(minimum.x[0]), float(minimum.x[1]), float(lowest + minimum.fun)


def draw(lengths: list[float], angles: list[float], mp2: np.ndarray, minimum: tuple[float, float]) -> Figure:
    """Draw the surface ``mp2`` (hartree, len(lengths) x len(angles)), interpolated by a bicubic spline."""
    x, y = np.linspace(lengths[0], lengths[-1], 300), np.linspace(angles[0], angles[-1], 300)
    surface = RectBivariateSpline(lengths, angles, mp2)(x, y).T
    relative = (surface - surface.min()) * KJ_PER_MOL
    levels = [0, 2, 5, 10, 20, 40, 80, 120, 160, 200, 250]

    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    axes = figure.subplots()
    norm = BoundaryNorm(levels, ncolors=256, extend="max")
    filled = axes.contourf(x, y, relative, levels, cmap="viridis", norm=norm, extend="max")
    axes.contour(x, y, relative, levels[1:], colors="white", linewidths=0.6, alpha=0.7)
    axes.plot(*np.meshgrid(lengths, angles), ".", color="black", markersize=1.5, alpha=0.35)
    for (r, angle), name, marker, size, colour, edge in (
        (minimum, "minimum of the fit", "P", 11, "crimson", "white"),
        (EQUILIBRIUM, "true equilibrium", "*", 15, "gold", "black"),
    ):
        label = f"{name}: {r:.4f} Å, {angle:.2f}°"
        axes.plot(r, angle, marker, markersize=size, color=colour, markeredgecolor=edge, label=label)
    axes.set(xlabel="O-H bond length (Å)", ylabel="H-O-H angle (°)", title=f"Energy of water, from {mp2.size} points")
    axes.legend(loc="upper right", framealpha=0.95)
    figure.colorbar(filled, ticks=levels, label="MP2 energy above the minimum (kJ/mol)")
    return figure


def grid(text: str) -> tuple[int, int]:
    """Read "20x15" as 20 bond lengths and 15 angles."""
    try:
        lengths, angles = (int(number) for number in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 20x15") from None
    if min(lengths, angles) < 5:
        raise argparse.ArgumentTypeError("a quartic needs at least 5x5 points")
    return lengths, angles


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Energy of water over bond length and angle, and its minimum.")
    parser.add_argument("--database", default="sqlite:///water.db", help="where the tasks live [%(default)s]")
    parser.add_argument("--workflow", default="water-scan", help="calls are recognised within it [%(default)s]")
    parser.add_argument("--grid", type=grid, default="20x15", help="bond lengths x angles [%(default)s]")
    parser.add_argument("--basis", default="cc-pvdz", help="basis set, as PySCF names it [%(default)s]")
    parser.add_argument("--directory", type=Path, default=Path("demo"), help="for tables and picture [%(default)s]")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    console = Console()
    begin = time.monotonic()

    # Rounded, so that the same point is the same call in every run.
    lengths = np.linspace(0.80, 1.20, options.grid[0]).round(4).tolist()
    angles = np.linspace(85, 125, options.grid[1]).round(3).tolist()

    # A call that writes a file is known by its path, so the path has no date and no number of the run in it.
    folder = options.directory.resolve() / f"{options.basis}-{len(lengths)}x{len(angles)}"
    folder.mkdir(parents=True, exist_ok=True)

    executor = BalsamExecutor(workflow=options.workflow, database=options.database)
    with parsl.load(parsl.Config(executors=[executor], run_dir=str(options.directory / "runinfo"))):
        points = [[energy(r, angle, options.basis) for angle in angles] for r in lengths]
        rows = [
            write_row(r, angles, inputs=row, outputs=[File(str(folder / f"row-{r:.4f}.txt"))])
            for r, row in zip(lengths, points, strict=True)
        ]
        table = sort_rows(
            inputs=[row.outputs[0] for row in rows],
            outputs=[File(str(folder / "table.txt"))],
            stderr=str(folder / "sort.err"),
        )
        fitted = fit(inputs=[table.outputs[0]])

        all_points = [point for row in points for point in row]
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("points", total=len(all_points))
            for _ in as_completed(all_points):
                progress.advance(bar)
        counts = executor.reuse_counts("energy")

        r, angle, lowest = fitted.result()
        _, computed = energy(round(r, 5), round(angle, 3), options.basis).result()
        surface = np.array([[point.result() for point in row] for row in points])

    picture = folder / "surface.png"
    draw(lengths, angles, surface[..., 1], (r, angle)).savefig(picture, dpi=150)

    summary = Table(title=f"Water, MP2/{options.basis}")
    for column in ("", "O-H (Å)", "H-O-H (degrees)"):
        summary.add_column(column, justify="right" if column else "left")
    summary.add_row("minimum of the fit", f"{r:.4f}", f"{angle:.2f}")
    if options.basis == "cc-pvdz":
        summary.add_row("the same method, optimised directly", f"{MP2_CC_PVDZ[0]:.4f}", f"{MP2_CC_PVDZ[1]:.2f}")
    summary.add_row("true equilibrium (Császár et al. 2005)", f"{EQUILIBRIUM[0]:.4f}", f"{EQUILIBRIUM[1]:.2f}")
    console.print(summary)
    console.print(f"Energy there: {computed:.6f} hartree, {(lowest - computed) * KJ_PER_MOL:+.3f} kJ/mol in the fit.")
    console.print(
        f"{len(all_points)} points in {time.monotonic() - begin:.1f} s: {counts.reused} reused, "
        f"{counts.attached} re-attached, {counts.new} run."
    )
    console.print(f"Picture: {picture}", soft_wrap=True)


if __name__ == "__main__":
    main()
