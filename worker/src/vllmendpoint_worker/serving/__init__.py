"""The worker's state, the report server that publishes it, and the health routes of the SageMaker port.

Imports ``process``.
"""
