# Everything runs from .venv, which `make venv` makes from nothing but Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARALLEL := -n 2 --dist loadscope --no-loadscope-reorder
PYTEST := $(BIN)/python -m pytest
# Ray is told to stay on loopback (it replaces 127.0.0.1 by the machine's own address otherwise), and not to report home.
export RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER := 0
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help venv demo test test-long test-deep test-integrations test-oldest check lint bench bench-check bench-scaling bench-anchoring leak chaos soak signals cloudpickle-suite house settings clean redis

help:
	@echo "make demo         the main job on real files, on a small local Ray"
	@echo "make test         the tests, what takes long in a short form (under 8 minutes on 2 cores)"
	@echo "make test-long    what takes long: storms, benchmarks, nodes that die, long waits (some 20 minutes)"
	@echo "make test-deep    what takes too long for every day: 10,000 programs for the rules, 1,000 kills"
	@echo "make test-integrations  the tests with Ray Data, Serve, Modin and Dask, in an environment of their own"
	@echo "make check        lint, format, types, all of these tests but the deep ones: what CI runs"
	@echo "make bench        what it all costs, against what it is built on and what one would use instead: one report"
	@echo "make bench-check  the same, and fails where a target is missed by more than a tenth"
	@echo "make bench-scaling  shards, replicas, and many leases that end at once"
	@echo "make bench-anchoring  how fast references that were resolved become safe, and who waits for that"
	@echo "make leak         what leaks: pickle, ray.cloudpickle, a home-made registry, safe_refs"
	@echo "make soak         an hour of steady work beside the same without safe_refs: what grows? SECONDS=600 SEED=2 for another"
	@echo "make chaos        ten minutes of killing shards, processes and nodes; SECONDS=60 SEED=2 REPLICAS=1 for another storm"
	@echo "make signals      ten minutes of signals at random moments; SECONDS=60 SEED=2 for others"
	@echo "make cloudpickle-suite CHECKOUT=dir  cloudpickle's own tests against safe_refs, from a checkout of its repository"
	@echo "make house        draw docs/house.svg from the code's imports"
	@echo "make test-oldest  all tests against the oldest Ray that is supported"

# The table in docs/settings.md, from the code.
settings: venv
	$(BIN)/python -m tests.support.settings_table

venv: $(VENV)/.done

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "safe_refs needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# A Redis server for the tests and the demo; Debian's package, started and stopped by who needs it.
redis:
	@command -v redis-server >/dev/null || { \
	  echo "installing Debian's redis-server"; \
	  SUDO=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$SUDO apt-get -qq update && $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends redis-server >/dev/null; }

demo: venv
	$(BIN)/safe-refs demo

# Two at a time, each with a Ray of its own: most tests wait for something most of the time. File by file in the order of
# tests/conftest.py, as the files that take longest have few tests.
test: venv redis
	$(PYTEST) $(PARALLEL)

# What takes more than about ten seconds by itself; each has a shorter form in `make test`, or neighbours there that use the same.
test-long: venv redis
	$(PYTEST) $(PARALLEL) -m long

# What takes too long for every day: long waits, and ten thousand programs for the rules.
test-deep: venv
	SAFE_REFS_TEST_DEEP=1 $(PYTEST) -m slow --timeout 3600

# With what others build on Ray, which is a lot: in an environment of its own.
test-integrations: .venv-integrations/.done
	.venv-integrations/bin/python -m pytest -m integrations tests/integrations

.venv-integrations/.done: pyproject.toml constraints.txt constraints-integrations.txt
	$(PYTHON) -m venv .venv-integrations
	.venv-integrations/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-integrations.txt \
	  -e '.[integrations]'
	touch $@

cloudpickle-suite:
	$(MAKE) venv VENV=.venv-suite
	.venv-suite/bin/python -m pip install --quiet --disable-pip-version-check psutil tornado
	.venv-suite/bin/python -m tests.support.cloudpickle_suite $(CHECKOUT)

test-oldest: redis
	$(MAKE) venv VENV=.venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check 'ray==2.52.0'
	.venv-oldest/bin/python -m pytest $(PARALLEL)
	.venv-oldest/bin/python -m pytest $(PARALLEL) -m long

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test test-long test-integrations

# One report: benchmarks/RESULTS.md, with figures and pictures in benchmarks/results.
bench: venv redis
	$(BIN)/python -m benchmarks.report

bench-check: venv redis
	$(BIN)/python -m benchmarks.report --check

bench-scaling: venv
	$(BIN)/python -m benchmarks.lifetimes
	$(BIN)/python -m benchmarks.scaling

bench-anchoring: venv
	$(BIN)/python -m benchmarks.anchoring

leak: venv
	$(BIN)/python -m benchmarks.leak

# A storm: the registry's shards, owners, borrowers, jobs and nodes are killed, by a plan drawn from the seed. See docs/chaos.md.
chaos signals: SECONDS ?= 600
SEED ?= 1
REPLICAS ?= 2
chaos: venv
	$(BIN)/python -m tests.chaos --seconds $(SECONDS) --seed $(SEED) --replicas $(REPLICAS)

# An hour of steady work, with a control without safe_refs beside it: memory, threads, files and latencies by their slopes. See docs/soak.md.
soak: SECONDS ?= 3600
soak: venv
	$(BIN)/python -m tests.soak --seconds $(SECONDS) --seed $(SEED)

# Signals at random moments, whose handlers raise or call safe_refs, to a process with threads and a busy collector. See docs/anywhere.md.
signals: venv
	$(BIN)/python -m tests.interrupts --seconds $(SECONDS) --seed $(SEED)

# The picture in docs/architecture.md. A test fails if its rooms, files and arrows are not those of the code.
house: venv
	$(BIN)/python -m tests.support.house

clean:
	rm -rf $(VENV) .venv-oldest .venv-integrations .venv-suite build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
