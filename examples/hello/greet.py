"""Says who and where it is, so that two clones can be told apart."""

import os
import socket
import uuid

print(f"{os.environ['GREETING']} on {socket.gethostname()}: {uuid.uuid4()}")
