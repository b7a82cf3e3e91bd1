"""With this folder on PYTHONPATH, a process and all that it starts are refused the network, but for loopback.

Each attempt, a look-up of a name too, is a line of the file that NETWORK_ATTEMPTS names. Python's audit events tell
them, which no Python code gets past; what compiled code does by itself they do not see.
"""

import os
import sys

CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKING_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")
LOOPBACK = ("127.", "::1", "localhost")


def refuse(event, args):
    if event in CONNECTING:
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None  # else of this machine: a path, or none
    elif event in LOOKING_UP:
        host = args[0][0] if isinstance(args[0], tuple) else args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host is not None and not str(host).startswith(LOOPBACK):
        with open(os.environ["NETWORK_ATTEMPTS"], "a") as file:
            file.write(f"{event} {host}\n")
        raise OSError("no network in this test")


sys.addaudithook(refuse)
