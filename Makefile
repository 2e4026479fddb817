# make run                                   the whole series at the smallest scale
# make run ARGS="--scale t4"                 any argument of `python -m rlhf_utils run`
# make test ARGS="-m 'not slow'"             any argument of pytest
# make test-lowest                           the fast tests with the oldest versions that requirements.txt allows
# make test-newest                           the same with the newest ones, torch alone as in constraints.txt
# make test-lowest TORCH=2.13.0              either of them with this torch
# make run PYTHON=python3.12                 the interpreter that .venv is made from (`make clean` first to change it)
#
# On Linux pip takes the CUDA build of torch unless it is given PyTorch's CPU wheel index (pytorch.org, "Start locally")
# in the environment variable PIP_EXTRA_INDEX_URL.

PYTHON ?= python3
ARGS ?=
TORCH ?=
PY := .venv/bin/python
# Written last, so that an interrupted installation is begun anew.
INSTALLED := .venv/.installed

export TORCH
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: run test test-lowest test-newest lowest lint notebooks clean clean-outputs

run: $(INSTALLED)
	@$(PY) -m rlhf_utils run --recipe instruct --scale tiny $(ARGS)

test: $(INSTALLED)
	@$(PY) -m pytest $(ARGS)

test-lowest test-newest: test-%: .venv-%/.installed
	@cat .venv-$*/torch.txt >&2 2>/dev/null || true
	@.venv-$*/bin/python -m pytest -m "not slow" $(ARGS)

lint: $(INSTALLED)
	@$(PY) -m ruff check .

notebooks: $(INSTALLED)
	@$(PY) -m rlhf_utils.published
	@$(PY) -m rlhf_utils run --recipe instruct --scale tiny --fresh --set evaluation.overoptimise.learning_rate=5e-4
	@$(PY) -m rlhf_utils.published outputs/instruct-tiny

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "Python 3.11 or newer is needed, and $(PYTHON) is not; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
endef
FAILED = echo "The installation failed (the lines above say why); the same command tries again." >&2; exit 1

$(INSTALLED): requirements.txt constraints.txt pyproject.toml
	$(CHECK_PYTHON)
	@if [ -f $@ ]; then echo "Requirements changed: updating .venv"; \
	else echo "Installing into .venv (about 3 minutes, once)" && $(PYTHON) -m venv --clear .venv; fi >&2
	@rm -f $@
	@$(PY) -m pip install -qq -c constraints.txt -e ".[dev]" || { $(FAILED); }
	@touch $@

# The lower end of every range, as constraints.
lowest:
	@sed -nE 's/^([A-Za-z0-9._-]+)>=([^,]+),.*/\1==\2/p' requirements.txt

.venv-lowest/.installed: requirements.txt constraints.txt pyproject.toml Makefile
	$(CHECK_PYTHON)
	@echo "Installing the lowest versions into .venv-lowest" >&2; $(PYTHON) -m venv --clear .venv-lowest
	@$(MAKE) -s lowest > .venv-lowest/all.txt; grep -v '^torch==' .venv-lowest/all.txt > .venv-lowest/lowest.txt
	@wanted=$$(grep '^torch==' .venv-lowest/all.txt); taken=$${TORCH:+torch==$$TORCH}; taken=$${taken:-$$wanted}; \
	.venv-lowest/bin/python -m pip install -qq "$$taken" || { \
		taken=$$(grep '^torch==' constraints.txt); .venv-lowest/bin/python -m pip install -qq "$$taken"; } || { $(FAILED); }; \
	[ "$$taken" = "$$wanted" ] || echo "*** NOT the lowest torch: $$taken in place of $$wanted. ***" | tee .venv-lowest/torch.txt >&2
	@.venv-lowest/bin/python -m pip install -qq -c .venv-lowest/lowest.txt -e ".[dev]" || { $(FAILED); }
	@touch $@

.venv-newest/.installed: requirements.txt constraints.txt pyproject.toml Makefile
	$(CHECK_PYTHON)
	@echo "Installing the newest versions into .venv-newest" >&2; $(PYTHON) -m venv --clear .venv-newest
	@torch=$${TORCH:+torch==$$TORCH}; torch=$${torch:-$$(grep '^torch==' constraints.txt)}; \
	.venv-newest/bin/python -m pip install -qq "$$torch" && \
	.venv-newest/bin/python -m pip install -qq "$$torch" -e ".[dev]" || { $(FAILED); }
	@touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -type d -prune -exec rm -rf {} +

# Deletes runs with their checkpoints; what git tracks under outputs/ stays.
clean-outputs:
	git clean -fdxq -- outputs
