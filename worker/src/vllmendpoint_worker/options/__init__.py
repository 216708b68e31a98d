"""Engine options from the command line, the environment and SageMaker's variables: parsed, compared, refused.

Imports ``payload`` for the origin of a setting.
"""
