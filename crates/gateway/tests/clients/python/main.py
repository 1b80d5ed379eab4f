"""Clients of the gateway with libraries for Python.

Each library is used as its README shows, and as docs/clients.md recommends.

    main.py LIBRARY shown|recommended URL

prints a line for each event with its id and the SHA-1 of its data. It prints "end" when it knows that the channel is
complete.
"""

import hashlib
import importlib
import os
import sys


def line(text):
    print(text, flush=True)


def event(id, data):
    line(f"{id}\t{hashlib.sha1(data.encode()).hexdigest()}")


def end():
    line("end")
    os._exit(0)


def received(id, name, data):
    """Prints an event of the channel, and handles the gateway's own events."""
    if name == "gateway.end":
        end()
    if not (name or "").startswith("gateway."):
        event(id, data)


if __name__ == "__main__":
    # The programs import this file again, as a separate module.
    library, mode, *rest = sys.argv[1:]
    module = importlib.import_module("with_" + library.replace("-", "_"))
    getattr(module, mode)(*rest)
