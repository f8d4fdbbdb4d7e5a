"""The embedded tasks, one a file.

Their prompts, their gold, and the surface attributes that annotators follow.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
