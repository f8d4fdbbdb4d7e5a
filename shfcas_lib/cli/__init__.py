"""The command line, one module a group of commands; each only reads its arguments and calls one
room."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
