"""Why a pod does not start or stopped: one module per kind of cause. Pure.

Imports ``observe.snapshot`` only.
"""
