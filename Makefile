# Everything runs in .venv, which is built from constraints.txt on first use (torch is most of the download).
# PYTHON=... chooses the interpreter, ARGS=... goes to the command: make demo ARGS=--healthy

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CANDIDATES := python3 python3.13 python3.12 python3.11 python
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

.PHONY: all demo dash lint test search clean

all: $(READY)
	@echo 'Ready. make demo: the demo; make dash: the dashboard; make test: lint and tests; make search: property tests without end; make clean: remove .venv.'

demo: $(READY)
	$(BIN)/trainwatch demo $(ARGS)

dash: $(READY)
	$(BIN)/trainwatch dash $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 $(ARGS)

# Other examples for the property tests again and again, until one of them fails (or Ctrl-C).
search: $(READY)
	while $(BIN)/pytest -n 2 -m hypothesis --hypothesis-profile=search $(ARGS); do :; done

$(READY): pyproject.toml constraints.txt
	@python=$(PYTHON); \
	for candidate in $(CANDIDATES); do \
	    [ -n "$$python" ] || ! $$candidate -c '$(USABLE)' 2>/dev/null || python=$$candidate; \
	done; \
	[ -n "$$python" ] || { echo 'No Python 3.11, 3.12 or 3.13 with venv was found: install one, or name it with make PYTHON=...' >&2; exit 2; }; \
	[ -x $(BIN)/python ] || { echo "Setting up $(VENV) with $$python"; $$python -m venv $(VENV); }
	$(BIN)/python -m pip install --disable-pip-version-check --prefer-binary -c constraints.txt -e '.[dash,trainer,dev]'
	@touch $@

clean:
	rm -rf $(VENV)
