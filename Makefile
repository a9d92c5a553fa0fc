# make demo   install, export the demo checkpoint, answer with it
# make test   install, lint, check types, run all tests (what CI runs)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := artifacts/demo

.PHONY: install espeak demo test lint types fast trueshape eval real clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -m venv $(VENV) || { echo "no virtual environment could be made: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[export,dev]'
	@touch $@

# speaks the demo's held-out sentences; Debian has it
espeak:
	@command -v espeak-ng >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y espeak-ng >/dev/null; } \
	  || { echo "espeak-ng is missing: apt-get install espeak-ng"; exit 1; }

# demo/samples/samples.json says what the clips and pictures hold
demo: install
	$(BIN)/edge-gemma export demo/checkpoint -o $(DEMO) --overwrite
	@for prompt in "What is 17 + 25?" "Turn on the kitchen light."; do \
	  printf '\n> %s\n' "$$prompt"; \
	  $(BIN)/edge-gemma run $(DEMO) "$$prompt" --temperature 0 --stats || exit 1; \
	done
	@printf '\n> what is said in demo/samples\n'
	@$(BIN)/edge-gemma transcribe $(DEMO) demo/samples/*.wav
	@printf '\n> and in the other language\n'
	@$(BIN)/edge-gemma translate $(DEMO) demo/samples/english-*.wav --from English --to Spanish
	@$(BIN)/edge-gemma translate $(DEMO) demo/samples/spanish-*.wav --from Spanish --to English
	@printf '\n> what is to be seen\n'
	@$(BIN)/edge-gemma describe $(DEMO) demo/samples/*.png --temperature 0

test: lint types fast trueshape

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

fast: install espeak
	$(BIN)/pytest -q -m "not trueshape"

# random weights at E2B's true shape: about 4 GB of disk, 2 GiB of memory, ten minutes
trueshape: install
	$(BIN)/pytest -q -m trueshape

# the demo checkpoint's held-out tasks, transformers beside every recipe
eval: install espeak
	$(BIN)/python -m benchmarks.demo_accuracy

# every measurement of a checkpoint with real weights, in one report; see docs/real-weights.md
real: install
	@[ -n "$(CHECKPOINT)" ] || { echo "usage: make real CHECKPOINT=folder-or-hub-name [RECIPES='int4 int8'] \
	[CLIPS=dir] [TEXTS=file] [OUT=dir] [OPTIONS='--skip speed …']"; exit 2; }
	$(BIN)/python -m benchmarks.real '$(CHECKPOINT)' $(if $(RECIPES),--recipes '$(RECIPES)') \
	  $(if $(CLIPS),--clips '$(CLIPS)') $(if $(TEXTS),--texts '$(TEXTS)') $(if $(OUT),--out '$(OUT)') $(OPTIONS)

clean:
	rm -rf $(VENV) artifacts build *.egg-info
