"""From a PyTorch loop to an elastic Ray Train run: model, text, trainer, run log, checkpoints.

Importing this package loads neither Ray nor torch; its modules do.
"""
