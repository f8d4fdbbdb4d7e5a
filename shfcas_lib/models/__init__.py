"""Language models: one quantised backbone with adapters, how it is loaded, and how it decodes."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
