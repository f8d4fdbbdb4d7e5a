"""Trainings through TRL.

Fine-tuning before all else, LoRA rewards, policies; resumable from checkpoints of data alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
