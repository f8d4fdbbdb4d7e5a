"""For a reader: intervals and tests, where a proxy is wrong, what labels changed, examples to
read, figures."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
