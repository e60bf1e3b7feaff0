# The local cluster: docs/cluster.md. Needs Linux and root; `make cluster-tools` installs and builds the rest.

# Not CLUSTER: that is the user's, and says which cluster tests and the demo take.
LOCAL_CLUSTER := $(BIN)/python dev/cluster
CLUSTER_ARGS ?=

.PHONY: cluster-tools
cluster-tools: $(STAMP)  ## build the local cluster's programs, once (about 15 minutes)
	@$(LOCAL_CLUSTER) build

.PHONY: cluster-up
cluster-up: cluster-tools  ## start a local Kubernetes (CLUSTER_ARGS="--nodes 2 --gpus 4")
	@$(LOCAL_CLUSTER) up $(CLUSTER_ARGS)

.PHONY: cluster-down
cluster-down: $(STAMP)  ## end it and remove every trace
	@$(LOCAL_CLUSTER) down $(CLUSTER_ARGS)

.PHONY: test-cluster
test-cluster: cluster-tools  ## the tests that need the local cluster
	$(PYTEST) -m "cluster and not slow" tests/cluster

.PHONY: test-e2e
test-e2e: cluster-tools  ## the operator and the runtime on the local cluster
	$(PYTEST) -m "cluster and not slow" tests/e2e

.PHONY: test-on-cluster
test-on-cluster: cluster-tools  ## test-cluster and test-e2e, on one cluster
	$(PYTEST) -m "cluster and not slow" tests/cluster tests/e2e

.PHONY: test-cluster-long
test-cluster-long: cluster-tools  ## ten times up and down, and thousands of pods
	$(PYTEST) --timeout 1800 -m "cluster and slow" tests/cluster

.PHONY: test-e2e-long
test-e2e-long: cluster-tools model  ## autoscaling by load, SmolLM2 too, and the operator scaling 5,000 pods (THRANITE_SCALE_PODS, _SECONDS)
	$(PYTEST) --timeout 2400 -s -m "cluster and slow" tests/e2e
