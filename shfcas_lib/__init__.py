"""shfcas: find where a reward model and a policy disagree, and spend human labels exactly there.

    import shfcas_lib as shf

    table = shf.conflict_table(pool, reward)            # PACS and K of every completion
    asked = shf.select("shf_cas", table, 80, shf.rng(0, "selection"), params.selection)

The method is the files beside this one, in the order data flows through them: bias, gold, pool,
rewards, conflict, policies, selection with strategies, feedback, refine, remedies, loop,
evaluation. The folders are rooms around it. Public names are listed in `__init__.pyi`; each is
imported when it is first asked for, so that conflict, selection, labels and statistics work where
torch is not installed.
"""

import os

import lazy_loader

__version__ = "0.1.0"

# Threads that wait for work sleep instead of spinning. Read when torch is loaded, so it must
# stand before that. Measured with another process busy on the same two cores: a decode-like loop
# is 5 to 10 times faster this way; see docs/log.md.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
