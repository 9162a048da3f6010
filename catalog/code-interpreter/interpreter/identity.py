"""Notices that this machine has become another one: a clone of the snapshot."""

from pathlib import Path

MACHINE_ID = Path("/etc/machine-id")
ENVIRONMENT = Path("/run/kiln/environment")


class Identity:
    """Remembers which machine this was. Kiln gives every clone a machine ID of its own
    before anybody can ask it for something."""

    def __init__(self, path=MACHINE_ID):
        self.path = path
        self.known = self.read()

    def read(self):
        try:
            return self.path.read_text()
        except OSError:
            return ""

    def changed(self):
        """Tells whether the machine is another one than at the last call."""
        current = self.read()
        if current == self.known:
            return False
        self.known = current
        return True


def environment(path=ENVIRONMENT):
    """Returns the environment that this sandbox was given. Kiln's daemon writes it down as
    NAME=VALUE pairs, each ended by a NUL byte."""
    try:
        pairs = path.read_bytes().split(b"\0")
    except OSError:
        return {}
    split = (pair.decode("utf-8", "surrogateescape").partition("=") for pair in pairs if pair)
    return {name: value for name, _, value in split}
