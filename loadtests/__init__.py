"""Load tests that say what a deployment can carry: open-loop traffic, checked answers, judged runs.

Imports neither torch nor the two halves of the product: it replays payload files. Locust is imported only by the
locustfiles and by what they need (loadtests/experiment.py), because importing it patches the whole process.
"""
