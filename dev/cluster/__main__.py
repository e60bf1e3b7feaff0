"""The local cluster's command: `python3 dev/cluster up` starts a real Kubernetes, `down` removes every trace of it."""

import sys

from localcluster.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
