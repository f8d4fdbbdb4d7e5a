"""The ground floor: errors, random choices by name, places, texts, dialogues, processes.

It knows nothing of the method.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
