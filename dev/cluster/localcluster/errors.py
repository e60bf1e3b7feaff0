"""The one error that the command prints without a traceback: it tells the user what to do."""


class ClusterError(Exception):
    """Something the user can act on: a missing package, a name that is taken, a component that did not start."""
