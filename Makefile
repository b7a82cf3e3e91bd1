# `make demo`, `make bench` and `make test` set up what they need: a virtual environment in .venv with the pinned requirements.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

.PHONY: demo bench report test test-slow lint clean

demo: $(READY)
	$(RUN) -m scripts.demo

bench: $(READY)
	$(RUN) -m scripts.bench

# The page of scripts.report for the committed demo model, scored first where it has no scores yet.
REPORTED := saved_models/report/diffusion-demo
SCORES := $(REPORTED)/evaluation/test_step_00003000/scores.json

report: $(READY) $(SCORES)
	$(RUN) -m scripts.report $(REPORTED) --output_dir saved_models/report --film_strip 4

$(SCORES): | $(READY)
	mkdir -p saved_models/report
	cp -r pre_trained_models/diffusion-demo saved_models/report
	$(RUN) train_text_diffusion.py --eval_test --resume_dir $(REPORTED) --num_samples 100

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
