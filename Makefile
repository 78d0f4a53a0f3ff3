# make leaderboard: the main job. make test: the default tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install leaderboard test gpu-test check clean

install: $(VENV)/installed

leaderboard: $(VENV)/installed
	$(BIN)/python -m bench experiment=quickstart

test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist worksteal

gpu-test: $(VENV)/installed
	$(BIN)/python -m pytest -m gpu

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "steerbench needs Python 3.11 or newer; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "setting up $(VENV) (about two minutes, 1.5 GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
