# Needs Python >= 3.11 and make, nothing else: the first target that needs it sets up .venv, and installs
# into it again only when pyproject.toml has changed. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
# Neighbouring tests share compiled functions: each process starts with one contiguous half of them.
PYTEST := -m pytest -n 2 --dist worksteal --durations=10
# What `make compat` runs in each environment: everything, or for example TESTS="tests/kernels tests/estimators".
TESTS :=

.PHONY: help demo test test-slow coverage compat test-oldest test-newest test-wheel lint typecheck docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/installed-plot ## fit infinitely wide networks to a real table and draw the result
	$(BIN)/python examples/quickstart.py

test: lint ## check the style and run the tests
	$(BIN)/python $(PYTEST)

test-slow: $(VENV)/installed-dev ## run the slow tier of the tests
	$(BIN)/python $(PYTEST) -m slow

coverage: $(VENV)/installed-dev ## run the tests and list the lines of the package that none of them reaches
	$(BIN)/python $(PYTEST) --cov --cov-report=term-missing:skip-covered

compat: test-oldest test-newest test-wheel ## run the tests with the oldest and the newest requirements, and try the wheel

test-oldest: .venv-oldest/installed ## run the tests with the lower bounds of all requirements (Python 3.11 or 3.12)
	.venv-oldest/bin/python $(PYTEST) $(TESTS)

test-newest: .venv-newest/installed ## run the tests with the newest versions that the requirements allow
	.venv-newest/bin/python $(PYTEST) $(TESTS)

test-wheel: $(VENV)/installed-dev ## build sdist and wheel in dist/, install the wheel elsewhere and try it
	rm -rf dist .venv-wheel
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl
	cd .venv-wheel && bin/python ../tests/typed_user.py

lint: $(VENV)/installed-dev ## check the style and the formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

typecheck: $(VENV)/installed-dev ## check the types
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(VENV)/installed-docs ## build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(VENV)/installed-bench ## run all benchmarks at small sizes; without --short they take hours
	$(BIN)/python benchmarks/run.py --short

clean: ## remove the environments and everything that was built
	rm -rf .venv .venv-* .bench build dist site
	rm -rf .coverage* .hypothesis .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

CHECK_PYTHON = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"gpntk needs Python 3.11 or newer, $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % sys.version_info[:2])'

$(VENV)/created:
	$(CHECK_PYTHON)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# One stamp for each extra of pyproject.toml, so that the demo does not wait for the tools of the tests.
$(VENV)/installed-%: pyproject.toml | $(VENV)/created
	@echo 'Installing gpntk[$*] in $(VENV) ...'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# Environments beside the one for development, from nothing whenever pyproject.toml has changed. The newest has no
# constraints; for the oldest every "name>=version" of pyproject.toml becomes a pin.
CONSTRAINTS_newest := d
CONSTRAINTS_oldest := s/^ *"([a-z0-9-]+)>=([0-9.]+).*/\1==\2/p

.venv-oldest/installed .venv-newest/installed: .venv-%/installed: pyproject.toml
	$(CHECK_PYTHON)
	$(PYTHON) -m venv --clear .venv-$*
	sed -nE '$(CONSTRAINTS_$*)' pyproject.toml > .venv-$*/constraints.txt
	@echo 'Installing gpntk[test] with its $* requirements in .venv-$* ...'
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint .venv-$*/constraints.txt --editable '.[test]'
	@touch $@
