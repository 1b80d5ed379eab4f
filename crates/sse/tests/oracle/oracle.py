"""Reads cases from stdin and prints what the PyPI package launchdarkly-eventsource sees in each.

A case is its length in four bytes, big-endian, and then that many bytes of event stream.
The answer is one line of JSON: the events. The package does not say what it does with `retry`.
"""

import json
import logging
import sys

from ld_eventsource import SSEClient
from ld_eventsource.config import ConnectStrategy
from ld_eventsource.config.connect_strategy import ConnectionClient, ConnectionResult


class Recorded(ConnectStrategy, ConnectionClient):
    """A connection whose whole stream is known."""

    def __init__(self, stream):
        self._stream = stream

    def create_client(self, logger):
        return self

    def connect(self, last_event_id):
        return ConnectionResult(iter([self._stream]), closer=None)


def cases(source):
    while prefix := source.read(4):
        yield source.read(int.from_bytes(prefix, "big"))


logger = logging.getLogger("oracle")
for case in cases(sys.stdin.buffer):
    client = SSEClient(Recorded(case), logger=logger)
    # An absent id is one that this block does not name.
    events = [{"id": e.id, "event": e.event, "data": e.data} for e in client.events]
    print(json.dumps({"events": events}))
