# `make demo` and `make test` need Python 3.11 or later, git and make; they install uv if it is missing, without root.

# The catalog has no such asset: retrieval finds its relatives, and the prior knows the colour.
PROMPT ?= a turquoise robot
PYTHON ?= python3
UV = sh .ci/with-uv
# A process per core, up to four, for each takes two GiB; the tests of a file stay together and share their fixtures.
PARALLEL = --numprocesses logical --maxprocesses 4 --dist loadfile

# Compiled modules are kept, whatever the shell says: without them, every process that a test starts compiles its libraries.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-all faults mutants check format lock clean

demo: ## prompt to 3D object on this machine, with the embedded miniature
	$(UV) sync --frozen --no-dev --inexact
	$(UV) run --no-sync redream generate "$(PROMPT)" --preset mini

test: ## everything that needs no GPU, no network and no patience; a GPU is hidden from it
	$(UV) sync --frozen
	$(UV) run --frozen pytest $(PARALLEL) -m "not slow and not network and not gpu"

test-all: ## also what takes minutes
	$(UV) sync --frozen --extra dask --extra ray --group browser
	$(UV) run --no-sync pytest $(PARALLEL) -m "not network and not gpu"

faults: ## kills of everything at every moment, as a table; ONLY=NAME makes one row, and root fills disks
	$(UV) sync --frozen
	$(UV) run --frozen python -m benchmarks.faults $(if $(ONLY),--only $(ONLY))

mutants: ## small mistakes in the code, and whether the tests notice; continues where it was; ONLY=NAME tries some files
	$(UV) sync --frozen --group mutants
	nice -n 15 $(UV) run --no-sync python -m benchmarks.mutants $(if $(ONLY),--only $(ONLY))

check: ## style and types
	$(UV) sync --frozen --group browser
	$(UV) run --no-sync ruff check .
	$(UV) run --no-sync ruff format --check .
	$(UV) run --no-sync pyright

format:
	$(UV) run --frozen ruff check --fix .
	$(UV) run --frozen ruff format .

lock: ## choose versions anew
	$(UV) lock

clean: ## what commands made here; runs stay
	rm -rf .pytest_cache .ruff_cache .hypothesis build dist
