"""What can be proved of the manifests without a cluster; `python -m k8s.checks` runs all of it, `make k8s-check` too.

Every check is a function from documents or files to findings and can be called alone; `registry` names them.
"""
