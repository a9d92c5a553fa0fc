# make demo   install, export the demo checkpoint, answer with it
# make test   install, lint, check types, run all tests (what CI runs)
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := artifacts/demo
# aarch64 Python and its wheels; what the runtime's tests open where there is no exporter
ARM_TREE := artifacts/arm
TEST_ARTIFACTS := artifacts/test-artifacts
RECORDED_FROM := $(wildcard edge_gemma/*.py edge_gemma/*.yaml export/*.py runtime/*.py demo/*.py demo/checkpoint/* \
  tests/*.py tests/arm/answers.py tests/arm/record.py) constraints.txt

.PHONY: install espeak jdk browser demo test lint types fast trueshape eval real test-android test-artifacts test-arm test-device clean

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

# runs the engine of the Android demo on the desktop, and compiles its app; the shim to onnxruntime needs cc
jdk:
	@{ command -v javac && command -v cc; } >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get -qq update \
	    && apt-get -qq install -y openjdk-17-jdk-headless gcc libc6-dev >/dev/null; } \
	  || { echo "a JDK or a C compiler is missing: apt-get install openjdk-17-jdk-headless gcc libc6-dev"; exit 1; }

# opens the server's page in tests
browser:
	@command -v chromium >/dev/null \
	  || { [ "$$(id -u)" = 0 ] && apt-get -qq update && apt-get -qq install -y chromium >/dev/null; } \
	  || { echo "chromium is missing: apt-get install chromium"; exit 1; }

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

test: lint types fast test-arm trueshape

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

fast: install espeak jdk browser
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not trueshape"

# random weights at E2B's and E4B's true shapes: about 11 GB of disk for a while, 3 GiB of memory, half an hour
trueshape: install
	$(BIN)/pytest -q -m trueshape

# of the fast tests, those of android_demo: its engine answers as Python does, its sources become an APK
test-android: install jdk
	$(BIN)/pytest -q tests/jvm tests/android

test-artifacts: $(TEST_ARTIFACTS)/.made

$(TEST_ARTIFACTS)/.made: $(RECORDED_FROM) | install espeak
	$(BIN)/python tests/arm/record.py $(TEST_ARTIFACTS)
	@touch $@

# the runtime's tests and the demo as Cortex-A72, Cortex-A76 and a core with i8mm, emulated; see docs/arm.md
test-arm: install test-artifacts
	$(BIN)/python tests/arm/tree.py $(ARM_TREE)
	$(BIN)/python tests/arm/run.py $(ARM_TREE) $(TEST_ARTIFACTS) $(foreach core,$(CORES),--core $(core)) \
	  $(if $(LONG),--long)

# on a real board, without the exporter: TESTS=folder of `make test-artifacts`, ARTIFACT=folder of any artifact
test-device:
	@$(PYTHON) tests/arm/device.py $(if $(TESTS),--tests '$(TESTS)') $(if $(ARTIFACT),--artifact '$(ARTIFACT)')

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
