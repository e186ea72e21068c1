"""A placement becomes the command line of each MPI launcher."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsl_balsam.launcher.mpi import RankPlacement, choose, environment, launcher_program, prefix
from parsl_balsam.model.errors import ConfigurationError, ImpossibleTask
from parsl_balsam.model.launch import MpiStyle

LAUNCHERS = [style for style in MpiStyle if style is not MpiStyle.NONE]

ONE_NODE = RankPlacement(("n2",), ranks_per_node=4)
TWO_NODES = RankPlacement(("n2", "n3"), ranks_per_node=2, cores_per_rank=3, gpus_per_rank=1)
SHARED = RankPlacement(("n2",), ranks_per_node=2, cores_per_rank=3, shared=True)
OPTIONS = RankPlacement(("n2",), ranks_per_node=1, launcher_options="--label 'a b'")
CRAY = RankPlacement(("nid00012", "nid00120"), ranks_per_node=64)
PRETEND = RankPlacement(("localhost", "localhost"), ranks_per_node=2)

GOLDEN = [
    (
        MpiStyle.SRUN,
        ONE_NODE,
        "srun --overlap --kill-on-bad-exit=1 --nodes=1 --ntasks=4 --ntasks-per-node=4 --distribution=block "
        "--nodelist=n2 --cpus-per-task=1",
    ),
    (
        MpiStyle.SRUN,
        TWO_NODES,
        "srun --overlap --kill-on-bad-exit=1 --nodes=2 --ntasks=4 --ntasks-per-node=2 --distribution=block "
        "--nodelist=n2,n3 --cpus-per-task=3",
    ),
    (
        MpiStyle.SRUN,
        SHARED,
        "srun --overlap --kill-on-bad-exit=1 --nodes=1 --ntasks=2 --ntasks-per-node=2 --distribution=block "
        "--nodelist=n2 --cpu-bind=none",
    ),
    (
        MpiStyle.SRUN,
        RankPlacement(("n2",), ranks_per_node=2, cores_per_rank=3, shared=True, cores=(2, 3, 4, 8, 9, 10)),
        "srun --overlap --kill-on-bad-exit=1 --nodes=1 --ntasks=2 --ntasks-per-node=2 --distribution=block "
        "--nodelist=n2 --cpu-bind=mask_cpu:0x1c,0x700",
    ),
    (
        MpiStyle.SRUN,
        OPTIONS,
        "srun --overlap --kill-on-bad-exit=1 --nodes=1 --ntasks=1 --ntasks-per-node=1 --distribution=block "
        "--nodelist=n2 --cpus-per-task=1 --label 'a b'",
    ),
    (MpiStyle.HYDRA, ONE_NODE, "mpiexec -n 4 -ppn 4 -hosts n2"),
    (MpiStyle.HYDRA, TWO_NODES, "mpiexec -n 4 -ppn 2 -hosts n2,n3"),
    (MpiStyle.HYDRA, OPTIONS, "mpiexec -n 1 -ppn 1 -hosts n2 --label 'a b'"),
    (MpiStyle.HYDRA, PRETEND, "mpiexec -n 4 -ppn 4 -hosts localhost"),
    (MpiStyle.OPENMPI, ONE_NODE, "mpiexec -n 4 --map-by ppr:4:node:OVERSUBSCRIBE -H n2:4"),
    (MpiStyle.OPENMPI, TWO_NODES, "mpiexec -n 4 --map-by ppr:2:node:OVERSUBSCRIBE -H n2:2,n3:2 --bind-to none"),
    (MpiStyle.OPENMPI, SHARED, "mpiexec -n 2 --map-by ppr:2:node:OVERSUBSCRIBE -H n2:2 --bind-to none"),
    (MpiStyle.OPENMPI, OPTIONS, "mpiexec -n 1 --map-by ppr:1:node:OVERSUBSCRIBE -H n2:1 --label 'a b'"),
    (MpiStyle.OPENMPI, PRETEND, "mpiexec -n 4 --map-by ppr:4:node:OVERSUBSCRIBE -H localhost:4"),
    (MpiStyle.APRUN, CRAY, "aprun -n 128 -N 64 -d 1 -L 12,120"),
    (MpiStyle.APRUN, TWO_NODES, "aprun -n 4 -N 2 -d 3 -L n2,n3"),
    (MpiStyle.APRUN, OPTIONS, "aprun -n 1 -N 1 -d 1 -L n2 --label 'a b'"),
    (
        MpiStyle.JSRUN,
        TWO_NODES,
        "jsrun --nrs 4 --rs_per_host 2 --tasks_per_rs 1 --cpu_per_rs 3 --gpu_per_rs 1 --bind rs",
    ),
    (
        MpiStyle.JSRUN,
        OPTIONS,
        "jsrun --nrs 1 --rs_per_host 1 --tasks_per_rs 1 --cpu_per_rs 1 --gpu_per_rs 0 --bind rs --label 'a b'",
    ),
    (MpiStyle.NONE, RankPlacement(("n2",), 1), ""),
]

host_names = st.from_regex(r"[a-z]{1,3}[0-9]{1,4}", fullmatch=True)
placements = st.builds(
    RankPlacement,
    hosts=st.lists(host_names, min_size=1, max_size=6, unique=True).map(tuple),
    ranks_per_node=st.integers(1, 200),
    cores_per_rank=st.integers(1, 64),
    gpus_per_rank=st.integers(0, 8),
    launcher_options=st.sampled_from(["", "-v", "--label 'a b' -x \"it's\""]),
    shared=st.booleans(),
)


def value_after(words: list[str], *options: str) -> str:
    """Return the value of the only option that is there, given as the next word or after an equals sign."""
    found = [words[at + 1] for at, word in enumerate(words) if word in options]
    found += [word.partition("=")[2] for word in words if word.partition("=")[0] in options and "=" in word]
    (value,) = found
    return value


@pytest.mark.parametrize(("style", "placement", "command"), GOLDEN)
def test_command_line(style: MpiStyle, placement: RankPlacement, command: str) -> None:
    assert prefix(style, placement) == shlex.split(command)


@given(st.sampled_from(LAUNCHERS), placements)
def test_ranks_are_nodes_times_ranks_per_node(style: MpiStyle, placement: RankPlacement) -> None:
    ranks = value_after(prefix(style, placement), "-n", "--ntasks", "--nrs")
    assert int(ranks) == len(placement.hosts) * placement.ranks_per_node


@given(st.sampled_from([style for style in LAUNCHERS if style is not MpiStyle.JSRUN]), placements)
def test_every_host_is_named_once_and_in_order(style: MpiStyle, placement: RankPlacement) -> None:
    named = value_after(prefix(style, placement), "--nodelist", "-hosts", "-H", "-L").split(",")
    assert [name.partition(":")[0] for name in named] == list(placement.hosts)


@given(st.sampled_from(LAUNCHERS), placements)
def test_users_options_come_last(style: MpiStyle, placement: RankPlacement) -> None:
    plain = RankPlacement(
        placement.hosts,
        placement.ranks_per_node,
        placement.cores_per_rank,
        placement.gpus_per_rank,
        shared=placement.shared,
    )
    assert prefix(style, placement) == prefix(style, plain) + shlex.split(placement.launcher_options)


@given(st.sampled_from(LAUNCHERS), placements)
def test_variables_agree_with_the_command_line(style: MpiStyle, placement: RankPlacement) -> None:
    variables = environment(style, placement)
    assert shlex.split(variables["PARSL_MPI_PREFIX"]) == prefix(style, placement)
    assert shlex.split(variables["PARSL_SRUN_PREFIX"]) == prefix(MpiStyle.SRUN, placement)
    assert shlex.split(variables["PARSL_APRUN_PREFIX"]) == prefix(MpiStyle.APRUN, placement)
    assert variables["PARSL_MPI_NODELIST"].split(",") == list(placement.hosts)
    assert variables["PARSL_LAUNCHER_OPTIONS"] == placement.launcher_options
    counts = [variables[name] for name in ("PARSL_NUM_NODES", "PARSL_RANKS_PER_NODE", "PARSL_NUM_RANKS")]
    assert counts == [str(len(placement.hosts)), str(placement.ranks_per_node), str(placement.ranks)]


@given(st.sampled_from(LAUNCHERS), placements, placements)
def test_every_task_sets_the_same_variables(style: MpiStyle, one: RankPlacement, other: RankPlacement) -> None:
    assert environment(style, one).keys() == environment(style, other).keys()


def test_variables_of_a_task() -> None:
    assert environment(
        MpiStyle.HYDRA, RankPlacement(("n1", "n2"), 2, launcher_options="-l"), program="mpiexec.mpich"
    ) == {
        "PARSL_MPI_PREFIX": "mpiexec.mpich -n 4 -ppn 2 -hosts n1,n2 -l",
        "PARSL_MPIEXEC_PREFIX": "mpiexec.mpich -n 4 -ppn 2 -hosts n1,n2 -l",
        "PARSL_SRUN_PREFIX": "srun --overlap --kill-on-bad-exit=1 --nodes=2 --ntasks=4 --ntasks-per-node=2 "
        "--distribution=block --nodelist=n1,n2 --cpus-per-task=1 -l",
        "PARSL_APRUN_PREFIX": "aprun -n 4 -N 2 -d 1 -L n1,n2 -l",
        "PARSL_NUM_NODES": "2",
        "PARSL_NUM_RANKS": "4",
        "PARSL_RANKS_PER_NODE": "2",
        "PARSL_LAUNCHER_OPTIONS": "-l",
        "PARSL_MPI_NODELIST": "n1,n2",
    }


def test_mpiexec_speaks_to_the_mpi_library_there_is() -> None:
    openmpi = environment(MpiStyle.OPENMPI, ONE_NODE, root=True)
    assert openmpi["PARSL_MPIEXEC_PREFIX"] == openmpi["PARSL_MPI_PREFIX"]
    assert environment(MpiStyle.SRUN, ONE_NODE)["PARSL_MPIEXEC_PREFIX"] == "mpiexec -n 4 -ppn 4 -hosts n2"


def test_only_open_mpi_is_told_of_root() -> None:
    telling = [style for style in LAUNCHERS if prefix(style, ONE_NODE, root=True) != prefix(style, ONE_NODE)]
    assert telling == [MpiStyle.OPENMPI]
    assert "--allow-run-as-root" in prefix(MpiStyle.OPENMPI, ONE_NODE, root=True)


def test_pretend_nodes_are_counted_as_nodes() -> None:
    variables = environment(MpiStyle.HYDRA, PRETEND)
    assert (variables["PARSL_NUM_NODES"], variables["PARSL_RANKS_PER_NODE"]) == ("2", "2")
    assert variables["PARSL_MPI_NODELIST"] == "localhost,localhost"


def test_ranks_without_a_launcher_are_refused() -> None:
    with pytest.raises(ImpossibleTask, match="4 ranks needs an MPI launcher"):
        prefix(MpiStyle.NONE, ONE_NODE)
    with pytest.raises(ImpossibleTask):
        environment(MpiStyle.NONE, RankPlacement(("n1", "n2"), 1))


def test_single_rank_without_a_launcher() -> None:
    assert environment(MpiStyle.NONE, RankPlacement(("n1",), 1))["PARSL_MPI_PREFIX"] == ""


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: RankPlacement((), 1), "host"),
        (lambda: RankPlacement(("n1",), 0), "ranks_per_node=0"),
        (lambda: RankPlacement(("n1",), 2.0), "ranks_per_node=2.0"),  # type: ignore[arg-type]
        (lambda: RankPlacement(("n1",), 1, 0), "cores_per_rank=0"),
        (lambda: RankPlacement(("n1",), 1, 1, -1), "gpus_per_rank=-1"),
        (lambda: RankPlacement(("n1", "n1", "n2"), 1), "repeated"),
        (lambda: RankPlacement(("n1",), 1, launcher_options="--label 'a"), "launcher_options"),
    ],
)
def test_wrong_placement_is_named(wrong: Callable[[], RankPlacement], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        wrong()


@pytest.mark.parametrize(
    ("available", "environ", "scheduler", "style"),
    [
        ({"srun", "mpiexec", "mpiexec.hydra"}, {}, "slurm", MpiStyle.SRUN),
        ({"srun", "mpiexec", "mpiexec.hydra"}, {}, "pbs", MpiStyle.HYDRA),
        ({"srun"}, {}, "local", MpiStyle.NONE),
        ({"aprun", "mpiexec"}, {}, "cobalt", MpiStyle.APRUN),
        ({"aprun", "srun"}, {}, "slurm", MpiStyle.APRUN),
        ({"jsrun", "mpiexec", "ompi_info"}, {}, "lsf", MpiStyle.JSRUN),
        ({"jsrun", "mpiexec", "ompi_info"}, {}, "local", MpiStyle.OPENMPI),
        ({"mpiexec", "palstat"}, {}, "pbs", MpiStyle.HYDRA),
        ({"mpiexec", "palstat", "ompi_info"}, {}, "pbs", MpiStyle.HYDRA),
        ({"mpiexec", "mpirun", "ompi_info"}, {}, "pbs", MpiStyle.OPENMPI),
        ({"mpiexec", "mpiexec.openmpi"}, {}, "local", MpiStyle.OPENMPI),
        ({"mpiexec", "mpiexec.openmpi"}, {"I_MPI_ROOT": "/opt/intel"}, "local", MpiStyle.HYDRA),
        ({"mpiexec", "mpiexec.openmpi", "mpiexec.mpich"}, {}, "local", MpiStyle.HYDRA),
        ({"mpiexec"}, {}, "cobalt", MpiStyle.HYDRA),
        (set(), {}, "local", MpiStyle.NONE),
    ],
)
def test_choice_of_a_site(available: set[str], environ: dict[str, str], scheduler: str, style: MpiStyle) -> None:
    assert choose(sorted(available), environ, scheduler) is style


@pytest.mark.parametrize(
    ("style", "available", "program"),
    [
        (MpiStyle.SRUN, ["srun", "mpiexec"], "srun"),
        (MpiStyle.HYDRA, ["mpiexec"], "mpiexec"),
        (MpiStyle.HYDRA, ["mpiexec", "mpiexec.openmpi", "mpiexec.mpich"], "mpiexec.mpich"),
        (MpiStyle.HYDRA, ["mpiexec", "palstat", "mpiexec.hydra"], "mpiexec"),
        (MpiStyle.HYDRA, ["mpirun"], "mpirun"),
        (MpiStyle.OPENMPI, ["mpiexec", "mpiexec.openmpi", "mpiexec.mpich"], "mpiexec.openmpi"),
        (MpiStyle.OPENMPI, ["mpiexec", "ompi_info"], "mpiexec"),
        (MpiStyle.OPENMPI, [], "mpiexec"),
    ],
)
def test_program_where_libraries_are_side_by_side(style: MpiStyle, available: list[str], program: str) -> None:
    assert launcher_program(style, available) == program
