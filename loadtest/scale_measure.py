#!/usr/bin/env python3
"""Measures the unit costs of scale.py, and runs of a whole deployment to compare its predictions with.

Everything runs on this machine: Redis servers, gateways and clients on 127.0.0.0/8, without persistence. CPU is the
time of each process's threads (/proc/PID/task/*/schedstat), so other programs disturb it little. Writes JSON.
"""

import argparse
import hashlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PAYLOAD = b"x" * 100
# Streams of one process. The limit of open files is often 20,000.
PER_PROCESS = 17_000
PATIENCE = 120
# All processes, until a lab stops.
STARTED = []


def start(words, **options):
    process = subprocess.Popen([str(it) for it in words], **options)
    STARTED.append(process)
    return process


def free_ports(count):
    """Ports below the ephemeral ones, so that a Redis node's bus port, 10,000 above, exists."""
    found = []
    port = 12000 + os.getpid() * 37 % 8000
    while len(found) < count:
        port += 1
        if port > 22000:
            port = 12000
        try:
            for it in (port, port + 10000):
                with socket.socket() as sock:
                    sock.bind(("127.0.0.1", it))
            found.append(port)
        except OSError:
            pass
    return found


def cpu(pid):
    """CPU time of a process in microseconds."""
    total = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
        except FileNotFoundError:
            pass
    return total / 1000


def anonymous(pid):
    """Bytes of a process's own memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"RssAnon:\s+(\d+)", text)[1]) * 1024


def slab():
    text = Path("/proc/meminfo").read_text()
    return int(re.search(r"^Slab:\s+(\d+)", text, re.M)[1]) * 1024


class Resp:
    """A connection to Redis."""

    def __init__(self, port):
        deadline = time.monotonic() + 10
        while True:
            try:
                self.sock = socket.create_connection(("127.0.0.1", port))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.file = self.sock.makefile("rb")

    @staticmethod
    def pack(*words):
        words = [it if isinstance(it, bytes) else str(it).encode() for it in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(it), it) for it in words)

    def read(self):
        line = self.file.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"-":
            return RuntimeError(rest.decode())
        if kind == b"$":
            return None if rest == b"-1" else self.file.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return [self.read() for _ in range(int(rest))]
        return int(rest) if kind == b":" else rest

    def call(self, *words):
        self.sock.sendall(self.pack(*words))
        answer = self.read()
        if isinstance(answer, RuntimeError):
            raise answer
        return answer


class Redis:
    """`masters` Redis servers with `copies` each: a Cluster, or a single server if `masters` is 0."""

    def __init__(self, at, masters, copies=0, program="redis-server", flags=()):
        self.masters, self.processes = masters, []
        count = max(masters, 1) * (1 + copies)
        self.ports = free_ports(count)
        for port in self.ports:
            directory = Path(tempfile.mkdtemp(prefix="redis-", dir=at))
            words = [
                program,
                "--port",
                port,
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                directory,
                "--daemonize",
                "no",
                "--logfile",
                directory / "log",
                "--io-threads",
                1,
                *flags,
            ]
            if masters:
                words += [
                    "--cluster-enabled",
                    "yes",
                    "--cluster-node-timeout",
                    15000,
                    "--cluster-require-full-coverage",
                    "no",
                ]
            self.processes.append(start(words, stdout=subprocess.DEVNULL))
        self.clients = [Resp(port) for port in self.ports]
        if not masters:
            return
        ids = [it.call("CLUSTER", "MYID") for it in self.clients]
        for n in range(masters):
            first, last = 16384 * n // masters, 16384 * (n + 1) // masters - 1
            self.clients[n].call("CLUSTER", "ADDSLOTSRANGE", first, last)
            self.clients[n].call("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for port in self.ports[1:]:
            self.clients[0].call("CLUSTER", "MEET", "127.0.0.1", port)
        self.until(lambda it: b"cluster_known_nodes:%d\r" % count in it.call("CLUSTER", "INFO"))
        for n in range(masters, count):
            # It may not know the master yet.
            self.until(lambda it, master=ids[n % masters]: master in it.call("CLUSTER", "NODES"), [self.clients[n]])
            self.clients[n].call("CLUSTER", "REPLICATE", ids[n % masters])
        self.until(lambda it: b"cluster_state:ok" in it.call("CLUSTER", "INFO"))
        for n in range(masters, count):
            self.until(lambda it: b"master_link_status:up" in it.call("INFO", "replication"), [self.clients[n]])
        time.sleep(2)  # links of the bus in both directions

    def until(self, holds, clients=None):
        deadline = time.monotonic() + 60
        for client in clients or self.clients:
            while not holds(client):
                if time.monotonic() > deadline:
                    raise RuntimeError("the cluster does not form")
                time.sleep(0.1)

    def cpu(self):
        return [cpu(it.pid) for it in self.processes]

    def memory(self):
        return [int(re.search(rb"used_memory:(\d+)", it.call("INFO", "memory"))[1]) for it in self.clients]

    def calls(self):
        total = {}
        for client in self.clients:
            for name, calls in re.findall(rb"cmdstat_([^:]+):calls=(\d+)", client.call("INFO", "commandstats")):
                total[name.decode()] = total.get(name.decode(), 0) + int(calls)
        return total


class Gateways:
    def __init__(self, at, binary, redis, count, partitions=1, flags=()):
        self.processes, self.addresses, self.admins = [], [], []
        self.partitions, self.redis = partitions, redis
        prefixes = subprocess.run(
            [binary, "keys", "--partitions", str(partitions), "--format", "json"], capture_output=True, check=True
        )
        self.prefixes = json.loads(prefixes.stdout)
        ports = free_ports(2 * count)
        for n in range(count):
            listen, admin = f"127.0.0.{10 + n}:{ports[2 * n]}", f"127.0.0.1:{ports[2 * n + 1]}"
            words = [
                binary,
                "--listen",
                listen,
                "--admin-listen",
                admin,
                "--workers",
                "1",
                "--partitions",
                str(partitions),
                "--public-channels",
                "*",
                "--max-stream-rate",
                "100000",
                "--heartbeat",
                "20s",
                "--max-stream-age",
                "0s",
                "--max-channel-rate-per-address",
                "0",
                *flags,
            ]
            words += (
                ["--redis-cluster", f"127.0.0.1:{redis.ports[0]}"]
                if redis.masters
                else ["--redis-url", f"redis://127.0.0.1:{redis.ports[0]}"]
            )
            environment = {"PATH": os.environ["PATH"], "RUST_LOG": "error"}
            log = open(at / f"gateway-{ports[2 * n]}.log", "w")
            self.processes.append(start(words, env=environment, stdout=log, stderr=log))
            self.addresses.append(listen)
            self.admins.append(admin)
        deadline = time.monotonic() + 30
        for admin in self.admins:
            while True:
                try:
                    if urllib.request.urlopen(f"http://{admin}/readyz", timeout=2).status == 200:
                        break
                except OSError:
                    pass
                if time.monotonic() > deadline:
                    raise RuntimeError("a gateway does not get ready: " + str(log.name))
                time.sleep(0.1)
        time.sleep(6)  # recorders get in sync

    def cpu(self):
        return [cpu(it.pid) for it in self.processes]

    def metric(self, name):
        total = 0.0
        for admin in self.admins:
            text = urllib.request.urlopen(f"http://{admin}/metrics", timeout=5).read().decode()
            total += sum(float(it) for it in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)", text, re.M))
        return total

    def keys(self, channel):
        prefix = self.prefixes[int(hashlib.sha1(channel.encode()).hexdigest()[:8], 16) % len(self.prefixes)]
        return [prefix + it for it in ("clock", "past", "ends", f"log:{channel}", f"ids:{channel}")]


def slot(key):
    key = key[key.index("{") + 1 : key.index("}")].encode()
    crc = 0
    for byte in key:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc % 16384


def publish(redis, gateways, kind, rate, seconds, channels, payload=PAYLOAD, only=None):
    """Publishes to `channels` in turn, paced per millisecond. Raw messages go to all masters in turn, or to `only`."""
    masters = max(redis.masters, 1)
    connections = [Resp(port) for port in redis.ports[:masters]]
    commands = []
    for n, channel in enumerate(channels):
        if kind == "raw":
            node = n % masters if only is None else only
            commands.append((node, Resp.pack("PUBLISH", "sse:" + channel, payload)))
        else:
            keys = gateways.keys(channel)
            node = min(slot(keys[0]) * masters // 16384, masters - 1)
            commands.append((node, Resp.pack("FCALL", "sse_publish", len(keys), *keys, channel, payload)))
    sent, start = 0, time.monotonic()
    wanted = int(rate * seconds)
    while sent < wanted:
        due = min(int((time.monotonic() - start) * rate) + 1, wanted)
        batches = [[] for _ in connections]
        for n in range(sent, due):
            node, command = commands[n % len(commands)]
            batches[node].append(command)
        for connection, batch in zip(connections, batches):
            if batch:
                connection.sock.sendall(b"".join(batch))
        for connection, batch in zip(connections, batches):
            for _ in batch:
                answer = connection.read()
                if isinstance(answer, RuntimeError):
                    raise answer
        sent = due
        time.sleep(0.001)
    for connection in connections:
        connection.sock.close()
    return sent, time.monotonic() - start


def measure(redis, gateways, load):
    """CPU microseconds of each process during `load`, whose result is added."""
    before = redis.cpu(), gateways.cpu() if gateways else []
    start = time.monotonic()
    result = load()
    took = time.monotonic() - start
    after = redis.cpu(), gateways.cpu() if gateways else []
    each = [[b - a for a, b in zip(*pair)] for pair in zip(before, after)]
    return {"redis": each[0], "gateways": each[1], "seconds": took, "result": result}


# --- clients: a process that holds streams, driven over its standard input ---------------------------


def hold():
    """Reads commands from standard input: lines of JSON. Answers each with a line of JSON."""
    streams, poll = [], select.epoll()
    counts = {"events": 0, "bytes": 0, "ended": 0}
    by_fd = {}

    def dial(stream):
        sock = socket.socket()
        sock.setblocking(False)
        host, port = stream["to"].rsplit(":", 1)
        sock.connect_ex((host, int(port)))
        stream["sock"], stream["open"] = sock, False
        by_fd[sock.fileno()] = stream
        poll.register(sock.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def turn(wait):
        opened = 0
        for fd, mask in poll.poll(wait, 1024):
            stream = by_fd.get(fd)
            if stream is None:
                continue
            sock = stream["sock"]
            if mask & select.EPOLLOUT and not stream.get("asked"):
                last = f"Last-Event-ID: {stream['id']}\r\n" if stream.get("id") else ""
                try:
                    sock.send(f"GET /events?{stream['query']} HTTP/1.1\r\nHost: x\r\n{last}\r\n".encode())
                except OSError:
                    close(stream)
                    counts["ended"] += 1
                    continue
                stream["asked"] = True
            while mask & select.EPOLLIN:
                try:
                    data = sock.recv(65536)
                except BlockingIOError:
                    break
                except OSError:
                    data = b""
                if not data:
                    close(stream)
                    counts["ended"] += 1
                    break
                counts["bytes"] += len(data)
                if not stream["open"]:
                    stream["open"] = True
                    opened += 1
                    if not data.startswith(b"HTTP/1.1 200"):
                        counts["refused"] = data[:200].decode(errors="replace")
                full = len(data) == 65536
                # The last line may be cut.
                text, _, stream["rest"] = (stream.get("rest", b"") + data).rpartition(b"\n")
                counts["events"] += text.count(b"data: x")
                at = text.rfind(b"\nid: ")
                if at >= 0:
                    stream["id"] = text[at + 5 :].split(b"\n", 1)[0].decode()
                if not full:
                    break
        return opened

    def close(stream):
        if stream.get("sock"):
            by_fd.pop(stream["sock"].fileno(), None)
            stream["sock"].close()
        stream.update(sock=None, open=False, asked=False, rest=b"")

    def connect(chosen):
        waiting, done, deadline = list(chosen), 0, time.monotonic() + PATIENCE
        started = 0
        while done < len(waiting):
            if time.monotonic() > deadline:
                return {"error": f"{done} of {len(waiting)} streams are open"}
            while started < len(waiting) and started - done < 80:
                dial(waiting[started])
                started += 1
            done += turn(0.01)
        return {"open": done}

    print(json.dumps({}), flush=True)
    standard_input = sys.stdin.fileno()
    os.set_blocking(standard_input, False)
    poll.register(standard_input, select.EPOLLIN)
    buffer = b""
    while True:
        turn(1)
        try:
            read = os.read(standard_input, 1 << 20)
            if not read:
                return
            buffer += read
        except BlockingIOError:
            continue
        while b"\n" in buffer:
            line, buffer = buffer.split(b"\n", 1)
            command = json.loads(line)
            if "streams" in command:
                new = [{"to": to, "query": query} for to, query in command["streams"]]
                streams += new
                answer = connect(new)
            elif "cut" in command:
                for stream in streams[: command["cut"]]:
                    close(stream)
                answer = {}
            elif "reopen" in command:
                gone = [it for it in streams if it["sock"] is None]
                for stream in gone:
                    stream["to"] = command["reopen"].get(stream["to"], stream["to"])
                answer = connect(gone)
            else:
                answer = dict(counts, open=sum(it["open"] for it in streams))
            print(json.dumps(answer), flush=True)


class Clients:
    """Streams over as many processes as the limit of open files requires."""

    def __init__(self, streams):
        self.processes = []
        self.parts = [streams[n : n + PER_PROCESS] for n in range(0, len(streams), PER_PROCESS)]
        for _ in self.parts:
            words = [sys.executable, __file__, "hold"]
            self.processes.append(start(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        self.answers()

    def answers(self):
        answers = [json.loads(it.stdout.readline()) for it in self.processes]
        for answer in answers:
            if "error" in answer or "refused" in answer:
                raise RuntimeError(str(answer))
        return answers

    def send(self, commands):
        for process, command in zip(self.processes, commands):
            process.stdin.write(json.dumps(command).encode() + b"\n")
            process.stdin.flush()
        return self.answers()

    def connect(self):
        return self.send([{"streams": it} for it in self.parts])

    def cut(self, share):
        return self.send([{"cut": int(len(it) * share)} for it in self.parts])

    def reopen(self, elsewhere=None):
        """Connects the streams that were cut, with their last ids, to the address that `elsewhere` has for theirs."""
        return self.send([{"reopen": elsewhere or {}} for _ in self.parts])

    def counts(self):
        answers = self.send([{} for _ in self.parts])
        return {key: sum(it[key] for it in answers) for key in ("events", "bytes", "ended", "open")}

    def until_events(self, wanted):
        deadline = time.monotonic() + PATIENCE
        while (counts := self.counts())["events"] < wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{counts} instead of {wanted} events")
            time.sleep(0.05)
        return counts


# --- unit costs --------------------------------------------------------------------------------------


class Lab:
    """Starts servers and clients, and ends them."""

    def __init__(self, binary):
        self.binary, self.at = binary, Path(tempfile.mkdtemp(prefix="scale-"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        shutil.rmtree(self.at)

    def stop(self):
        for process in reversed(STARTED):
            process.kill()
            process.wait()
        STARTED.clear()

    def redis(self, *args, **options):
        return Redis(self.at, *args, **options)

    def gateways(self, redis, count, partitions=1, flags=()):
        return Gateways(self.at, self.binary, redis, count, partitions, flags)

    def clients(self, streams):
        return Clients(streams)


def progress(*words):
    print(*words, file=sys.stderr, flush=True)


CHANNELS = [f"load{n}" for n in range(100)]


def loaded(redis, gateways, kind, rate, seconds=6, channels=CHANNELS, **options):
    """Redis and gateway CPU per message, after a second of warming up."""
    publish(redis, gateways, kind, rate, 1, channels, **options)
    time.sleep(0.5)

    def load():
        sent, took = publish(redis, gateways, kind, rate, seconds, channels, **options)
        time.sleep(0.2)
        return sent, took

    figures = measure(redis, gateways, load)
    figures["sent"], figures["took"] = figures.pop("result")
    return figures


def idle_units(lab):
    """CPU of one master for idle replicas, while it is busy with 15,000 calls a second and while it is not. By replicas
    and partitions."""
    found = {}
    for replicas, partitions in ((2, 1), (6, 1), (2, 64), (6, 64)):
        redis = lab.redis(1)
        gateways = lab.gateways(redis, replicas, partitions)
        time.sleep(2)
        before = redis.calls()
        quiet = measure(redis, gateways, lambda: time.sleep(8))
        after = redis.calls()
        calls = {
            name: (calls - before.get(name, 0)) / 8 for name, calls in after.items() if calls > before.get(name, 0)
        }
        busy = loaded(redis, gateways, "fcall", 15000)
        found[f"{replicas}x{partitions}"] = {
            "quiet": quiet,
            "calls": calls,
            "busy": busy,
            "quiet_us_per_second": sum(quiet["redis"]) / quiet["seconds"],
            "busy_us_per_second": sum(busy["redis"]) / busy["seconds"],
            "gateway_us_per_second": [it / quiet["seconds"] for it in quiet["gateways"]],
        }
        progress(
            "idle",
            replicas,
            partitions,
            {k: v for k, v in found[f"{replicas}x{partitions}"].items() if "per_second" in k},
        )
        lab.stop()
    return found


def record_units(lab):
    """CPU per message at one master with 16 partitions, by kind, rate, candidates and replicas that need each event."""
    found = {}
    for masters, copies, recorders, replicas in ((0, 0, 2, 6), (1, 0, 2, 6), (1, 0, 1, 6), (1, 1, 2, 6)):
        redis = lab.redis(masters, copies)
        gateways = lab.gateways(redis, replicas, 16 if masters else 1, ("--recorders", str(recorders)))
        query = "&".join("channel=" + it for it in CHANNELS)
        clients = None
        for needing in (0, 6) if recorders == 2 and not copies else (0,):
            if needing:
                clients = lab.clients([(it, query) for it in gateways.addresses[:needing]])
                clients.connect()
                time.sleep(1)
            # With one message in each millisecond, each is a write of its own to each replica.
            for kind, rate in (("raw", 20000), ("fcall", 15000), ("fcall", 1000)):
                if (recorders == 1 and kind == "fcall") or (rate == 1000 and (copies or not masters)):
                    continue
                quiet = measure(redis, gateways, lambda: time.sleep(4))
                name = f"{'cluster' if masters else 'single'} copies={copies} recorders={recorders} needing={needing} {kind} {rate}"
                figures = loaded(redis, gateways, kind, rate)
                for where in ("redis", "gateways"):
                    idle = [it / quiet["seconds"] * figures["seconds"] for it in quiet[where]]
                    figures[where + "_us"] = [(it - off) / figures["sent"] for it, off in zip(figures[where], idle)]
                found[name] = figures
                progress(
                    name,
                    "redis",
                    [round(it, 1) for it in figures["redis_us"]],
                    "gateways",
                    [round(it, 1) for it in figures["gateways_us"]],
                )
        if masters == 0:
            found["unrecorded"] = gateways.metric("sse_gateway_unrecorded_total")
        lab.stop()
    return found


def bus_units(lab, programs):
    """CPU per PUBLISH at the node that receives it and at others, without any subscriber."""
    found = {}
    for program in programs:
        for masters, copies in ((1, 0), (3, 0), (3, 1)):
            redis = lab.redis(masters, copies, program=program)
            for rate in (5000, 20000):
                quiet = measure(redis, None, lambda: time.sleep(4))
                figures = loaded(redis, None, "raw", rate, only=0)
                idle = [it / quiet["seconds"] * figures["seconds"] for it in quiet["redis"]]
                figures["redis_us"] = [(it - off) / figures["sent"] for it, off in zip(figures["redis"], idle)]
                figures["idle_us_per_second"] = [it / quiet["seconds"] for it in quiet["redis"]]
                name = f"{Path(program).name} {masters}x{1 + copies} {rate}"
                found[name] = figures
                progress("bus", name, [round(it, 2) for it in figures["redis_us"]])
            lab.stop()
    return found


def wake_units(lab):
    """CPU of one master per FCALL at different rates, of which the low ones wake it for each call; and per PING, alone
    and 20 at a time."""
    found = {}
    redis = lab.redis(1)
    for at_once, count in ((1, 150_000), (20, 1_500_000)):
        words = ["redis-benchmark", "-p", redis.ports[0], "-c", 50, "-P", at_once, "-n", count, "-q", "PING"]
        words = [str(it) for it in words]
        figures = measure(redis, None, lambda: subprocess.run(words, stdout=subprocess.DEVNULL, check=True) and None)
        found[f"PING, {at_once} at a time, us"] = sum(figures["redis"]) / count
    gateways = lab.gateways(redis, 2, 16)
    for rate in (500, 2000, 5000, 10000, 20000, 30000):
        figures = loaded(redis, gateways, "fcall", rate, 4)
        found[f"FCALL, {rate} a second, us"] = sum(figures["redis"]) / figures["sent"]
    progress("wake", found)
    lab.stop()
    return found


def attach_units(lab):
    """Streams with a channel each, at one replica: CPU and memory per stream and channel; then with history."""
    found = {}
    for name, count, own, history in (
        ("personal", 15000, True, 0),
        ("rooms", 15000, False, 0),
        ("history", 5000, True, 20),
    ):
        redis = lab.redis(1)
        gateways = lab.gateways(redis, 1, 16)
        channels = [f"load{n}" for n in range(count if own else 100)]
        if history:
            publish(redis, gateways, "fcall", 10000, history * len(channels) / 10000, channels)
            time.sleep(1)
        # Code, threads and buffers are there before the streams that count.
        warm = lab.clients([(gateways.addresses[0], f"channel=warm{n % 10}") for n in range(500)])
        warm.connect()
        time.sleep(2)
        quiet = measure(redis, gateways, lambda: time.sleep(4))
        before = (
            redis.memory()[0],
            anonymous(gateways.processes[0].pid),
            slab(),
            redis.calls(),
            gateways.metric("sse_gateway_history_pages_total"),
        )
        clients = lab.clients([(gateways.addresses[0], f"channel={channels[n % len(channels)]}") for n in range(count)])

        def load():
            clients.connect()
            time.sleep(2)

        figures = measure(redis, gateways, load)
        for where in ("redis", "gateways"):
            figures[where + "_us"] = [
                (it - off / quiet["seconds"] * figures["seconds"]) / count
                for it, off in zip(figures[where], quiet[where])
            ]
        after = redis.calls()
        figures["calls_per_stream"] = {
            k: round((v - before[3].get(k, 0)) / count, 3) for k, v in after.items() if v > before[3].get(k, 0)
        }
        figures["redis_bytes"] = (redis.memory()[0] - before[0]) / count
        figures["gateway_bytes"] = (anonymous(gateways.processes[0].pid) - before[1]) / count
        figures["slab_bytes_both_ends"] = (slab() - before[2]) / count
        figures["pages"] = gateways.metric("sse_gateway_history_pages_total") - before[4]
        figures["idle_gateway_us_per_second"] = measure(redis, gateways, lambda: time.sleep(20))["gateways"][0] / 20
        found[name] = figures
        progress("attach", name, {k: v for k, v in figures.items() if k not in ("result",)})
        if name == "rooms":
            # Each message is delivered to 150 streams.
            before_load = measure(redis, gateways, lambda: time.sleep(4))
            for rate in (20, 100):
                loaded_figures = loaded(redis, gateways, "fcall", rate)
                us = (
                    loaded_figures["gateways"][0]
                    - before_load["gateways"][0] / before_load["seconds"] * loaded_figures["seconds"]
                )
                found[f"delivery at {rate} messages/s, 150 streams each"] = us / (loaded_figures["sent"] * count / 100)
                progress("delivery", rate, us / (loaded_figures["sent"] * count / 100))
        if history:
            publish(redis, gateways, "fcall", 5000, len(channels) / 5000, channels)
            clients.until_events(len(channels))
            # All clients leave, the gateway forgets the channels, 20 events follow, and the clients return with their ids.
            clients.cut(1)
            time.sleep(8)
            publish(redis, gateways, "fcall", 5000, history * len(channels) / 5000, channels)
            before_calls = redis.calls()
            pages = gateways.metric("sse_gateway_history_pages_total")
            quiet = measure(redis, gateways, lambda: time.sleep(4))

            def again():
                clients.reopen()
                clients.until_events(len(channels) * (1 + history))

            figures = measure(redis, gateways, again)
            for where in ("redis", "gateways"):
                figures[where + "_us"] = [
                    (it - off / quiet["seconds"] * figures["seconds"]) / count
                    for it, off in zip(figures[where], quiet[where])
                ]
            after = redis.calls()
            figures["calls_per_stream"] = {
                k: round((v - before_calls.get(k, 0)) / count, 3)
                for k, v in after.items()
                if v > before_calls.get(k, 0)
            }
            figures["pages"] = gateways.metric("sse_gateway_history_pages_total") - pages
            found["resume"] = figures
            progress("resume", figures)
        lab.stop()
    return found


# --- whole deployments ------------------------------------------------------------------------------


def whole(
    lab, masters, copies, replicas, connections, partitions, kind, rate, silent_rate, room, storm=False, seconds=8
):
    """`connections` over `replicas`, in rooms of `room` clients over all replicas. `rate` messages a second go to these
    rooms, `silent_rate` to channels without clients. Returns CPU, memory and deliveries."""
    redis = lab.redis(masters, copies)
    gateways = lab.gateways(redis, replicas, partitions)
    rooms = max(connections // room, 1)
    quiet = measure(redis, gateways, lambda: time.sleep(5))
    before = redis.memory(), [anonymous(it.pid) for it in gateways.processes], slab()
    # A room's clients are spread over the replicas.
    clients = lab.clients(
        [
            (gateways.addresses[(n // rooms) % replicas if room > 1 else n % replicas], f"channel=room{n % rooms}")
            for n in range(connections)
        ]
    )

    def open_all():
        clients.connect()
        time.sleep(1)

    opened = measure(redis, gateways, open_all)
    time.sleep(2)
    after = redis.memory(), [anonymous(it.pid) for it in gateways.processes], slab()
    found = {
        "masters": masters,
        "copies": copies,
        "replicas": replicas,
        "connections": connections,
        "partitions": partitions,
        "kind": kind,
        "rate": rate,
        "silent_rate": silent_rate,
        "room": room,
        "quiet": quiet,
        "opened": opened,
        "redis_bytes": [b - a for a, b in zip(before[0], after[0])],
        "gateway_bytes": [b - a for a, b in zip(before[1], after[1])],
        "slab_bytes": after[2] - before[2],
    }
    found["idle"] = measure(redis, gateways, lambda: time.sleep(10))
    assert clients.counts()["open"] == connections, clients.counts()
    total = rate + silent_rate
    # Every n-th message goes to a room.
    channels, at = [], 0
    period = max(round(total / rate), 1) if rate else 0
    for n in range(rooms * period if rate else 1000):
        if period and n % period == 0:
            channels.append(f"room{at % rooms}")
            at += 1
        else:
            channels.append(f"silent{n % 1000}")
    before_events = clients.counts()["events"]
    figures = loaded(redis, gateways, kind, total, seconds, channels)
    found["load"] = figures
    if rate:
        hot = sum(1 for n in range(int(total) * 1) if channels[n % len(channels)].startswith("room"))
        hot += sum(1 for n in range(figures["sent"]) if channels[n % len(channels)].startswith("room"))
        found["deliveries"] = (
            clients.until_events(before_events + hot * (connections // rooms))["events"] - before_events
        )
        found["expected_deliveries"] = hot * (connections // rooms)
    found["unrecorded"] = gateways.metric("sse_gateway_unrecorded_total")
    if storm:
        clients.cut(1 / 3)
        time.sleep(6)
        calls = redis.calls()
        pages = gateways.metric("sse_gateway_history_pages_total")

        # To other replicas, as after the loss of theirs.
        elsewhere = dict(zip(gateways.addresses, gateways.addresses[1:] + gateways.addresses[:1]))

        def again():
            clients.reopen(elsewhere)
            time.sleep(1)

        found["storm"] = measure(redis, gateways, again)
        found["storm"]["calls"] = {k: v - calls.get(k, 0) for k, v in redis.calls().items() if v > calls.get(k, 0)}
        found["storm"]["pages"] = gateways.metric("sse_gateway_history_pages_total") - pages
    progress("whole", {k: v for k, v in found.items()})
    lab.stop()
    return found


def throughput(lab, masters, rate):
    """Raw messages in 100 channels, which two replicas deliver to a stream each: CPU per message, and that all arrive."""
    redis = lab.redis(masters)
    gateways = lab.gateways(redis, 2, 24)
    clients = lab.clients([(it, "&".join("channel=" + it for it in CHANNELS)) for it in gateways.addresses])
    clients.connect()
    time.sleep(1)
    figures = loaded(redis, gateways, "raw", rate)
    sent = figures["sent"] + rate
    figures["delivered"] = clients.until_events(2 * sent)["events"]
    if figures["delivered"] != 2 * sent:
        raise RuntimeError(f"{figures['delivered']} of {2 * sent} events")
    found = {
        "masters": masters,
        "rate": rate,
        "per_second": figures["sent"] / figures["took"],
        "redis_us": [it / figures["sent"] for it in figures["redis"]],
        "gateways_us": [it / figures["sent"] for it in figures["gateways"]],
    }
    progress("throughput", found)
    lab.stop()
    return found


RUNS = {
    "m1 raw": dict(masters=1, copies=0, kind="raw"),
    "m2 raw": dict(masters=2, copies=0, kind="raw"),
    "m3 raw": dict(masters=3, copies=0, kind="raw"),
    "m6 raw": dict(masters=6, copies=0, kind="raw"),
    "m1 fcall": dict(masters=1, copies=0, kind="fcall"),
    "m3 fcall": dict(masters=3, copies=0, kind="fcall"),
    "m6 fcall": dict(masters=6, copies=0, kind="fcall"),
    "m3 copies raw": dict(masters=3, copies=1, kind="raw"),
}


def summary(found):
    """The part of the figures that scale.py compares its predictions with: the runs that were measured."""
    runs = []
    for name, run in {**found.get("runs", {}), "own channel": found.get("personal")}.items():
        if run is None:
            continue
        idle, load, masters = run["idle"], run["load"], run["masters"]

        def rate(where):
            """CPU of each process under load, in ms/s. The time before and after the load was idle."""
            rest = load["seconds"] - load["took"]
            return [
                (it - quiet / idle["seconds"] * rest) / load["took"] / 1e3
                for it, quiet in zip(load[where], idle[where])
            ]

        redis, gateways, total = rate("redis"), rate("gateways"), run["rate"] + run["silent_rate"]
        measured = {
            "master_ms_per_second": sum(redis[:masters]) / masters,
            "gateways_ms_per_second": sum(gateways),
            "each_redis_ms_per_second": redis,
            "each_gateway_ms_per_second": gateways,
            "gateway_bytes": sum(run["gateway_bytes"]),
            "slab_bytes": run["slab_bytes"],
            "redis_bytes": sum(run["redis_bytes"][:masters]),
        }
        if "storm" in run:
            for where, count in (("redis", masters), ("gateways", len(gateways))):
                quiet = sum(idle[where][:count]) / idle["seconds"] * run["storm"]["seconds"]
                measured[f"storm_{where}_s"] = (sum(run["storm"][where][:count]) - quiet) / 1e6
        measured = {
            key: [round(it, 3) for it in value] if isinstance(value, list) else round(value, 3)
            for key, value in measured.items()
        }
        load = {
            "connections": run["connections"],
            "messages": total,
            "audience": run["room"],
            "way": run["kind"],
            "replicas": run["replicas"],
            "masters": masters,
            "copies": run["copies"],
            "partitions": run["partitions"],
            "heartbeat": 20,
            "history": 0,
            "share": run["rate"] / total,
        }
        runs.append({"name": name, "load": load, "measured": measured})
    throughput = [
        {key: [round(part, 2) for part in it] if isinstance(it, list) else round(it) for key, it in run.items()}
        for run in found.get("throughput", [])
    ]
    return {"runs": runs, "throughput": throughput}


PARTS = ["idle", "record", "bus", "wake", "attach", "throughput", "runs", "personal"]


def main():
    if sys.argv[1:2] == ["hold"]:
        hold()
        return
    # Ends what was started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gateway", default="target/release/sse-gateway", help="the gateway's binary, a release build")
    parser.add_argument("--valkey", help="a valkey-server, whose cluster bus has a shorter header")
    parser.add_argument("--part", action="append", choices=PARTS, help="all unless given")
    parser.add_argument("--run", action="append", choices=list(RUNS), help="only these runs")
    parser.add_argument(
        "--out", type=Path, default=Path(".dev/scale/measured.json"), help="figures, which a part replaces"
    )
    parser.add_argument(
        "--summary",
        type=Path,
        metavar="FILE",
        help="measures nothing, and writes the figures of runs that scale.py reads",
    )
    flags = parser.parse_args()
    if flags.summary:
        flags.summary.write_text(json.dumps(summary(json.loads(flags.out.read_text())), indent=1) + "\n")
        return
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(flags.out.read_text()) if flags.out.exists() else {}
    binary = str(Path(flags.gateway).resolve())

    def keep(name, figures):
        found[name] = figures
        flags.out.write_text(json.dumps(found, indent=1) + "\n")

    parts = flags.part or PARTS
    with Lab(binary) as lab:
        if "idle" in parts:
            keep("idle", idle_units(lab))
        if "record" in parts:
            keep("record", record_units(lab))
        if "bus" in parts:
            keep("bus", bus_units(lab, ["redis-server"] + ([flags.valkey] if flags.valkey else [])))
        if "wake" in parts:
            keep("wake", wake_units(lab))
        if "attach" in parts:
            keep("attach", attach_units(lab))
        if "throughput" in parts:
            # Interleaved, because the machine may be busier at one time than at another.
            keep("throughput", [throughput(lab, masters, 20_000) for _ in range(3) for masters in (1, 2, 3)])
        if "runs" in parts:
            runs = found.get("runs", {})
            for name in flags.run or RUNS:
                progress(name)
                runs[name] = whole(
                    lab,
                    replicas=6,
                    connections=100_000,
                    partitions=24,
                    rate=100,
                    silent_rate=7900,
                    room=100,
                    storm=name.startswith("m3"),
                    **RUNS[name],
                )
                keep("runs", runs)
        if "personal" in parts:
            keep(
                "personal",
                whole(
                    lab,
                    masters=3,
                    copies=0,
                    replicas=6,
                    connections=30_000,
                    partitions=24,
                    kind="fcall",
                    rate=1000,
                    silent_rate=0,
                    room=1,
                    storm=True,
                ),
            )


if __name__ == "__main__":
    main()
