# Every habit has a name here. `make demo` sets up a machine and shows the product; `make test` proves it.
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
.PHONY: help setup demo deploy test test-unit test-long bench bench-scale lint format generate kubeconfig clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: ## set up everything, serve a model, freeze its engine, see it noticed (CLUSTER=kind with Docker)
	@hack/demo.sh

deploy: ## bring the cluster, the images and the operator up to this checkout
	@hack/deploy.sh

setup: ## the Python workspace in .venv, and the tools in the cache
	@hack/setup.sh

test: ## everything in at most an hour from nothing, a quarter of one when all is built
	@hack/test.sh

test-unit: setup ## the pure tests alone: seconds
	@$(PYTHON) -m pytest tests/unit -q

test-long: ## what takes longer than `make test` allows
	@hack/test.sh tests/long

bench: setup ## ratios, measured in one run
	@$(PYTHON) -m pytest tests/bench -q -s

bench-scale: setup ## a thousand endpoints on simulated nodes, next to the least operator possible (ARGS="--endpoints 100")
	@tests/bench/scale/build.sh
	@$(PYTHON) -m tests.bench.scale $(ARGS)

lint: setup ## ruff, strict types, import layers, the Go modules with their tests, generated files current
	@.venv/bin/ruff check $(SOURCES)
	@.venv/bin/ruff format --check $(SOURCES)
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@cd hack/cluster && test -z "$$(gofmt -l .)" && go vet ./... && go test ./...
	@cd tests/bench/scale/ideal && test -z "$$(gofmt -l .)" && go vet ./... && go test ./...
	@$(MAKE) -s generate CRD=$(CACHE)/generated.yaml CHART_CRD=$(CACHE)/generated-chart.yaml \
	  REFERENCE=$(CACHE)/generated.md
	@diff -u $(CRD) $(CACHE)/generated.yaml && diff -u $(CHART_CRD) $(CACHE)/generated-chart.yaml \
	  && diff -u $(REFERENCE) $(CACHE)/generated.md \
	  || { echo "error: generated files are not current; run 'make generate'"; exit 1; }

format: setup ## ruff's formatting and safe fixes
	@.venv/bin/ruff check --fix -q $(SOURCES); .venv/bin/ruff format -q $(SOURCES)

generate: setup ## the CRD and its reference from the models
	@mkdir -p $(CACHE)
	@$(PYTHON) -m vllmendpoint_api > $(CACHE)/crd.new
	@$(PYTHON) -m vllmendpoint_api reference > $(CACHE)/reference.new
	@cp $(CACHE)/crd.new $(CRD) && cp $(CACHE)/crd.new $(CHART_CRD) && cp $(CACHE)/reference.new $(REFERENCE)

kubeconfig: ## path of the demo cluster's kubeconfig
ifeq ($(CLUSTER),kind)
	@echo $(CACHE)/kind/kubeconfig
else
	@cluster kubeconfig
endif

clean: ## the cluster and all that runs (the cache of builds stays; `make clean PURGE=1` takes images and models too)
	@if [ "$(CLUSTER)" = kind ]; then kind delete cluster --name vllmendpoint --kubeconfig $(CACHE)/kind/kubeconfig; \
	 elif [ -x $(CACHE)/bin/cluster ]; then cluster down $(if $(PURGE),--purge); fi
	@hack/images.sh $(if $(PURGE),clean,tidy)
	@$(if $(PURGE),rm -rf $(CACHE)/models .venv)
	@echo "clean"
