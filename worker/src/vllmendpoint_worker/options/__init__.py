"""Engine options from the command line, the environment and SageMaker's variables: parsed, compared, refused.

Imports no other folder.
"""
