# make demo   a video from a prompt, in a fresh environment without PyTorch
# make test   everything a change must pass
PYTHON ?= $(shell command -v python3.11 || command -v python3)
DEMO_PROMPT ?= a blue star moves right above a pink heart that grows among stars, neon style

TYPED = $(addprefix -p kinograph.,bundle calibration engines runtime commands console) $(addprefix -m kinograph.,errors manifest cli)

.PHONY: demo test lint clean

demo: .venv/installed
	.venv/bin/kinograph generate "$(DEMO_PROMPT)" -o demo.mp4 --sheet demo.png --force

test: .venv-dev/installed lint
	.venv-dev/bin/python -m pytest

lint: .venv-dev/installed
	.venv-dev/bin/ruff check .
	.venv-dev/bin/ruff format --check .
	cd .venv-dev && MYPYPATH=src bin/mypy --config-file ../pyproject.toml $(TYPED)

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check .
	touch $@

# PyTorch first and by version: its CPU build is what the tests need, and nothing after it asks for another.
.venv-dev/installed: pyproject.toml
	$(PYTHON) -m venv .venv-dev
	.venv-dev/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.venv-dev/bin/pip install --quiet --disable-pip-version-check --editable '.[export,rtx,dev]'
	mkdir -p .venv-dev/src && ln -sfn ../.. .venv-dev/src/kinograph
	touch $@

clean:
	rm -rf .venv .venv-dev build dist *.egg-info demo.mp4 demo.json demo.png
