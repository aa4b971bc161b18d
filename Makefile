# Everything runs in .venv, made here from pyproject.toml. Needs Python 3.11 or newer, git and GNU make.
#   make demo        a full small study, report in runs/demo
#   make test        the default test lane
#   make check       formatting, lint, types, layers, doctests, docs examples
#   make slow        the long test lane
#   make contracts   every attack against its contract, known answers, reductions, sabotage (up to 25 minutes)
#   make validate    planted failures and honest models against the audit, table in docs/validation.md (up to 25 minutes)
#   make bench-training    adversarial training beside a bare loop and beside another library, in the same environment as agreement
#   make agreement   our attacks beside those of other libraries, in an environment of their own (.venv-peers, several GB)
# On Linux the default index may serve a CUDA build of torch. For the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PY ?= python3
CONSTRAINTS ?= constraints/cpu.txt
TORCH_INDEX ?=
RUN := .venv/bin/python -m

.PHONY: demo test check slow contracts validate agreement bench-training clean
.DEFAULT_GOAL := test

.venv/.ok: pyproject.toml $(CONSTRAINTS)
	$(PY) -m venv .venv
	$(RUN) pip install -q -c $(CONSTRAINTS) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[dev]'
	touch $@

demo: .venv/.ok
	.venv/bin/firedoor demo --out runs/demo

test: .venv/.ok
	$(RUN) pytest

check: .venv/.ok
	$(RUN) ruff format --check .
	$(RUN) ruff check .
	$(RUN) mypy
	$(RUN) pytest --doctest-modules src/firedoor tests/test_architecture.py tests/test_docs.py

slow: .venv/.ok
	$(RUN) pytest -m slow

contracts: .venv/.ok
	$(RUN) firedoor.contracts

validate: .venv/.ok
	$(RUN) firedoor.validation digits docs/validation.md

agreement: .venv-peers/.ok
	.venv-peers/bin/python -m pytest -m peers -n 0 tests/attacks/plugins
	.venv-peers/bin/python -W ignore benchmarks/agreement.py

bench-training: .venv-peers/.ok
	.venv-peers/bin/python -W ignore benchmarks/training.py

.venv-peers/.ok: pyproject.toml constraints/vision.txt constraints/peers.txt
	$(PY) -m venv .venv-peers
	.venv-peers/bin/python -m pip install -q -c constraints/vision.txt torch torchvision -e .
	echo 'setuptools<81' > .venv-peers/build.txt
	PIP_CONSTRAINT=.venv-peers/build.txt PIP_BUILD_CONSTRAINT=.venv-peers/build.txt .venv-peers/bin/python -m pip install -q --no-deps -r constraints/peers.txt
	touch $@

clean:
	rm -rf .venv .venv-peers dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
