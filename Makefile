# make run                                   the whole series at the smallest scale
# make run ARGS="--scale t4"                 any argument of `python -m rlhf_utils run`
# make test ARGS="-m 'not slow'"             any argument of pytest
# make run PYTHON=python3.12                 the interpreter that .venv is made from (`make clean` first to change it)
#
# On Linux pip takes the CUDA build of torch unless it is given PyTorch's CPU wheel index (pytorch.org, "Start locally")
# in the environment variable PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
ARGS ?=
PY := .venv/bin/python
# Written last, so that an interrupted installation is begun anew.
INSTALLED := .venv/.installed

export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test lint notebooks clean clean-outputs

run: $(INSTALLED)
	@$(PY) -m rlhf_utils run --recipe instruct --scale tiny $(ARGS)

test: $(INSTALLED)
	@$(PY) -m pytest $(ARGS)

lint: $(INSTALLED)
	@$(PY) -m ruff check .

notebooks: $(INSTALLED)
	@$(PY) -m rlhf_utils.published
	@$(PY) -m rlhf_utils run --recipe instruct --scale tiny --fresh --set evaluation.overoptimise.learning_rate=5e-4
	@$(PY) -m rlhf_utils.published outputs/instruct-tiny

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is not; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	@if [ -f $@ ]; then echo "Requirements changed: updating .venv"; \
	else echo "Installing into .venv (about 3 minutes, once)" && $(PYTHON) -m venv --clear .venv; fi >&2
	@rm -f $@
	@$(PY) -m pip install -qq -c constraints.txt -e ".[dev]" || { \
		echo "The installation failed (the lines above say why); the same command tries again." >&2; exit 1; }
	@touch $@

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

# Deletes runs with their checkpoints; what git tracks under outputs/ stays.
clean-outputs:
	git clean -fdxq -- outputs
