"""Generates the CustomResourceDefinition and its reference from the models.

Imports every other module of the package; none of them imports this folder.
"""
