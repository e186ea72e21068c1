"""Measure the equation of state of the Lennard-Jones fluid with LAMMPS, on one node, on some and on all at a time.

Pressure and energy of the dense fluid above its critical temperature, by molecular dynamics: many small systems, one
core each, for a grid of densities and temperatures; and along the coldest isotherm larger ones, which are MPI programs
on half of the nodes and on all of them, to see whether the size matters. Everything runs in one block of Slurm nodes,
as there is room:

1. ``melt``     one system, by LAMMPS: a crystal that melts, then the fluid (a shell command)
2. ``average``  pressure and energy with their statistical errors, from the log of one system

The results are compared with a published equation of state, and those of different sizes with each other.

Try it, kill it in the middle (Ctrl-C, or worse), and start it again: systems that were computed are not computed again.

    apt-get install -y lammps openmpi-bin
    parsl-balsam db init ~/balsam && parsl-balsam db start ~/balsam --host $(hostname)
    python examples/mpi_ensemble.py --database ~/balsam --nodes 4 --partition debug
    python examples/mpi_ensemble.py --local                                # without Slurm: this host as four nodes
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import parsl
from matplotlib.figure import Figure
from parsl.app.app import bash_app, python_app
from parsl.data_provider.files import File
from parsl.launchers import SimpleLauncher
from parsl.providers import LocalProvider, SlurmProvider
from parsl.providers.base import ExecutionProvider
from rich.console import Console
from rich.table import Table

from parsl_balsam import BalsamExecutor

# Everything is in the units of the potential: its depth, its diameter, the mass of an atom.
INPUT = """
units           lj
atom_style      atomic
lattice         fcc ${density}
region          box block 0 ${cells} 0 ${cells} 0 ${cells}
create_box      1 box
create_atoms    1 box
mass            1 1.0
velocity        all create $(2*v_temperature) 87287 loop geom

pair_style      lj/cut 3.0
pair_coeff      1 1 1.0 1.0
pair_modify     tail yes
neighbor        0.5 bin
neigh_modify    every 1 delay 0 check yes

fix             1 all nvt temp ${temperature} ${temperature} 0.2
timestep        0.005
thermo          10
thermo_style    custom step temp pe press
print           "Nodes: ${nodes}"
run             ${equilibration}
run             ${production}
"""


@dataclass(frozen=True)
class Size:
    """A size of the simulated system, and how it is run."""

    cells: int  #: of four atoms each, along each edge
    equilibration: int  #: steps
    production: int  #: steps, fewer for larger systems, which average over more atoms
    part: float  #: of the block's nodes; 0 for one core

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return 4 * self.cells**3

    def resources(self, nodes: int, ranks_per_node: int) -> dict[str, Any]:
        """Return the resource specification of a run in a block of so many nodes."""
        if not self.part:
            return {"num_nodes": 1, "ranks_per_node": 1, "cores_per_rank": 1}
        return {"num_nodes": max(1, round(self.part * nodes)), "ranks_per_node": ranks_per_node}


SMALL = Size(cells=5, equilibration=500, production=2500, part=0)
MIDDLE = Size(cells=7, equilibration=400, production=1200, part=1 / 2)
LARGE = Size(cells=10, equilibration=400, production=800, part=1)
SIZES = (SMALL, MIDDLE, LARGE)


@dataclass(frozen=True)
class State:
    """What one run simulates."""

    temperature: float
    density: float
    size: Size


# How well the equation of state is known: at most by so much it differs from the Monte Carlo results for the liquid, of
# temperature 0.85 and 0.90 and density 0.776 to 0.860, of the NIST Standard Reference Simulation Website.
EQUATION_ERROR = {"pressure": 0.015, "energy": 0.002}


@bash_app
def melt(
    density: float,
    temperature: float,
    cells: int,
    equilibration: int,
    production: int,
    inputs: list[File],
    outputs: list[File],
    parsl_resource_specification: dict[str, Any],
) -> str:
    """Simulate 4 cells^3 atoms. The command is the same on one core and on many nodes."""
    import shlex

    script, log = shlex.quote(inputs[0].filepath), shlex.quote(outputs[0].filepath)
    return (
        f"lmp -in {script} -log {log} -screen none -var density {density} -var temperature {temperature} "
        f"-var cells {cells} -var equilibration {equilibration} -var production {production} "
        "-var nodes ${PARSL_MPI_NODELIST:-${SLURMD_NODENAME:-$HOSTNAME}}"
    )


@python_app
def average(inputs: list[File], parsl_resource_specification: dict[str, Any]) -> dict[str, Any]:
    """Return nodes, and mean and standard error of pressure and potential energy per atom, from the log of one system.

    The errors are those of ten block averages of the last part, each long enough to be independent of the others.
    """
    import numpy as np

    nodes: list[str] = []
    rows: list[list[float]] = []
    with open(inputs[0].filepath) as log:
        for line in log:
            fields = line.split()
            if line.startswith("Nodes: "):
                nodes = fields[1].split(",")
            elif fields[:1] == ["Step"]:
                rows.clear()
            elif len(fields) == 4 and fields[0].isdigit():
                rows.append([float(field) for field in fields])
    rows = rows[1:]  # the first is that before the run
    blocks = [block.mean(axis=0) for block in np.array_split(np.array(rows), 10)]
    means, errors = np.mean(blocks, axis=0).tolist(), (np.std(blocks, axis=0, ddof=1) / 10**0.5).tolist()
    return {"nodes": nodes, "energy": (means[2], errors[2]), "pressure": (means[3], errors[3])}


def free_energy(density: float, temperature: float) -> float:
    """Return the residual Helmholtz energy per atom.

    The equation of state of Kolafa and Nezbeda, Fluid Phase Equilib. 100, 1 (1994), doi:10.1016/0378-3812(94)80001-4:
    hard spheres, a correction of the second virial coefficient, and a polynomial.
    """
    root = math.sqrt(temperature)
    diameter = 0.011117524 / temperature - 0.076383859 / root + 1.080142248 + 0.000693129 * root
    diameter -= 0.063920968 * math.log(temperature)
    virial = (
        0.02459877 - 7.02181962 / root**2 + 2.90616279 / root**3 - 4.13749995 / root**4
        + 0.87361369 / root**5 + 0.43102052 / root**6 - 0.58544978 / root**7
    )  # fmt: skip
    polynomials = {
        0: (2.01546797, -28.17881636, 28.28313847, -10.42402873),
        1: (-19.58371655, 75.62340289, -120.70586598, 93.92740328, -27.37737354),
        2: (29.34470520, -112.35356937, 170.64908980, -123.06669187, 34.42288969),
        4: (-13.37031968, 65.38059570, -115.09233113, 88.91973082, -25.62099890),
    }
    packing = math.pi / 6 * density * diameter**3
    spheres = 5 / 3 * math.log(1 - packing) + packing * (34 - 33 * packing + 4 * packing**2) / (6 * (1 - packing) ** 2)
    rest = sum(c * density**power / root**i for i, row in polynomials.items() for power, c in enumerate(row, start=2))
    return temperature * (spheres + virial * density * math.exp(-1.92907278 * density**2)) + rest


def equation_of_state(density: float, temperature: float) -> dict[str, float]:
    """Return pressure and potential energy per atom."""
    h = 1e-4
    by_density = (free_energy(density + h, temperature) - free_energy(density - h, temperature)) / (2 * h)
    above, below = temperature + h, temperature - h
    by_temperature = (free_energy(density, above) / above - free_energy(density, below) / below) / (2 * h)
    return {"pressure": density * temperature + density**2 * by_density, "energy": -(temperature**2) * by_temperature}


def draw(points: dict[State, dict[str, Any]]) -> Figure:
    """Draw the measured pressures and the isotherms of the equation of state; below, the difference of the two."""
    figure = Figure(figsize=(7.5, 7), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    densities = np.linspace(0.01, 1.1 * max(state.density for state in points), 200)
    colours = {}
    for temperature in sorted({state.temperature for state in points}):
        line = [equation_of_state(density, temperature)["pressure"] for density in densities]
        (drawn,) = above.plot(densities, line, label=f"equation of state, temperature {temperature:g}")
        colours[temperature] = drawn.get_color()
    for number, (size, marker) in enumerate(zip(SIZES, "osD", strict=True)):
        above.plot([], [], marker, color="black", fillstyle="none", label=f"{size.atoms:,} atoms")
        for state, point in points.items():
            if state.size == size:
                pressure, error = point["pressure"]
                style = {"fmt": marker, "color": colours[state.temperature], "fillstyle": "none", "capsize": 3}
                above.errorbar(state.density, pressure, error, **style)
                theory = equation_of_state(state.density, state.temperature)["pressure"]
                beside = 0.006 * (number + len(SIZES) * list(colours).index(state.temperature))
                below.errorbar(state.density + beside, pressure - theory, error, **style)
    above.set(ylabel="pressure", title="Lennard-Jones fluid, in reduced units")
    above.legend()
    below.axhline(0, color="black", linewidth=0.6)
    below.set(xlabel="density (below: moved apart)", ylabel="measured less theory")
    return figure


def against_theory(points: dict[State, dict[str, Any]]) -> tuple[Table, list[float]]:
    """Compare with the equation of state; return also all deviations in units of their standard errors."""
    table = Table(title="Measured, and by the equation of state", box=None)
    for column in ("atoms", "nodes", "T", "density", "pressure", "theory", "energy", "theory"):
        table.add_column(column, justify="right", no_wrap=True)
    deviations = []
    for state, point in points.items():
        theory = equation_of_state(state.density, state.temperature)
        cells = []
        for name, exact in theory.items():
            value, error = point[name]
            deviations.append((value - exact) / math.hypot(error, EQUATION_ERROR[name]))
            cells += [f"{value:.3f} ± {error:.3f}", f"{exact:.3f}"]
        row = state.size.atoms, len(point["nodes"]), f"{state.temperature:g}", f"{state.density:g}", *cells
        table.add_row(*map(str, row))
    return table, deviations


def between_sizes(points: dict[State, dict[str, Any]]) -> tuple[Table, list[float]]:
    """Compare larger systems with the small one in the same state; return also all differences in standard errors."""
    table = Table(title="Larger systems less the small one in the same state", box=None)
    for column in ("atoms", "T", "density", "pressure", "energy"):
        table.add_column(column, justify="right", no_wrap=True)
    deviations = []
    for state, point in points.items():
        if state.size == SMALL:
            continue
        small = points[replace(state, size=SMALL)]
        cells = []
        for name in ("pressure", "energy"):
            difference, error = point[name][0] - small[name][0], math.hypot(point[name][1], small[name][1])
            deviations.append(difference / error)
            cells.append(f"{difference:+.3f} ± {error:.3f}")
        table.add_row(str(state.size.atoms), f"{state.temperature:g}", f"{state.density:g}", *cells)
    return table, deviations


def judge(deviations: list[float]) -> tuple[str, bool]:
    """Say whether deviations are what chance does; they are in units of their standard errors."""
    rms = math.sqrt(sum(z**2 for z in deviations) / len(deviations))
    largest = max(map(abs, deviations))
    agree = rms < 1.7 and largest < 5
    return f"{'agree' if agree else 'DISAGREE'}: rms {rms:.2f}, largest {largest:.2f} standard errors", agree


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Equation of state of the Lennard-Jones fluid, by LAMMPS.")
    parser.add_argument("--database", default="sqlite:///melts.db", help="where the tasks live [%(default)s]")
    parser.add_argument("--workflow", default="melts", help="calls are recognised within it [%(default)s]")
    parser.add_argument("--nodes", type=int, default=4, help="nodes of the block [%(default)s]")
    parser.add_argument("--ranks-per-node", type=int, default=1, help="of the larger systems [%(default)s]")
    parser.add_argument("--partition", help="Slurm partition")
    parser.add_argument("--walltime", default="00:30:00", help="of the Slurm job [%(default)s]")
    launchers = ("openmpi", "hydra", "srun", "auto")
    parser.add_argument("--mpi", default="openmpi", choices=launchers, help="what starts lmp's ranks [%(default)s]")
    parser.add_argument("--local", action="store_true", help="no Slurm: this host plays all nodes")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[2.0, 3.0], help="[%(default)s]")
    parser.add_argument("--densities", type=float, nargs="+", default=[0.5, 0.65, 0.8], help="[%(default)s]")
    parser.add_argument("--length", type=int, default=1, help="simulate this many times longer [%(default)s]")
    parser.add_argument("--directory", type=Path, default=Path("melts"), help="for logs and picture [%(default)s]")
    return parser.parse_args()


def provider(options: argparse.Namespace) -> ExecutionProvider:
    """Return where the block of nodes comes from."""
    if not options.local:
        return SlurmProvider(
            partition=options.partition,
            nodes_per_block=options.nodes,
            walltime=options.walltime,
            launcher=SimpleLauncher(),  # the executor starts what it needs on the other nodes
            scheduler_options="#SBATCH --no-kill",  # when a node dies the others go on
        )
    # More ranks than cores: without this, Open MPI gives several the same core, where they wait for each other busily.
    os.environ.update(OMPI_MCA_hwloc_base_binding_policy="none", OMPI_MCA_mpi_yield_when_idle="1")
    return LocalProvider(nodes_per_block=options.nodes, max_blocks=1, launcher=SimpleLauncher())


def main() -> None:
    options = arguments()
    console = Console(highlight=False)
    begin = time.monotonic()

    # A call is known by the paths of its files and not by what is in them: what differs has another name.
    folder = options.directory.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / f"melt-{hashlib.sha256(INPUT.encode()).hexdigest()[:8]}.in"
    script.write_text(INPUT)

    coldest = min(options.temperatures)
    states = [
        State(temperature, density, size)
        for temperature in options.temperatures
        for density in options.densities
        for size in SIZES
        if size == SMALL or temperature == coldest
    ]
    cores = max(options.ranks_per_node, (os.cpu_count() or 1) // options.nodes) if options.local else None
    executor = BalsamExecutor(
        workflow=options.workflow,
        database=options.database,
        provider=provider(options),
        mpi=options.mpi,
        cores_per_node=cores,
        max_retries=1,
    )
    with parsl.load(parsl.Config(executors=[executor], run_dir=str(folder / "runinfo"))):
        averages = {}
        for state in states:
            size, length = state.size, options.length
            spec = size.resources(options.nodes, options.ranks_per_node)
            shape = f"{size.atoms}x{length}-on-{spec['num_nodes']}x{spec['ranks_per_node']}"
            log = f"{script.stem}-{shape}-{state.temperature:g}-{state.density:g}.log"
            melted = melt(
                state.density,
                state.temperature,
                size.cells,
                size.equilibration * length,
                size.production * length,
                inputs=[File(str(script))],
                outputs=[File(str(folder / log))],
                parsl_resource_specification=spec,
            )
            # Ahead of the systems that wait, so that results are seen as they come.
            averages[average(inputs=melted.outputs, parsl_resource_specification={"priority": 1})] = state

        points = {}
        for future in as_completed(averages):
            state, points[state] = averages[future], future.result()
            console.print(
                f"{len(points):3} of {len(states)}: {state.size.atoms} atoms, temperature {state.temperature:g}, "
                f"density {state.density:g}, on {','.join(points[state]['nodes'])}",
                soft_wrap=True,
            )
        counts = executor.reuse_counts("melt")

    points = {state: points[state] for state in states}
    picture = folder / "isotherms.png"
    draw(points).savefig(picture, dpi=150)
    console.print()
    agreed = []
    for compare in (against_theory, between_sizes):
        table, deviations = compare(points)
        verdict, agree = judge(deviations)
        agreed.append(agree)
        console.print(table, verdict, "", sep="\n")
    console.print(
        f"{len(states)} systems in {time.monotonic() - begin:.1f} s: {counts.reused} reused, "
        f"{counts.attached} re-attached, {counts.new} run."
    )
    console.print(f"Picture: {picture}", soft_wrap=True)
    if not all(agreed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
