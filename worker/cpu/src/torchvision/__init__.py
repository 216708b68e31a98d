"""Stands in for torchvision, which transformers imports even for models that see no image.

The real one belongs to another build of torch than ours and breaks every import of transformers beside it.
"""
