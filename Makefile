# No Problama: two commands do everything, `make course` and `make test`.
# The course runs on the CPU unless a profile is named: PROBLAMA_PROFILE=colab-t4 make course.
PYTHON ?= python3
PY := .venv/bin/python
export PYTHONUNBUFFERED := 1

.PHONY: help course test test-fast robust lab badges newest publish clean python setup

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

python:
	@command -v $(PYTHON) >/dev/null || { echo "No Problama: there is no '$(PYTHON)' here: install Python 3.11, 3.12 or 3.13, or name yours with make PYTHON=..." >&2; exit 1; }

setup: python
	@$(PYTHON) problama_utils/setup/install.py --venv .venv

course: python  ## set up, run the six notebooks on the CPU, leave executed copies and report.html in build/
	@$(PYTHON) problama_utils/setup/install.py --venv .venv --then course

test: python  ## lint, unit tests, then every notebook through nbmake
	@$(PYTHON) problama_utils/setup/install.py --venv .venv --then test

test-fast: python  ## lint and unit tests, a few minutes
	@$(PYTHON) problama_utils/setup/install.py --venv .venv --then test-fast

robust: setup  ## training and sampling tests under 10 seeds and 4 kinds of processor, an hour or two; goes on when started again
	@$(PY) benchmarks/robust.py

lab: setup  ## open the notebooks in JupyterLab
	$(PY) -m jupyterlab --notebook-dir notebooks

newest:  ## try the newest releases in a throw-away environment, report what broke: make newest
	@$(PYTHON) tools/newest.py $(PACKAGES)

publish: setup  ## run the course, then refresh the committed outputs, timings and README table
	@$(PY) -m tools.course --publish

badges:  ## restamp the repository's address: make badges REPO=owner/name REF=main
	@$(PYTHON) tools/badges.py $(REPO) $(REF)

clean:  ## remove the environment, runs and build products (the model cache stays)
	rm -rf .venv build runs .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
