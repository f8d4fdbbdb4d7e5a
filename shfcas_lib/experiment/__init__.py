"""A run, written once: its checks, its stages, its replicates with fresh seeds, its trained
policies."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
