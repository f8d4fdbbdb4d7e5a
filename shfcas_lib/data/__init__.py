"""Prompts and preference pairs: embedded tasks or the user's own data become two tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
