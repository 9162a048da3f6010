"""Code that runs in a kernel before or around the user's."""

# Imports what most code asks for first, so that it is in the snapshot's memory. The names
# stay unknown to the user.
WARM_UP = """
import matplotlib.pyplot, numpy, pandas
del matplotlib, numpy, pandas
"""

# Gives the generators of a clone a state of their own.
RESEED = """
def _reseed():
    import random, sys, tempfile
    random.seed()
    tempfile._name_sequence = None
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed()
_reseed()
del _reseed
"""


def set_environment(variables):
    return f"__import__('os').environ.update({variables!r})"


def restore_environment(names, base):
    """Undoes set_environment: base holds what the variables were before, if anything."""
    before = {name: base.get(name) for name in names}
    return f"""
def _restore(before):
    import os
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
_restore({before!r})
del _restore
"""
