"""What leaves a run: rewards, policies and labels in the form that other programs read. The names
are listed in `__init__.pyi`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
