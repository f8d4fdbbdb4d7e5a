"""Trainings through TRL: fine-tuning before all else, LoRA rewards and policies.

A killed training goes on from checkpoints that hold data alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
