#!/usr/bin/env python3
"""A model of scale: how many replicas and masters a load needs, and what is exhausted first.

It adds up unit costs that scale_measure.py has measured, and needs nothing but Python. docs/scale.md explains it.
"""

import argparse
import dataclasses
import json
import signal
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent

# Per unit: value, unit, and how scale_measure.py has measured it. "us" is CPU time of a process. Unless it says
# otherwise, 15,000 to 20,000 messages/s arrive in each millisecond together: of a busy process.
UNITS = {
    # Redis.
    "publish": (0.9, "us", "PUBLISH at a master without subscribers"),
    "command": (2.0, "us", "a command that arrives alone: PING over 50 connections, alone and 20 at a time"),
    "bus_send": (
        1.0,
        "us",
        "PUBLISH at one of 3 and 6 nodes, for each other node. 1.0 and 1.1; Valkey 9.1: 0.5 and 0.8",
    ),
    "bus_receive": (1.25, "us", "the same at each other node, 1.0 to 1.5; Valkey 9.1: 0.6 to 1.1"),
    "raw_push": (1.7, "us", "a raw message and its notice to a recorder: 1 and 2 recorders compared"),
    "record": (17.9, "us", "a raw message recorded, 16 partitions, 1 recorder, without PUBLISH and `raw_push`"),
    "fcall": (24.8, "us", "FCALL sse_publish with its keys"),
    "live": (
        6.5,
        "us",
        "an event to a replica that needs it, in a write of its own: 0 and 6 such replicas at 1,000/s. 0.4 if 20 arrive together",
    ),
    "copy": (
        4.0,
        "us",
        "an event at a master with a copy, compared with one without: 3.3 raw, 4.3 FCALL. The copy itself uses 7",
    ),
    "probe": (25.0, "us", "a probe: 2 and 6 idle replicas, 1 and 64 partitions. 21 and 28 in two runs"),
    "replica": (430.0, "us/s", "the same, what remains for each replica at each master. 365 and 489 in two runs"),
    "lease": (110.0, "us/s", "the same, the two recorders of a partition. 110 and 113"),
    "master": (2000.0, "us/s", "the same, what remains for each master"),
    "attach": (
        35.0,
        "us",
        "a channel that gets its first stream at a replica: 30,000 at once, 6 replicas, 3 masters. 19 with 15,000 at one replica and master",
    ),
    "attach_event": (3.7, "us", "each of its newest events: channels with none and with 20"),
    "wake": (59.0, "us", "of the first command after a pause, on top of its own cost: FCALL at 500/s to 30,000/s"),
    # Gateway.
    "deliver": (7.2, "us", "an event to a stream, one write each: channels of 150 streams. 8.2 at 20/s, 6.3 at 100/s"),
    "event": (3.5, "us", "an event to a replica that needs it, with one stream: 0 and 6 such replicas"),
    "ear": (2.4, "us", "a raw message to a recorder on standby"),
    "gateway_record": (3.1, "us", "the active recorder's part of a raw message: 5.5, without `ear`"),
    "open": (23.0, "us", "a new stream, its request and answer: 15,000 streams in 100 channels, at one replica"),
    "open_channel": (15.0, "us", "the same, a channel for each stream"),
    "heartbeat": (9.6, "us", "15,500 idle streams, `--heartbeat 20s`"),
    "gateway_probe": (28.0, "us", "an idle replica with 1 and 64 partitions"),
    "gateway_replica": (1900.0, "us/s", "an idle replica that records nothing"),
    "gateway_wake": (31.0, "us", "of the first event after a pause: 1,000/s and 15,000/s compared"),
    # Memory.
    "stream": (1270, "bytes", "15,000 idle streams in 100 channels, own memory of the process"),
    "channel": (1100, "bytes", "the same, a channel for each stream"),
    "socket": (4900, "bytes", "kernel memory (slab) of one end of an idle connection, Linux 6.18: 4.7 to 5.0 KB"),
    "subscription": (265, "bytes", "memory of a master per channel and replica: 257 and 272"),
}

# Of docs/redis.md: memory of a channel with history, with room for the first 4 KiB of events.
CHANNEL_HISTORY = 4.7 * 1024
# Probes of a replica per partition and second, in a Cluster.
PROBES = 3
# Recorders that subscribe to each master, and half of the spread of `retry`: clients return within 1 to 3 s.
RECORDERS, RETURN = 2, 2.0
# Bytes that are added to a payload: to a client (id, framing, TCP), to a replica (channel, ids, RESP, TCP).
CLIENT_OVERHEAD, REPLICA_OVERHEAD = 130, 190

# What a plan may use. The rest is for peaks, and for the load of a lost zone.
LIMITS = {
    "Redis CPU": "half of the core of a master",
    "gateway CPU": "half of the cores of a replica, after a zone of three is lost",
    "streams": "100,000 on a replica (--max-streams), after a zone of three is lost",
    "Redis network": "half of 10 Gbit/s",
    "gateway network": "half of 10 Gbit/s",
    "storm": "30 s until the streams of a lost zone are open and have their events",
    "main thread": "half of a core: the thread of a replica that receives everything from Redis",
}


def unit(name):
    return UNITS[name][0]


@dataclasses.dataclass
class Load:
    """A deployment and its load."""

    connections: int
    messages: float
    """Per second, of all channels."""
    audience: float = 1
    """Streams per channel that has any."""
    way: str = "fcall"
    """raw, fcall or post."""
    replicas: int = 6
    masters: int = 3
    copies: int = 1
    partitions: int = 0
    """0: four per master."""
    payload: int = 100
    header: int = 2264
    """Bytes of each message between nodes: 2,264 up to Redis 8, 40 from Valkey 8.0 on."""
    cores: int = 4
    """Of a replica."""
    heartbeat: float = 8
    history: int = 20
    """Events that each channel keeps."""
    share: float = 1
    """Part of the messages that goes to channels with streams."""

    def __post_init__(self):
        self.partitions = self.partitions or 4 * self.masters

    @property
    def channels(self):
        return self.connections / self.audience

    def needing(self, replicas):
        """Replicas that have a stream of a channel, of `replicas`, if streams are spread evenly."""
        return replicas * (1 - (1 - 1 / replicas) ** self.audience)


def at_master(load, alone=True):
    """CPU of one master in seconds per second, by cause. 1 is a whole core. `alone`: each command arrives by itself."""
    command = unit("command") if alone else 0
    here = load.messages / load.masters
    nodes = load.masters * (1 + load.copies)
    needing = load.needing(load.replicas) * load.share
    probes = load.replicas * load.partitions / load.masters * PROBES
    costs = {}
    if load.way == "raw":
        costs["raw messages"] = here * (unit("publish") + command)
        costs["bus"] = here * (nodes - 1) * unit("bus_send") + load.messages * (load.masters - 1) / load.masters * unit(
            "bus_receive"
        )
        costs["raw messages to recorders"] = load.messages * RECORDERS * unit("raw_push")
        costs["append"] = here * unit("record")
    else:
        # With POST one call has the events that came during the call before, so this is an upper bound.
        costs["append"] = here * (unit("fcall") + command)
    costs["copies"] = here * load.copies * unit("copy") + probes * load.copies * unit("bus_send")
    costs["events to replicas"] = here * needing * unit("live")
    costs["probes"] = probes * unit("probe")
    costs["replicas"] = load.replicas * unit("replica")
    costs["recorders' leases"] = load.partitions / load.masters * unit("lease") + unit("master")
    return {name: cost / 1e6 for name, cost in costs.items()}


def woken(busy, arrivals):
    """CPU of a master that shows, in seconds per second: it is woken when a command arrives and it is idle."""
    wake = unit("wake") / 1e6 * arrivals
    return (busy + wake) / (1 + wake)


def at_gateways(load, replicas):
    """CPU of `replicas` in seconds per second, by cause, summed."""
    deliveries = load.messages * load.share * load.audience
    costs = {
        "streams": deliveries * unit("deliver"),
        "events": load.messages * load.share * load.needing(replicas) * unit("event"),
        "heartbeats": load.connections / load.heartbeat * unit("heartbeat"),
        "probes": replicas * (load.partitions * PROBES * unit("gateway_probe") + unit("gateway_replica")),
    }
    if load.way == "raw":
        # Recorders receive each raw message from each master.
        costs["recorders"] = load.messages * (load.masters * RECORDERS * unit("ear") + unit("gateway_record"))
    return {name: cost / 1e6 for name, cost in costs.items()}


def predict(load):
    """All figures of a load, by resource: what is used, of what there is, and its causes."""
    surviving = max(load.replicas * 2 // 3, 1)
    redis, gateways = at_master(load), at_gateways(load, surviving)
    needing = load.needing(load.replicas) * load.share
    here = load.messages / load.masters
    nodes = load.masters * (1 + load.copies)
    frame = load.payload + REPLICA_OVERHEAD
    to_replicas = here * needing * frame + (load.messages * RECORDERS * frame if load.way == "raw" else 0)
    bus = here * (nodes - 1) * (load.header + load.payload + 40) if load.way == "raw" else 0
    # An event, its notice and each answer to a probe are also sharded messages to the copies.
    sharded = here * (1 if load.way != "raw" else 2) + load.replicas * load.partitions / load.masters * PROBES
    bus += sharded * load.copies * (load.header + load.payload + 80)
    deliveries = load.messages * load.share * load.audience
    # Replicas of two zones take the streams of the third.
    moved = load.connections / 3
    # Channels that a surviving replica has not had before.
    pairs = load.channels * (load.needing(surviving) - load.needing(load.replicas) * surviving / load.replicas)
    accept = min(20_000, 1e6 / (unit("open") + unit("open_channel")) * load.cores * 0.5) * surviving
    attach = unit("attach") + load.history * unit("attach_event")
    storm_redis = pairs * attach / 1e6 / load.masters / max(1 - sum(redis.values()), 0.05)
    storm = {
        "streams open after, s": max(RETURN, moved / accept),
        "attached after, s": max(RETURN, storm_redis),
        "attaches": pairs,
        "new streams/s at a replica": moved / RETURN / surviving,
    }
    per_replica = load.connections / surviving
    memory = {
        "a replica, own, GiB": (
            per_replica * unit("stream") + load.channels * load.needing(surviving) / surviving * unit("channel")
        )
        / 2**30,
        "a replica, sockets, GiB": per_replica * unit("socket") / 2**30,
        "a master, subscriptions, GiB": load.channels
        * load.needing(load.replicas)
        / load.masters
        * unit("subscription")
        / 2**30,
        "a master, history, GiB": load.channels
        / load.masters
        * (CHANNEL_HISTORY + max(0, load.history * (144 + load.payload - 100) - 4096))
        / 2**30,
    }
    gbit = {
        "a master to replicas": to_replicas * 8 / 1e9,
        "a master on the bus": bus * 8 / 1e9,
        "all gateways to clients": deliveries * (load.payload + CLIENT_OVERHEAD) * 8 / 1e9,
    }
    used = {
        "Redis CPU": sum(redis.values()) / 0.5,
        "gateway CPU": sum(gateways.values()) / surviving / load.cores / 0.5,
        "streams": per_replica / 100_000,
        "Redis network": (gbit["a master to replicas"] + gbit["a master on the bus"]) / 5,
        "gateway network": gbit["all gateways to clients"] / surviving / 5,
        "storm": max(storm["attached after, s"], storm["streams open after, s"]) / 30,
    }
    # One thread of a replica receives everything from Redis. The same replicas may record at all masters.
    main_thread = gateways["events"] + gateways["probes"]
    used["main thread"] = (main_thread / surviving + gateways.get("recorders", 0) / RECORDERS) / 0.5
    return {
        "used": used,
        "Redis CPU": redis,
        "gateway CPU, all": gateways,
        "memory": memory,
        "Gbit/s": gbit,
        "storm": storm,
    }


MASTERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
REPLICAS = (3, 6, 12, 18, 24, 30, 45, 60, 90, 120, 150, 200, 250, 300, 350, 400, 500, 700, 1000)


def plan(**load):
    """The load with the fewest replicas and masters whose use of everything is below the limits. If no number of them
    suffices, with those whose greatest use is smallest."""

    def cost(tried):
        most = max(predict(tried)["used"].values())
        return max(most, 1), tried.replicas + 2 * tried.masters

    return min(
        (Load(masters=masters, replicas=replicas, **load) for masters in MASTERS for replicas in REPLICAS), key=cost
    )


def suffices(load):
    return max(predict(load)["used"].values()) <= 1


# --- tables of docs/scale.md ------------------------------------------------------------------------

WORKLOADS = {
    "rooms of 100, an event each 10 s": lambda n: dict(connections=n, audience=100, messages=n / 1000),
    "a channel per stream, an event each minute": lambda n: dict(connections=n, audience=1, messages=n / 60),
    "one channel for all, an event each second": lambda n: dict(connections=n, audience=n, messages=1),
}
SIZES = (100_000, 1_000_000, 5_000_000, 20_000_000)


def short(number):
    """A number with two significant digits."""
    if number == 0:
        return "0"
    digits = 2 - len(str(int(abs(number)))) if abs(number) >= 1 else 2
    rounded = round(number, digits)
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(rounded) >= size:
            return f"{rounded / size:g}{letter}"
    return f"{rounded:g}"


def percent(part):
    return f"{part * 100:.0f} %"


def table(heads, rows):
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def plans():
    rows = []
    for name, load in WORKLOADS.items():
        for size in SIZES:
            row = [name, short(size), short(load(size)["messages"])]
            for way in ("fcall", "raw"):
                found = plan(way=way, **load(size))
                used = sorted(predict(found)["used"].items(), key=lambda it: -it[1])
                row.append(f"{found.masters}, {found.replicas}" if suffices(found) else "none suffices")
                row.append(", ".join(f"{it} {percent(used)}" for it, used in used[: 2 if way == "fcall" else 1]))
            rows.append(row)
    heads = [
        "load",
        "streams",
        "messages/s",
        "POST, FCALL: masters, replicas",
        "most used",
        "PUBLISH: masters, replicas",
        "most used",
    ]
    return table(heads, rows)


def most():
    """The greatest rate by masters, with 100 replicas that share 5 million streams with a channel each."""
    rows = []
    for masters in (1, 2, 3, 6, 16, 64):
        row = [str(masters)]
        for way in ("fcall", "raw"):
            low, high = 1.0, 1e8
            while high / low > 1.001:
                rate = (low * high) ** 0.5
                used = predict(at(rate, masters, way))["used"]
                used.pop("storm"), used.pop("streams")
                wall = max(used, key=used.get)
                low, high = (rate, high) if used[wall] <= 1 else (low, rate)
            row.append(f"{short(low)}: {wall}")
        for header in (2264, 40):
            figures = predict(at(low, masters, "raw", header))
            row.append(f"{figures['Gbit/s']['a master on the bus']:.2f}")
        rows.append(row)
    return table(
        [
            "masters",
            "POST, FCALL: most messages/s",
            "PUBLISH: most messages/s",
            "its bus, Gbit/s of a master",
            "with Valkey 8 or newer",
        ],
        rows,
    )


def at(rate, masters, way, header=2264):
    return Load(connections=5_000_000, messages=rate, way=way, header=header, replicas=100, masters=masters)


def idle():
    """CPU of a master that only keeps its replicas."""
    rows = []
    for replicas in (10, 100, 300, 1000):
        row = [short(replicas)]
        for partitions in (1, 4, 16, 64):
            load = Load(connections=1, messages=0, replicas=replicas, masters=1, copies=1, partitions=partitions)
            row.append(f"{sum(at_master(load).values()):.2f}")
        rows.append(row)
    return table(["replicas", "1 partition per master", "4", "16", "64"], rows)


def storms():
    """One of three zones is lost."""
    rows = []
    for name in list(WORKLOADS)[:2]:
        for size in SIZES:
            found = plan(**WORKLOADS[name](size))
            storm = predict(found)["storm"]
            rows.append(
                [
                    name,
                    short(size),
                    f"{found.masters}, {found.replicas}",
                    short(storm["new streams/s at a replica"]),
                    short(storm["attaches"]),
                    f"{storm['streams open after, s']:.1f}",
                    f"{storm['attached after, s']:.1f}",
                ]
            )
    return table(
        [
            "load",
            "streams",
            "masters, replicas",
            "new streams/s at a replica",
            "attaches",
            "all open after, s",
            "all attached after, s",
        ],
        rows,
    )


def units():
    return table(
        ["unit", "cost", "", "measured"],
        [[f"`{name}`", f"{value:g}", of, how] for name, (value, of, how) in UNITS.items()],
    )


def figures():
    """What scale_measure.py has measured of whole deployments."""
    return json.loads((HERE / "scale_runs.json").read_text())


def throughput():
    """Medians of the rounds with equally many masters, and the prediction for the busiest master."""
    rows = []
    runs = figures()["throughput"]
    for masters in sorted({run["masters"] for run in runs}):
        rounds = [run for run in runs if run["masters"] == masters]

        def median(of):
            return statistics.median(of(run) for run in rounds)

        rate = median(lambda run: run["per_second"])
        load = Load(
            connections=200, audience=50, messages=rate, way="raw", replicas=2, masters=masters, copies=0, partitions=24
        )
        busiest = median(lambda run: max(run["redis_us"]))
        predicted = sum(at_master(load, alone=False).values()) / rate * 1e6
        rows.append(
            [
                str(masters),
                three(rate / 1000) + "k",
                f"{median(lambda run: sum(run['redis_us'])):.1f}",
                f"{busiest:.1f}, {predicted:.1f} ({(predicted / busiest - 1) * 100:+.0f} %)",
                f"{median(lambda run: sum(run['gateways_us'])):.1f}",
            ]
        )
    heads = [
        "masters",
        "recorded and delivered/s",
        "all masters, us per message",
        "the busiest, predicted (error)",
        "both replicas",
    ]
    return table(heads, rows)


def measured():
    """Predictions for the deployments that were measured, in scale_runs.json."""
    runs = [(run["name"], compare(Load(**run["load"]), run["measured"])) for run in figures()["runs"]]
    heads = {name: None for _, pairs in runs for name in pairs}
    rows = []
    for run, pairs in runs:
        cells = [pairs.get(name) for name in heads]
        rows.append(
            [
                run,
                *(f"{three(it[1])}, {three(it[0])} ({(it[0] / it[1] - 1) * 100:+.0f} %)" if it else "" for it in cells),
            ]
        )
    return table(["run: measured, predicted (error)", *heads], rows)


def three(number):
    """Three significant digits."""
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def compare(load, found):
    """By name: a prediction and what was measured."""
    # The publisher sends once in a millisecond. All else that the messages cause arrives while the master is awake.
    redis = woken(sum(at_master(load, alone=False).values()), min(load.messages / load.masters, 1000))
    gateways = sum(at_gateways(load, load.replicas).values())
    # An event to a replica wakes it.
    gateways += load.messages * load.share * load.needing(load.replicas) * unit("gateway_wake") / 1e6
    memory = load.connections * unit("stream") + load.channels * load.needing(load.replicas) * unit("channel")
    pairs = {
        "CPU of a master, ms/s": (redis * 1e3, found["master_ms_per_second"]),
        "CPU of all replicas, ms/s": (gateways * 1e3, found["gateways_ms_per_second"]),
        "memory of all replicas, MiB": (memory / 2**20, found["gateway_bytes"] / 2**20),
        "kernel memory, MiB": (load.connections * 2 * unit("socket") / 2**20, found["slab_bytes"] / 2**20),
        "memory of all masters, MiB": (
            load.channels * load.needing(load.replicas) * unit("subscription") / 2**20,
            found["redis_bytes"] / 2**20,
        ),
    }
    if "storm_gateways_s" in found:
        opened = load.connections / 3
        attaches = opened if load.audience == 1 else 0
        cpu = opened * unit("open") + attaches * unit("open_channel")
        pairs["storm: CPU of all replicas, s"] = (cpu / 1e6, found["storm_gateways_s"])
        if attaches:
            # Of the channels, 30 % have an event.
            pairs["storm: CPU of all masters, s"] = (
                attaches * (unit("attach") + 0.3 * unit("attach_event")) / 1e6,
                found["storm_redis_s"],
            )
    return pairs


TABLES = {
    "plans": plans,
    "most": most,
    "idle": idle,
    "storms": storms,
    "measured": measured,
    "throughput": throughput,
    "units": units,
}


def written(text):
    """The text of a document with the tables between their marks."""
    for name, make in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if text.count(start) != 1 or end not in text.partition(start)[2]:
            sys.exit(f"there has to be one {start.strip()}, and {end} after it")
        before, _, rest = text.partition(start)
        text = f"{before}{start}{make()}\n{end}{rest.partition(end)[2]}"
    return text


def number(text):
    """5M, 300k, 12."""
    factor = {"k": 1e3, "M": 1e6}.get(text[-1:], 1)
    try:
        value = float(text.rstrip("kM")) * factor
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, as in 5M, 300k or 12") from None
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1,000M")
    return value


def count(text):
    return max(int(number(text)), 1)


def copies(text):
    if not text.isdigit() or int(text) > 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 10")
    return int(text)


def main():
    # The reader of the output may be "head".
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=count, help="streams, as in 5M")
    parser.add_argument("--messages", type=number, help="messages a second of all channels")
    parser.add_argument("--audience", type=number, default=1, help="streams per channel (default: %(default)s)")
    parser.add_argument(
        "--way",
        choices=["post", "fcall", "raw"],
        default="fcall",
        help="how backends publish; raw is PUBLISH (default: %(default)s)",
    )
    parser.add_argument("--masters", type=count, help="without it, the fewest that suffice")
    parser.add_argument("--replicas", type=count, help="without it, the fewest that suffice")
    parser.add_argument("--copies", type=copies, default=1, help="of each master (default: %(default)s)")
    parser.add_argument("--partitions", type=count, default=0, help="(default: four per master)")
    parser.add_argument("--payload", type=count, default=100, help="bytes (default: %(default)s)")
    parser.add_argument(
        "--header",
        type=count,
        default=2264,
        help="bytes of a message between nodes; 40 with Valkey 8.0 and newer (default: %(default)s)",
    )
    parser.add_argument("--cores", type=count, default=4, help="of each replica (default: %(default)s)")
    parser.add_argument("--heartbeat", type=number, default=8, help="seconds (default: %(default)s)")
    parser.add_argument("--history", type=count, default=20, help="events that a channel keeps (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="prints JSON")
    parser.add_argument("--tables", action="store_true", help="prints the tables of docs/scale.md")
    parser.add_argument("--check", type=Path, metavar="FILE", help="fails unless FILE has these tables")
    parser.add_argument("--write", action="store_true", help="with --check: writes the tables to FILE")
    flags = vars(parser.parse_args())
    as_json, tables, check, write = (flags.pop(it) for it in ("json", "tables", "check", "write"))
    if tables:
        for name, print_table in TABLES.items():
            print(f"<!-- {name} -->\n{print_table()}\n")
        return
    if check:
        text = check.read_text()
        if write:
            check.write_text(written(text))
        elif text != written(text):
            sys.exit(
                f"{check}: its tables are not those of loadtest/scale.py. To write them: loadtest/scale.py --check {check} --write"
            )
        return
    if flags["connections"] is None or flags["messages"] is None:
        parser.error("--connections and --messages are needed, as in --connections 5M --messages 5000")
    masters, replicas = flags.pop("masters"), flags.pop("replicas")
    if (masters is None) != (replicas is None):
        parser.error("--masters and --replicas go together; without both, the fewest that suffice are searched")
    if masters:
        found = Load(masters=masters, replicas=replicas, **flags)
    else:
        found = plan(**flags)
        if not suffices(found):
            print("No number of them suffices, up to 64 masters and 1,000 replicas. The best one:")
    figures = predict(found)
    if as_json:
        print(json.dumps({"suffices": suffices(found), "load": dataclasses.asdict(found), **figures}, indent=1))
        return
    print(
        f"{found.masters} masters with {found.copies} copies, {found.partitions} partitions, {found.replicas} replicas of {found.cores} cores"
    )
    for group, values in figures.items():
        print(f"\n{group}")
        for name, value in sorted(values.items(), key=lambda it: -it[1]):
            print(
                f"  {name:32} "
                + (
                    f"{percent(value):>8} of what a plan may use: {LIMITS.get(name, LIMITS['gateway CPU'])}"
                    if group == "used"
                    else f"{short(value):>8}"
                )
            )


if __name__ == "__main__":
    main()
