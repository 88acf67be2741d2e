# Two commands matter: `make demo` shows Penstock at work, `make test` proves it. `make help` lists the rest.

PYTHON ?= python3.11
JOBS ?= 3
STATE := .penstock
VENV := $(STATE)/venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
# pip would compile one module after the other. Some files are templates and do not compile, which pip does not mind either.
INSTALL := $(PIP) install --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
RUN_READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
S3_READY := $(STATE)/venv-s3/.ready

.DEFAULT_GOAL := help
.PHONY: help demo challengers test test-fast check lint format-and-lint types imports docs audit sbom secrets up down status lock clean

help: ## list these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN_READY) ## the whole chain on 336,776 real flights, through Airflow (about 3 minutes after the install)
	@$(BIN)/penstock demo

challengers: $(RUN_READY) ## good and bad models on real flights through the real DAG: which are promoted, which refused and why
	@$(BIN)/python benchmarks/challengers.py

test: ## every test, the end-to-end one included; folders side by side (JOBS=3)
	@$(MAKE) --no-print-directory --jobs=2 lint $(S3_READY)
	@$(BIN)/python -m compileall -q -j 0 tasks plugins # or each process of the tests would, all at once
	@$(BIN)/pytest -n $(JOBS) --no-loadscope-reorder

test-fast: $(DEV_READY) ## unit tests only: no services, no Ray, no S3
	@$(BIN)/pytest -m "not e2e and not ray and not s3"

check: test ## what CI runs

lint: format-and-lint types imports ## format, lint, types, and who may import whom

format-and-lint: $(DEV_READY)
	@$(BIN)/ruff format --check . && $(BIN)/ruff check .

types: $(DEV_READY)
	@$(BIN)/mypy

imports: $(DEV_READY)
	@$(BIN)/lint-imports

docs: $(DEV_READY) ## the book as a site, in .penstock/site
	@$(BIN)/python scripts/site.py && echo "open $(STATE)/site/index.html"

audit: $(DEV_READY) ## known vulnerabilities of the locked packages; needs the vulnerability service, and says when it is not reachable
	@$(BIN)/python scripts/supply_chain.py audit

sbom: $(DEV_READY) ## the lock as a CycloneDX document, in .penstock/sbom.json
	@$(BIN)/python scripts/supply_chain.py sbom

secrets: ## random secrets for docker-compose.yml, in secrets/; what is there stays
	@$(PYTHON) docker/make_secrets.py

up: $(RUN_READY) $(if $(filter production,$(PROFILE)),$(S3_READY)) ## start Airflow, MLflow and Ray on this machine; PROFILE=production: on PostgreSQL, S3 and two Ray nodes
	@$(BIN)/penstock up $(if $(PROFILE),--profile $(PROFILE))

down: $(RUN_READY) ## end them
	@$(BIN)/penstock down

status: $(RUN_READY) ## show them
	@$(BIN)/penstock status || true

lock: $(DEV_READY) ## resolve requirements*.in into requirements*.txt, with hashes
	@$(BIN)/python scripts/lock.py

clean: ## end the services and remove all state, the virtual environment included
	@if [ -x $(BIN)/penstock ]; then $(BIN)/penstock down; fi
	@rm -rf $(STATE)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || \
	  { echo "Penstock needs Python 3.11 with venv, and '$(PYTHON)' is not that. Install it, or: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@mkdir -p $(STATE) && rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUN_READY): requirements.txt requirements-hashes.txt pyproject.toml $(VENV)/.created
	@echo "Installing what Penstock needs into $(VENV) (about 2 GB, 1-3 minutes, once)"
	@$(INSTALL) --no-deps --require-hashes -r requirements-hashes.txt
	@$(INSTALL) --quiet "$$(grep '^torch==' requirements.txt)" # has a build for each platform, which may need more
	@$(INSTALL) --quiet --no-deps --no-build-isolation --editable .
	@$(COMPILE)
	@touch $@

$(DEV_READY): requirements-dev.txt $(RUN_READY)
	@$(INSTALL) --no-deps --require-hashes -r requirements-dev.txt
	@$(COMPILE)
	@touch $@

$(S3_READY): requirements-s3.txt $(VENV)/.created
	@echo "Installing the S3 endpoint that the tests run against"
	@$(PYTHON) -m venv $(STATE)/venv-s3
	@$(STATE)/venv-s3/bin/pip --disable-pip-version-check install --quiet --require-hashes -r requirements-s3.txt
	@touch $@
