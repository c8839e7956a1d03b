# `make demo` and `make test` do everything on a fresh machine: they make .venv and reuse it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(READY) ## Make or refresh .venv with the tested versions

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY) ## Burst, train, lose nodes, serve: the whole story on this machine
	$(BIN)/rayburst demo

test: $(READY) ## Run all tests that CI runs
	scripts/test

check: $(READY) ## Lint, format and types
	scripts/check

soak: $(READY) ## Run the tests that are too long for CI
	$(BIN)/python -m pytest -m soak --timeout 3600
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest tests/unit -m "not soak" -n 2 --timeout 3600

bench-%: $(READY) ## Run one benchmark, e.g. make bench-checkpoint
	$(BIN)/python benchmarks/$*.py

bench-checkpoint: $(READY) $(VENV)/.bench ## Checkpoints beside torch.save, Ray, DCP with s3fs, s3torchconnector: half an hour
	$(BIN)/python benchmarks/checkpoint.py

$(VENV)/.bench: pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,bench]'
	touch $@

PEERS := $(VENV)/peers
bench-serving: $(READY) $(PEERS)/.ready ## Serving beside mosec, LitServe, BentoML and plain Ray Serve (needs wrk)
	$(BIN)/python benchmarks/serving.py

$(PEERS)/.ready: benchmarks/serving_peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check -r $<
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		$$($(PEERS)/bin/python -c "import site; print(site.getsitepackages()[0])")/rayburst.pth
	touch $@

clean: ## Remove what was built; fleets that are up stay
	rm -rf $(VENV) build dist benchmarks/out .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help setup demo test check soak clean bench-checkpoint bench-serving
