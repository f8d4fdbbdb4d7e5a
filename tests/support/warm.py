"""Imported last by the fork server of faults.py: what every child would else build anew, a table
of transformers that takes a second, and a rest for the garbage collector, which looks at a
million inherited objects after every training."""

import gc

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("llama")
gc.freeze()
