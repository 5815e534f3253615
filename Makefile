# The pipeline, readable from top to bottom. Make only orders the stages; lib.execute decides which are fresh.
# make all RECIPE=tiny SET="sft.learning_rate=1e-3 judge.questions=50" PIP_ARGS="..." LAUNCH="..."
RECIPE ?= tiny
PYTHON3 ?= python3
PYTHON := .venv/bin/python
TESTS := $(PYTHON) -m pytest -q -n 2 --dist loadgroup --no-loadscope-reorder
STAGES := 01_dataset 02_baseline 03_sft 04_qat 05_export 07_preference 06_judge
LAUNCHED := 02_baseline 03_sft 04_qat 07_preference
# What is given to Make reaches Python through the environment, as it was typed: no shell and no $ in it is expanded.
GIVEN := RECIPE SET GPU LAUNCH OUTPUTS PIP_ARGS ROWS
# make serve MODEL=q8_0 HOST=127.0.0.1 PORT=8000 UI=0 UI_PORT=8501: those of the command line only, for shells have a HOST too
$(foreach name,MODEL HOST PORT UI UI_PORT,$(if $(filter command,$(firstword $(origin $(name)))),$(eval export SERVE_$(name) := $$(value $(name)))))
# Whatever else stands on the command line (OVERLAY=leash, LITELLM=path), which make would expand, too
$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(eval override export $(name) := $$(value $(name)))))
$(foreach name,$(GIVEN),$(eval override export $(name) := $$(value $(name))))

.DEFAULT_GOAL := all
.PHONY: all setup $(STAGES) rehearse plan report lab spotcheck verify accept publish test soak bench-data bench-qat \
        bench-train bench-eval bench-serve bench-guard serve chat lint lock clean help

all: $(STAGES)  ## every stage of RECIPE (default tiny), then the HTML report; JOBS=1: one after another
	@$(PYTHON) -m lib.report.pages

setup:  ## .venv with the locked packages, their hashes checked, and llama.cpp built from its pinned source
	@unset MAKEFLAGS; $(PYTHON3) -m lib.pipeline.setup $(if $(GPU),--gpu)

01_dataset:  setup                             ## sources -> train, eval and frozen test questions
02_baseline: 01_dataset                        ## what the base knows before training
03_sft:      01_dataset                        ## LoRA on reasoning and answer: adapter, merged model
04_qat:      03_sft                            ## training on the grid of the 4-bit file
05_export:   02_baseline 04_qat                ## GGUF files, their sizes, losses and served answers
06_judge:    05_export                         ## blind, order-balanced comparison of the answers
07_preference: 03_sft                          ## reward model, DPO and RL on a leash, where the recipe has the section

# JOBS=2: of `all`, 02 runs beside 03, and 04, 05 and 06 beside 07. 06 may judge an arm of 07 and then comes after it: it
# does unless the default recipe runs as it is, which judges none. Its chapters take a core each. On one GPU two
# trainings would share its memory: there one runs after another.
$(if $(filter command override,$(firstword $(origin JOBS))),,$(eval JOBS := $(if $(filter tiny,$(RECIPE)),2,1)))
ifneq ($(words $(JOBS)) $(words $(filter 1 2 3 4,$(JOBS))),1 1)
$(error JOBS=$(JOBS): say how many chapters may run at once, 1 to 4)
endif
ifeq ($(filter all publish,$(or $(MAKECMDGOALS),all)),)
.NOTPARALLEL:
unexport JOBS
else
export JOBS
ARMS := $(filter-out tiny,$(RECIPE)) $(value OVERLAY) $(findstring judge,$(value SET)) $(findstring preference,$(value SET))
$(if $(strip $(value ARMS)),$(eval 06_judge: | 07_preference))
MAKEFLAGS += -j$(JOBS)
endif
$(filter-out $(LAUNCHED),$(STAGES)):
	@$(PYTHON) -m lib.execute $@

# exec: a shell in between would keep SIGTERM from the stage, which then saves nothing and runs on.
# LAUNCH="torchrun --nproc_per_node 8" is the torchrun of .venv and starts one notebook per rank: params/launch/
$(LAUNCHED):
	@exec $(PYTHON) -m lib.pipeline.launch $@

rehearse: setup  ## RECIPE on a tiny twin of its base, on its own files or else the clinic: all stages, on a CPU, in minutes
	@$(PYTHON) -m lib.plan.rehearsal
	@OVERLAY=rehearsal exec $(MAKE) --no-print-directory all

plan:  ## memory, hours, disk and dollars of RECIPE on one GPU (default a100-80gb), before any download
	@[ -e .venv/.ready ] || $(PYTHON3) -m lib.pipeline.setup
	@$(PYTHON) -m lib.plan.fit

report: setup  ## outputs/<run>/report/index.html from what has run
	@$(PYTHON) -m lib.report.pages

serve: setup  ## API and page over the finished run of RECIPE; MODEL=q8_0, PORT, UI=0; docs/serving.md
	@exec $(PYTHON) -m app

chat: setup  ## the same in the terminal
	@exec $(PYTHON) -m app chat

lab: setup  ## JupyterLab on notebooks/
	$(PYTHON) -m jupyter lab --notebook-dir=notebooks

spotcheck: setup  ## a blinded sheet of answer pairs for a human; once filled in, how often the scores agree with it
	@$(PYTHON) -m lib.judge.spotcheck

verify: setup  ## read every byte of a finished run again and compare it with its stage.json
	@$(PYTHON) -m lib.execute verify

accept: setup  ## after a harmless code edit: bless finished stages without running them; stage.json says so
	@$(PYTHON) -m lib.execute accept

publish: all  ## refresh outputs/published/ and the results in the README
	@$(PYTHON) -m lib.report.pages publish

test: setup lint  ## every test, no network beyond the package index, no GPU
	$(TESTS) -m "not slow" --durations=10

soak: setup  ## the long tests too: many kills, a rehearsal of every recipe
	$(TESTS)

bench-data: setup  ## the data pipeline on 400,000 generated rows: seconds, memory, and side by side with plain loops
	$(PYTHON) -m benchmarks.data
	$(PYTHON) -m benchmarks.leaks

bench-qat: setup  ## what exact QAT costs in a training step, and its export beside llama.cpp's own commands
	$(PYTHON) -m benchmarks.qat

bench-train: setup  ## training speed beside a tutorial script, TRL's own defaults and a bare loop
	$(PYTHON) -m benchmarks.train

bench-eval: setup  ## answering speed of RECIPE's tuned model beside a loop without a cache; needs a finished run
	$(PYTHON) -m benchmarks.evaluation

bench-serve: setup  ## the server beside llama-server itself and the LiteLLM proxy; needs a finished run of RECIPE
	$(PYTHON) -m benchmarks.serving

bench-guard: setup  ## red flags that the guard rails see, and their false alarms, on both parts of the set
	$(PYTHON) -m benchmarks.guard
	$(PYTHON) -m benchmarks.guard --part first
	$(PYTHON) -m benchmarks.guard --part fourth

lint: setup  ## ruff, and the imports that each package of lib may use
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	.venv/bin/lint-imports --no-logo

lock:  ## after an edit of requirements*.txt: resolve them anew with uv, and write requirements*.lock with all hashes
	@$(PYTHON3) -m lib.pipeline.lock

clean:  ## remove the outputs of RECIPE (all its SETs); caches and .venv stay
	@[ ! -e $(PYTHON) ] || $(PYTHON) -m lib.execute clean

help:  ## this list
	@grep -hE '^[a-z0-9_-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9_-]+):[^#]*##/\1 ##/' | awk -F ' ## *' '{printf "  make %-12s %s\n", $$1, $$2}'
