"""Pure builders, one kind of child a module: a spec in, an object for server-side apply out.

Builders write only fields that the operator owns, and never an empty map or list.
"""
