"""Checks a health-check payload: its form, its fields, the type of the model and the expected answer. Pure.

Imports no other folder.
"""
