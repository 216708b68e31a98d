"""Collects the engine's options from the command line, the environment and the config file, and checks them.

Imports no other folder.
"""
