"""A real Kubernetes on one Linux machine: control plane, kubelets and containers in namespaces of their own."""
