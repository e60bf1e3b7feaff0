# Everything a contributor runs. `make help` lists it. Needs Python 3.11 or newer (with venv), git and make; all else
# is installed into .venv by `make setup`, which every other target calls by itself.

# Containers' images often set it, and then each of the hundreds of processes that the tests start compiles all its modules.
unexport PYTHONDONTWRITEBYTECODE

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

is_recent := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(or $(shell for p in python3 python3.12 python3.11 python3.13 python; do \
	if "$$p" -c '$(is_recent)' 2>/dev/null; then echo "$$p"; break; fi; done),python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := operator,runtime,demo,test,dev
PYTEST := $(BIN)/python -m pytest --timeout 300
# How many files of a part's tests run at once; 0: in pytest's own process. Those on the cluster run one by one.
WORKERS ?= 2
AT_ONCE := --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Folders of tests that exist; each one is also a target: test-runtime, test-kernels, …
PARTS := $(shell find tests -mindepth 2 -name 'test_*.py' -not -path 'tests/cluster/*' -not -path 'tests/e2e/*' \
	| cut -d/ -f2 | sort -u)
# What needs the local cluster's programs runs where they can be built: on Linux, by root, with Go.
CLUSTER_PARTS := $(shell if [ "$$(uname)" = Linux ] && [ "$$(id -u)" = 0 ] && command -v go >/dev/null; \
	then echo cluster-tools test-on-cluster; else echo test-no-cluster; fi)

.PHONY: help
help:  ## this list
	@grep -hE '^[a-z][a-z0-9-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 20
	@echo "$(addprefix test-,$(PARTS))" | fmt -w 72 | sed '1s/^/one part:           /; 2,$$s/^/                    /'

.PHONY: setup
setup: $(STAMP)  ## create .venv and install everything (quick when nothing changed)

$(STAMP): pyproject.toml
	@"$(PYTHON)" -c '$(is_recent)' || { \
		echo "make: need Python 3.11 or newer with its venv module; $(PYTHON) is not. Set PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --editable '.[$(EXTRAS)]'
	@touch $@

.PHONY: check
check: $(STAMP)  ## format, lint, types, layers
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

.PHONY: format
format: $(STAMP)  ## rewrite files in the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Tests on the cluster mostly wait, so they run beside the others; what they say comes when those have ended.
.PHONY: test
test: test-layout $(filter cluster-tools,$(CLUSTER_PARTS)) model  ## all tests that need no GPU
	@$(BIN)/python -m dev.side_by_side $(MAKE) --no-print-directory $(filter-out cluster-tools,$(CLUSTER_PARTS)) \
		-- $(MAKE) --no-print-directory $(addprefix test-,$(PARTS))

.PHONY: test-no-cluster
test-no-cluster:
	@echo "make: the tests of the local cluster need Linux, root and Go, and were left out" >&2
	@test -z "$${CI:-}"  # under CI that is a failure

.PHONY: test-layout
test-layout: $(STAMP)  ## the tree itself
	$(PYTEST) tests/test_layout.py

.PHONY: $(addprefix test-,$(PARTS))
$(addprefix test-,$(filter-out kernels,$(PARTS))): test-%: $(STAMP)
	$(PYTEST) $(AT_ONCE) tests/$*

# Triton reads TRITON_INTERPRET when a kernel is declared, so these tests have a process of their own.
test-kernels: $(STAMP)
	TRITON_INTERPRET=1 $(PYTEST) $(AT_ONCE) tests/kernels

test-runtime: model

.PHONY: test-long
test-long: $(STAMP) model  ## the minutes-long tests
	$(PYTEST) -m "slow and not cluster" tests
	THRANITE_TEST_LONG=1 $(PYTEST) --timeout 1800 tests/runtime/test_smollm2.py

.PHONY: fuzz
fuzz: $(STAMP)  ## 10,000 malformed request bodies and long runs of schemathesis: no 500, nothing stays behind
	THRANITE_FUZZ_BODIES=10000 THRANITE_FUZZ_CASES=300 $(PYTEST) --timeout 1800 \
		tests/runtime/server/test_fuzz.py tests/runtime/server/test_openapi.py

.PHONY: model
model: $(STAMP)  ## fetch SmolLM2-135M-Instruct once, and print where it is
	@$(BIN)/python -m dev.fetch_smollm2

.PHONY: demo
demo: $(STAMP)  ## the whole story on a local Kubernetes (CLUSTER=current: on yours): chart, rollout, recovery
	@$(BIN)/python -m dev.demo_cluster

.PHONY: demo-engine
demo-engine: $(STAMP) model  ## serve a real model without a cluster, and ask it three questions
	@$(BIN)/python -m dev.demo

.PHONY: image-check
image-check: $(STAMP)  ## build the images with buildah and run them
	$(BIN)/python dev/image_check.py

.PHONY: bench
bench: $(STAMP)  ## the engine's offline workloads on this machine's GPU
	$(BIN)/thranite bench offline $(ARGS)

.PHONY: bench-serving
bench-serving: $(STAMP)  ## the HTTP path on the null device: cost of an event, overload, concurrency by a target
	$(BIN)/python dev/bench/serve_streams.py
	$(BIN)/python dev/bench/serve_overload.py
	$(BIN)/python dev/bench/serve_concurrency.py

.PHONY: soak
soak: $(STAMP)  ## five minutes of everything at once on the null device, and what is left afterwards
	$(BIN)/python dev/bench/serve_soak.py $(ARGS)

.PHONY: bench-cpu
bench-cpu: $(STAMP) model  ## this engine and transformers side by side on the CPU
	$(BIN)/thranite bench cpu "$$($(BIN)/python -m dev.fetch_smollm2)" $(ARGS)

.PHONY: bench-autoscaling
bench-autoscaling: $(STAMP)  ## the autoscaler beside seven others on simulated replicas: tables and plots of docs/autoscaling.md
	PYTHONPATH=dev/bench $(BIN)/python -m autoscaling.report --docs docs $(ARGS)

.PHONY: test-autoscaling
test-autoscaling: $(STAMP)  ## the autoscaler's properties over 200,000 random states (2 minutes)
	THRANITE_TEST_STATES=200000 $(PYTEST) --timeout 1200 tests/operator/autoscaling/test_properties.py

.PHONY: record-service
record-service: $(STAMP) model  ## time the CPU engine's steps for that simulation
	PYTHONPATH=dev/bench $(BIN)/python -m autoscaling.record_service "$$($(BIN)/python -m dev.fetch_smollm2)" \
		--output dev/bench/autoscaling/service.json

# On a machine that has torch already and installs nothing: make gpu-test PYTHON=python3. ROWS takes a part:
# ROWS="kernels" or any other expression of pytest's -k; make gpu-bench ROWS=llama-8b/mixed,qwen3-0.6b/decode1.
# What serving and its tests need besides torch, triton and transformers comes from wheels/ where that machine lacks it.
SOURCES := operator:runtime:kernels
GPU_SITE := .gpu-site
GPU_TESTS = tests/kernels $(shell grep -rlwE 'mark\.gpu' tests/runtime --include='test_*.py')

.PHONY: gpu-test
gpu-test: $(GPU_SITE)  ## the tests that need a CUDA GPU, with $(PYTHON) as it is
	PYTHONPATH=$(SOURCES):$(GPU_SITE) "$(PYTHON)" -m pytest -m gpu $(if $(ROWS),-k "$(ROWS)") $(GPU_TESTS)

.PHONY: gpu-model
gpu-model: $(STAMP) model  ## .gpu/: SmolLM2's first layers (LAYERS=3), for a GPU machine without a network
	$(BIN)/python -m dev.gpu_model $(if $(LAYERS),--layers $(LAYERS))

.PHONY: gpu-bench
gpu-bench:  ## the offline benchmark, with $(PYTHON) as it is
	PYTHONPATH=$(SOURCES) "$(PYTHON)" -m thranite bench offline $(if $(ROWS),--rows "$(ROWS)") $(ARGS)

ONLINE := PYTHONPATH=$(SOURCES):$(GPU_SITE) "$(PYTHON)" dev/bench/online_gpu.py

.PHONY: gpu-wheels
gpu-wheels: $(STAMP)  ## fetch those wheels, for Python 3.12 on Linux
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --dest wheels --only-binary=:all: \
		--python-version 3.12 --platform manylinux_2_31_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
		starlette uvicorn uvloop httptools msgspec prometheus-client rich llguidance websockets xxhash jinja2 httpx
	@du -sh wheels

$(GPU_SITE): $(wildcard wheels/*.whl)
	@mkdir -p $@
	@for wheel in $^; do "$(PYTHON)" -m zipfile -e "$$wheel" $@; done
	@touch $@

.PHONY: gpu-online
gpu-online: $(GPU_SITE)  ## what clients of llama-8b on one GPU see, against the bars (five minutes)
	$(ONLINE) $(ARGS)

.PHONY: gpu-soak
gpu-soak: $(GPU_SITE)  ## two minutes of everything at once on a GPU, and what is left afterwards
	$(ONLINE) --soak 120 $(ARGS)

# Parts that run one after another, each under a time limit: gpu2-test GPU2=sums,killed; gpu2-bench ROWS=llama-8b/decode1.
.PHONY: gpu2-test
gpu2-test:  ## the tests that need two CUDA GPUs, with $(PYTHON) as it is
	"$(PYTHON)" dev/gpu2.py test --parts "$(GPU2)"

.PHONY: gpu2-bench
gpu2-bench:  ## the ranks' sum alone, then llama-8b's workloads over two GPUs, with $(PYTHON) as it is
	"$(PYTHON)" dev/gpu2.py bench --parts "$(GPU2)" $(if $(ROWS),--rows "$(ROWS)") $(ARGS)

.PHONY: clean
clean:  ## remove the venv and every cache in the checkout
	rm -rf $(VENV) $(GPU_SITE) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

-include dev/cluster.mk
