"""Will a run fit? Sizes of a model, the memory of each stage, and the knob to turn."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
