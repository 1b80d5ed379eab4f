"""Publishes to these channels in turn, until there is a file "stop"."""
import os
import sys
import time

from publish import publish

channels, number = sys.argv[1:], 0


def one(channel, number):
    print(channel, number, publish(channel, f"python {number}", f"python {number}"), flush=True)
    time.sleep(0.01)


while not os.path.exists("stop"):
    for channel in channels:
        one(channel, number)
    number += 1
one(channels[0], number - 1)
