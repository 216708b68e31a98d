"""Reads the settings file, the environment and the config file, and merges them into one configuration.

Imports ``options``, ``payload``, ``serving`` and ``process``.
"""
