# `make demo`, `make bench` and `make test` set up what they need: a virtual environment in .venv with the pinned requirements.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo bench test test-slow lint clean

demo: $(READY)
	$(RUN) -m scripts.demo

bench: $(READY)
	$(RUN) -m scripts.bench

test: $(READY) lint
	$(RUN) -m pytest

test-slow: $(READY)
	$(RUN) -m pytest -m slow

lint: $(READY)
	$(RUN) -m ruff check .

$(READY): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements.txt
	touch $@

clean:
	rm -rf $(VENV) saved_models .pytest_cache .ruff_cache
