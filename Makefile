# Every routine task has a target. `make demo` sets up a machine and shows the product; `make test` runs all tests.
SHELL := /bin/bash
CACHE := $(or $(VLLMENDPOINT_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vllmendpoint)
export PATH := $(CACHE)/bin:$(PATH)
CLUSTER ?= local
export CLUSTER
PYTHON := .venv/bin/python
CRD := crds/vllmendpoints.yaml
CHART_CRD := charts/vllmendpoint-operator/files/crds/vllmendpoints.yaml
REFERENCE := docs/reference.md
SOURCES := crds operator worker tests hack

.DEFAULT_GOAL := help
.PHONY: help setup demo deploy images package test test-unit test-long bench bench-scale bench-disruption lint hooks \
  format generate docs kubeconfig clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: ## create a cluster, serve a model, freeze its engine and show the detection (CLUSTER=kind with Docker)
	@hack/demo.sh

deploy: ## update the cluster, the images and the operator to this checkout
	@hack/deploy.sh

setup: ## install the Python workspace in .venv and the tools in the cache
	@hack/setup.sh

images: ## build the images operator, frontend and worker-cpu (BUILD="worker" selects others, CLUSTER=kind uses Docker)
	@hack/images.sh $(if $(filter kind,$(CLUSTER)),docker,buildah) $(BUILD)

package: ## build the wheels, their bills of materials and the Helm chart in dist/
	@hack/package.sh '$(IMAGES)' '$(URL)'

test: ## run all tests except test-long and bench (33 minutes on two cores, including a rebuild of the worker image; TESTS=tests/e2e selects some)
	@hack/test.sh $(TESTS)

test-unit: setup ## run the unit tests (some minutes)
	@$(PYTHON) -m pytest tests/unit -q

test-long: ## run the tests that take too long for `make test`
	@hack/test.sh tests/long

bench: setup ## measure performance ratios
	@$(PYTHON) -m pytest tests/bench -q -s

bench-scale: setup ## measure 1,000 endpoints on simulated nodes against a minimal Go operator (ARGS="--endpoints 100")
	@tests/bench/scale/build.sh
	@$(PYTHON) -m tests.bench.scale $(ARGS)

bench-disruption: setup ## measure what callers lose during failures and changes, against plain Dynamo (ARGS="--resume" continues)
	@hack/deploy.sh
	@$(PYTHON) -m tests.bench.disruption $(ARGS)

lint: setup ## check style, prose, types, import layers, dependencies, scripts, YAML, chart, workflows and generated files
	@.venv/bin/ruff check $(SOURCES)
	@.venv/bin/ruff format --check $(SOURCES)
	@$(PYTHON) hack/prose.py
	@.venv/bin/mypy
	@.venv/bin/mypy $$(git ls-files 'tests/*.py' | grep -vE '/test_|^tests/guide/|/engine_spy/')
	@.venv/bin/lint-imports
	@for part in crds operator worker; do \
	  found=$$(cd $$part && ../.venv/bin/deptry --no-ansi src 2>&1) || { echo "$$found"; exit 1; }; done
	@.venv/bin/shellcheck -x -P SCRIPTDIR $$(git ls-files '*.sh' .ci/run)
	@.venv/bin/yamllint --strict .
	@helm lint --strict --quiet charts/vllmendpoint-operator
	@hack/tools.sh actionlint && PATH=$$PWD/.venv/bin:$$PATH actionlint
	@cd hack/cluster && test -z "$$(gofmt -l .)" && go vet ./... && go test ./...
	@test -z "$$(gofmt -l hack/kind)"
	@cd tests/bench/scale/ideal && test -z "$$(gofmt -l .)" && go vet ./... && go test ./...
	@$(MAKE) -s generate CRD=$(CACHE)/generated.yaml CHART_CRD=$(CACHE)/generated-chart.yaml \
	  REFERENCE=$(CACHE)/generated.md
	@diff -u $(CRD) $(CACHE)/generated.yaml && diff -u $(CHART_CRD) $(CACHE)/generated-chart.yaml \
	  && diff -u $(REFERENCE) $(CACHE)/generated.md \
	  || { echo "error: generated files are not current; run 'make generate'"; exit 1; }

hooks: setup ## install the git hooks of .pre-commit-config.yaml
	@.venv/bin/pre-commit install

format: setup ## apply ruff's formatting and safe fixes
	@.venv/bin/ruff check --fix -q $(SOURCES); .venv/bin/ruff format -q $(SOURCES)

generate: setup ## generate the CRD and its reference from the models
	@mkdir -p $(CACHE)
	@$(PYTHON) -m vllmendpoint_api > $(CACHE)/crd.new
	@$(PYTHON) -m vllmendpoint_api reference > $(CACHE)/reference.new
	@cp $(CACHE)/crd.new $(CRD) && cp $(CACHE)/crd.new $(CHART_CRD) && cp $(CACHE)/reference.new $(REFERENCE)

docs: ## build the site of the documentation in .site; fail on a broken link
	@hack/tools.sh
	@UV_PROJECT_ENVIRONMENT=$(CACHE)/docs-venv NO_MKDOCS_2_WARNING=1 \
	  uv run --frozen --no-default-groups --only-group docs mkdocs build --strict --site-dir .site
	@echo .site/index.html

kubeconfig: ## print the path of the demo cluster's kubeconfig
ifeq ($(CLUSTER),kind)
	@echo $(CACHE)/kind/kubeconfig
else
	@cluster kubeconfig
endif

clean: ## remove the cluster; keep the build cache (PURGE=1 also removes images, Docker's build cache, models and .venv)
	@if [ "$(CLUSTER)" = kind ]; then hack/kind/cluster.sh down $(if $(PURGE),--purge); \
	 elif [ -x $(CACHE)/bin/cluster ]; then cluster down $(if $(PURGE),--purge); fi
	@hack/images.sh $(if $(PURGE),clean,tidy)
	@$(if $(PURGE),rm -rf $(CACHE)/models .venv .site)
	@echo "clean"
