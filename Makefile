# Every target sets up what it needs; the first run installs, later runs start at once.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# Of timm, which wants torchvision too, the tests read a single file: --no-deps.
# The editable install knows the modules that there were: a new one needs a new install.
MODULES := build/modules.txt
$(shell mkdir -p build && find src -name '*.py' | sort > $(MODULES).new && \
  { cmp -s $(MODULES).new $(MODULES) || cp $(MODULES).new $(MODULES); } && rm $(MODULES).new)
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*) $(MODULES)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint format docs-methods docs-parity build clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## set up, then train one script without and with clipping and compare
	$(BIN)/gradclip demo

test: $(VENV)/.test  ## set up, then run all tests that take seconds
	$(BIN)/python -m pytest -q -n auto -m "not slow"

test-slow: $(VENV)/.test  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev  ## ruff's formatter and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs-methods: $(VENV)/.dev  ## write the catalogue of methods into docs/methods.md
	$(BIN)/gradclip methods --markdown > docs/methods.md

docs-parity: $(VENV)/.test  ## measure the differences to all rivals, into docs/parity.md
	cd tests && ../$(BIN)/python -m parity.table > ../docs/parity.md

build: $(VENV)/.dev  ## the wheel and the source distribution, in dist/
	$(BIN)/python -m build

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .hypothesis

# One stamp for each extra: an editable install with that extra, of pinned versions.
$(VENV)/.%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	$(if $(filter test bench,$*),$(BIN)/python -m pip install -q --no-deps -c constraints.txt timm)
	touch $@
