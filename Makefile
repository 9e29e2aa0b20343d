# Every target works alone on a fresh clone: it makes .venv, installs, and runs.
# The second time the stamp files say that nothing is left to install.

# The first Python that runs, is supported and can make a virtual environment. A name
# on PATH proves nothing: it may be a shim with no interpreter behind it.
PROBE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3 python,\
	$(shell $(name) -c '$(PROBE)' 2>/dev/null && echo $(name))))

BIN := .venv/bin
# pip when uv is not there; both install into .venv and nowhere else.
INSTALL = $(if $(shell command -v uv),uv pip install -q --python $(BIN)/python,\
	$(BIN)/python -m pip install -q --disable-pip-version-check)
# constraints.txt holds what ran on Python 3.11; it says nothing about another one.
CONSTRAIN = $$($(BIN)/python -c 'import sys; \
	print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')

PYTEST_ARGS ?=
# A process takes up to 2 GB: no more of them than help.
WORKERS ?= -n auto --maxprocesses 4 --dist loadgroup
# The recipe of `make demo`.
SCENES ?= 1500

.PHONY: help venv test parity real lint demo clean
.DELETE_ON_ERROR:

help:
	@echo 'make venv    create .venv and install the project and its test tools'
	@echo 'make test    run the tests; parity tests are skipped without torch'
	@echo 'make parity  install torch and run the parity tests'
	@echo 'make real    run the tests on real data (DIFFUP_REALDATA names the folder)'
	@echo 'make lint    ruff check and ruff format --check'
	@echo 'make demo    draw scenes, train, evaluate, and show the gallery'
	@echo 'make clean   remove .venv and the caches; runs/ stays'
	@echo 'Variables: PYTHON (3.11 or 3.12), PYTEST_ARGS, SCENES'

venv: .venv/.installed

# The stamp is written last, so a broken or half-made .venv is never taken for whole.
.venv/.installed: pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  test -n '$(PYTHON)' || { \
	    echo 'No Python 3.11 or 3.12 with venv found; name one: make PYTHON=...' >&2; \
	    exit 1; }; \
	  echo 'Creating .venv with $(PYTHON)'; \
	  '$(PYTHON)' -m venv --clear .venv; }
	@test -n "$(CONSTRAIN)" || \
	  echo 'Not Python 3.11: installing by the bounds in pyproject.toml'
	@echo 'Installing the project into .venv (once; about 1.3 GB)'
	@$(INSTALL) $(CONSTRAIN) -e '.[test]'
	@touch $@

# pip even where uv is: a folder with torch's CPU wheel may be known to pip alone.
.venv/.installed-parity: .venv/.installed
	@$(BIN)/python -m pip install -q --disable-pip-version-check $(CONSTRAIN) \
	  -e '.[test,parity]'
	@touch $@

.venv/.installed-lint: .venv/.installed
	@$(INSTALL) $(CONSTRAIN) ruff
	@touch $@

test: .venv/.installed
	$(BIN)/python -m pytest -q $(WORKERS) --ignore=tests/real $(PYTEST_ARGS)

parity: .venv/.installed-parity
	$(BIN)/python -m pytest -q $(WORKERS) tests/parity $(PYTEST_ARGS)

real: .venv/.installed
	$(BIN)/python -m pytest -q $(WORKERS) tests/real $(PYTEST_ARGS)

lint: .venv/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Scenes that are there are kept, and training goes on from its last checkpoint. The
# second evaluation gives the decoder another backbone, without training; at the end it
# segments pictures as a user's own.
RUN = runs/quickstart_text
demo: export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
demo: .venv/.installed
	$(BIN)/python -m demo.make_scenes --out runs/scenes --images $(SCENES) \
	  --size 256 --seed 0
	$(BIN)/python train.py --config configs/quickstart_text.py --workdir $(RUN)
	$(BIN)/python eval.py --workdir $(RUN) --output $(RUN)/results.json
	$(BIN)/python eval.py --workdir $(RUN) --output $(RUN)/swapped/results.json \
	  --config.backbone.name=tiny_clip_m --config.eval.cues=mask,text \
	  --config.eval.shots=0,1
	$(BIN)/python -m demo.example_picture --model $(RUN) --scenes runs/scenes \
	  --out $(RUN)/example.png
	@echo 'Results: $(RUN)/results.json, $(RUN)/swapped/results.json'
	@echo 'Pictures: $(RUN)/gallery.html, $(RUN)/example.png'

clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis .mypy_cache
