# Two commands do everything: `make demo` and `make test`. Both install what they need into .venv first; `make test` also
# installs Debian packages, where it may.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# A batch system, two MPI libraries, an MPI program and a pooler for the tests; a compiler and networks for what they try.
PACKAGES := pgbouncer slurm-wlm munge mpich openmpi-bin libopenmpi-dev lammps gcc libc6-dev iproute2

# Most tests wait more than they compute.
WORKERS ?= $(shell echo $$(($$(nproc) + 1)))

.PHONY: demo test lint bench clean packages

demo: $(VENV)/.examples
	$(BIN)/parsl-balsam demo

test: $(VENV)/.test packages
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Every figure that this project claims, each beside what it is compared with: docs/benchmarks.md, in a quarter of an
# hour. Nothing else should run meanwhile. The systems of [bench] are for information: it works without them.
bench: $(VENV)/.test packages
	-$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

# Without root or sudo the tests that need them are skipped, and say what to install.
packages:
	@missing=$$(dpkg-query --show --showformat='$${Package} $${db:Status-Status}\n' $(PACKAGES) 2>/dev/null \
	  | awk 'NF == 2 && $$2 == "installed" { print $$1 }' | sort > $(VENV)/.packages; \
	  echo $(PACKAGES) | tr ' ' '\n' | sort | comm -23 - $(VENV)/.packages); \
	if [ -n "$$missing" ]; then \
	  if [ $$(id -u) = 0 ]; then sudo=; else sudo='sudo -n'; fi; \
	  $$sudo apt-get update -qq && $$sudo env DEBIAN_FRONTEND=noninteractive \
	    apt-get install -qq -y --no-install-recommends $$missing > /dev/null \
	  || echo "could not install" $$missing "- some tests will be skipped" >&2; \
	fi

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' does not work here. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip

# One stamp for each set of dependencies; pip installs only what is missing.
$(VENV)/.examples $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) demo runinfo
