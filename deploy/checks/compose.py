#!/usr/bin/env python3
"""Runs docker-compose.yml on a real engine, and does to its containers what may happen to them while clients listen.

    deploy/checks/compose.py [--clients 20] [--rate 50]

Builds the image, starts all services, and publishes with redis-cli. At the same time it kills, stops and recreates
replicas, and restarts HAProxy. Each client has to receive each message once and in order, through HAProxy.

Then the same services with deploy/compose/cluster.yml, a Redis Cluster. It publishes by POST, kills a master, restarts all
nodes, and gives all of them other addresses. Clients have to receive each message once and in order, or a gap.

Without a running engine it starts one, which needs root, and ends it afterwards. What remains: the data of that engine in
.dev/engine (5 GB), so that a second run takes two minutes, and the bridge and the firewall rules that each engine leaves
until the next boot. Base images come from their registry, or from standins.py if they cannot be pulled.
"""

import argparse
import contextlib
import http.client
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import standins

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / ".dev/engine"
PROJECT = "sse-gateway-check"
CHANNEL = "check"
REPLICAS = ("gateway1", "gateway2", "gateway3")
NODES = ("redis", "redis2", "redis3", "redis4", "redis5", "redis6")
# Files of Compose.
SINGLE = "docker-compose.yml"
CLUSTER = "docker-compose.yml:deploy/compose/cluster.yml"


class Failed(Exception):
    """The answer is no: what was seen, and what would be right."""


def say(text: str):
    print(f"{time.monotonic() - STARTED:6.1f} s  {text}", flush=True)


def run(*command: str, **options) -> str:
    """The output of a command. Its errors appear if it fails."""
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout.strip()


def succeeds(*command: str, **options) -> bool:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(command, cwd=ROOT, capture_output=True, **options).returncode == 0
    return False


def await_(seconds: float, what: str, condition):
    """Polls, because neither the engine nor its containers can report."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# --- the engine ---------------------------------------------------------------------------------


@contextlib.contextmanager
def engine():
    """The engine that runs, or one for as long as the test lasts. Yields whether it is such a one."""
    if succeeds("docker", "info"):
        yield False
        return
    if pathlib.Path("/var/run/docker.sock").exists() and os.geteuid() != 0:
        raise Failed("the Docker engine refuses this user: add it to the group docker, or run as root")
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    # The paths of sockets may not be long, as those below this directory can be.
    with tempfile.TemporaryDirectory(prefix="sse-engine-") as directory, open(ROOT / ".dev/engine.log", "wb") as log:
        os.environ["DOCKER_HOST"] = f"unix://{directory}/socket"
        daemon = subprocess.Popen(
            [*sudo, "dockerd", "--host", os.environ["DOCKER_HOST"], "--group", str(os.getgid()), "--data-root", str(DATA / "data"),
             "--exec-root", f"{directory}/exec", "--pidfile", f"{directory}/pid"],
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            await_(60, "the engine answers (see .dev/engine.log)", lambda: daemon.poll() is not None or succeeds("docker", "info"))
            if daemon.poll() is not None:
                raise Failed("dockerd does not start: see .dev/engine.log")
            say("an engine of our own runs")
            yield True
        finally:
            run(*sudo, "kill", "-TERM", str(daemon.pid))
            daemon.wait(60)


# --- images -------------------------------------------------------------------------------------


class Images:
    """Pulls images. An engine of our own may also have stand-ins, which have no place in the engine of a user."""

    def __init__(self, may_stand_in: bool):
        self.may_stand_in = may_stand_in

    def provide(self, image: str) -> bool:
        if succeeds("docker", "image", "inspect", image) or succeeds("docker", "pull", "--quiet", image, timeout=300):
            return True
        made = self.may_stand_in and standins.make(image, DATA / "standins")
        say(f"{image} cannot be pulled; {'a stand-in takes its place' if made else 'there is no stand-in'}")
        return made

    def build(self):
        dockerfile = ROOT / "deploy/Dockerfile"
        for image in re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.MULTILINE):
            if not self.provide(image):
                raise Failed(f"there is neither {image} nor a stand-in of it")
        say("building the image")
        # The network of this machine: a registry of crates may be reached from there alone.
        environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
        run("docker", "build", "--network", "host", "--file", str(dockerfile), "--tag", "sse-gateway", ".", env=environment)


# --- services -----------------------------------------------------------------------------------


class Services:
    """The services of these files of Compose, under a project name and on ports of their own."""

    def __init__(self, files: str):
        self.public, self.prometheus = free_port(), free_port()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.environment = {
            **os.environ,
            "COMPOSE_FILE": files,
            "PORT": str(self.public),
            "PROMETHEUS_PORT": str(self.prometheus),
            "GRAFANA_PORT": str(free_port()),
            "NOFILE": str(200000 if limit == resource.RLIM_INFINITY else min(limit, 200000)),
        }
        program = ["docker", "compose"] if succeeds("docker", "compose", "version") else ["docker-compose"]
        self.command = [*program, "--project-name", PROJECT]

    def compose(self, *arguments: str) -> str:
        return run(*self.command, *arguments, env=self.environment)

    def redis_cli(self, node: str, *arguments: str) -> str:
        return self.compose("exec", "-T", node, "redis-cli", *arguments)

    def output(self, *arguments: str) -> str:
        """All that the command prints, even if it fails."""
        command = [*self.command, *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout

    @contextlib.contextmanager
    def up(self, images: Images):
        names = self.compose("config", "--services").split()
        others = dict(re.findall(r"^  (\w+):\n    image: (\S+)", (ROOT / "docker-compose.yml").read_text(), re.MULTILINE))
        missing = [name for name, image in others.items() if not images.provide(image)]
        if missing:
            say(f"NOT RUN, because there is no image: {', '.join(missing)}")
        self.present = [name for name in names if name not in missing]
        try:
            self.create()
            yield
        except BaseException:
            print(self.output("ps"))
            print(self.output("logs", "--no-color", "--tail", "30"))
            raise
        finally:
            self.compose("down", "--volumes", "--timeout", "5")

    def create(self):
        self.compose("up", "--detach", "--no-build", *self.present)

    def container(self, name: str) -> dict:
        return json.loads(run("docker", "inspect", self.compose("ps", "--quiet", name)))[0]

    def await_healthy(self, *names: str):
        for name in names:
            await_(60, f"{name} is healthy", lambda: self.container(name)["State"].get("Health", {}).get("Status") == "healthy")

    def get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def await_serving(self):
        """All is ready: the replicas, the console through HAProxy, and Prometheus with each of its targets."""
        self.await_healthy("redis", *REPLICAS)

        def console() -> bool:
            with contextlib.suppress(OSError):
                return "<html" in self.get(self.public, "/").lower()
            return False

        def scraped() -> bool:
            with contextlib.suppress(OSError):
                query = urllib.parse.quote('up{instance=~"gateway.*|haproxy.*"} == 1')
                return len(json.loads(self.get(self.prometheus, f"/api/v1/query?query={query}"))["data"]["result"]) == 4
            return False

        await_(30, "the console answers through HAProxy", console)
        await_(60, "Prometheus scrapes three replicas and HAProxy", scraped)
        groups = json.loads(self.get(self.prometheus, "/api/v1/rules"))["data"]["groups"]
        if not groups:
            raise Failed("Prometheus has no alert rules")

    def await_in_turn(self, name: str):
        """The replica is healthy, and HAProxy gives it streams: its own check needs a second more."""
        self.await_healthy(name)
        time.sleep(2)


# --- clients ------------------------------------------------------------------------------------


class Client(threading.Thread):
    """A client by the standard: it reconnects after `retry` with the last id, and gives up on any status but 200."""

    def __init__(self, port: int):
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{port}/events?channel={CHANNEL}"
        self.received: list[int] = []
        self.connects = self.resumes = self.gaps = 0
        self.wrong: list[str] = []
        self.opened, self.ended = threading.Event(), threading.Event()

    def run(self):
        last_id, self.retry = "", 1.0
        while not self.ended.is_set() and not self.wrong:
            headers = {"Accept": "text/event-stream", **({"Last-Event-ID": last_id} if last_id else {})}
            try:
                with urllib.request.urlopen(urllib.request.Request(self.url, headers=headers), timeout=30) as stream:
                    self.connects += 1
                    self.resumes += bool(last_id)
                    last_id = self.read(stream, last_id)
            except urllib.error.HTTPError as error:
                self.wrong.append(f"status {error.code}")
            except (OSError, http.client.HTTPException):
                pass
            self.ended.wait(self.retry)

    def read(self, stream, last_id: str) -> str:
        """Reads until the stream ends, and returns the last id."""
        event, data, new_id = "", "", last_id
        with contextlib.suppress(OSError, http.client.HTTPException):
            for line in iter(stream.readline, b""):
                if self.ended.is_set():
                    break
                field, _, value = line.decode().rstrip("\r\n").partition(":")
                value = value.removeprefix(" ")
                if field == "retry":
                    self.retry = int(value) / 1000
                elif field == "event":
                    event = value
                elif field == "data":
                    data = value
                elif field == "id":
                    new_id = value
                elif not field and not value:
                    last_id = new_id
                    self.dispatch(event, data)
                    event = data = ""
        return last_id

    def dispatch(self, event: str, data: str):
        if event == "gateway.gap":
            self.gaps += 1
        elif event == "gateway.open":
            self.opened.set()
        elif not event and data:
            self.received.append(int(data))


class Publisher(threading.Thread):
    """Publishes 1, 2, 3 and so on with one redis-cli in the container of Redis."""

    def __init__(self, services: Services, rate: float):
        super().__init__(daemon=True)
        command = [*services.command, "exec", "-T", "redis", "redis-cli"]
        self.cli = subprocess.Popen(command, cwd=ROOT, env=services.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.rate, self.published, self.ended = rate, 0, threading.Event()

    def run(self):
        # If redis-cli has ended, `finish` reports it.
        with contextlib.suppress(BrokenPipeError):
            while not self.ended.wait(1 / self.rate):
                self.published += 1
                self.cli.stdin.write(f"PUBLISH sse:{CHANNEL} {self.published}\n")
                self.cli.stdin.flush()

    def finish(self):
        self.ended.set()
        self.join()
        answers = self.cli.communicate()[0].split()
        refused = [answer for answer in answers if not answer.isdigit() or int(answer) == 0]
        if len(answers) != self.published or refused:
            raise Failed(f"{self.published} PUBLISH had {len(answers)} answers, of which these name no subscriber: {refused[:5]}")


class Poster(threading.Thread):
    """Posts 1, 2, 3 and so on through HAProxy, each until it is stored."""

    def __init__(self, port: int, rate: float):
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{port}/events?channel={CHANNEL}"
        self.rate, self.published, self.repeated, self.longest = rate, 0, 0, 0.0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(1 / self.rate):
            number, started = self.published + 1, time.monotonic()
            while not self.is_stored(number):
                self.repeated += 1
                time.sleep(0.2)
            self.published = number
            self.longest = max(self.longest, time.monotonic() - started)

    def is_stored(self, number: int) -> bool:
        # The key makes the repetition of a request that was stored, but not answered, no second message.
        headers = {"Authorization": "Bearer dev", "Idempotency-Key": str(number)}
        with contextlib.suppress(OSError, http.client.HTTPException):
            with urllib.request.urlopen(urllib.request.Request(self.url, str(number).encode(), headers), timeout=10) as answer:
                return answer.status == 201
        return False

    def finish(self):
        self.ended.set()
        self.join(30)
        if self.is_alive():
            raise Failed(f"message {self.published + 1} is refused or not answered, again and again")


def finish(clients: list[Client], last: int, may_have_gaps: bool):
    """Judges what the clients received, once they have the last message."""
    with contextlib.suppress(Failed):
        await_(30, "the last message arrives", lambda: all(client.wrong or client.received[-1] == last for client in clients))
    for client in clients:
        client.ended.set()
    expected = set(range(1, last + 1))
    for number, client in enumerate(clients):
        if client.wrong:
            raise Failed(f"client {number}: {client.wrong[0]}")
        if client.gaps and not may_have_gaps:
            raise Failed(f"client {number} received {client.gaps} gaps")
        if client.received != sorted(set(client.received)):
            raise Failed(f"client {number} received messages that are repeated or in a wrong order")
        missed = sorted(expected - set(client.received))
        if (missed and not client.gaps) or client.received[-1] != last:
            raise Failed(f"client {number} received {len(client.received)} of {last} messages and {client.gaps} gaps; missed: {missed[:5]}")


def report(clients: list[Client], last: int):
    received, gaps, connects, resumes = (
        sum(values) for values in zip(*((len(it.received), it.gaps, it.connects, it.resumes) for it in clients), strict=True)
    )  # fmt: skip
    say(f"{len(clients)} clients received {received} of {last * len(clients)} messages, each once and in order, and {gaps} gaps, "
        f"over {connects} connections, of which {resumes} resumed")  # fmt: skip


# --- the test -----------------------------------------------------------------------------------


def fault(services: Services, text: str, *steps: tuple[str, ...]):
    say(text)
    for step in steps:
        services.compose(*step)


def crowd_of(services: Services, clients: int) -> list[Client]:
    crowd = [Client(services.public) for _ in range(clients)]
    for client in crowd:
        client.start()
    await_(30, f"{clients} clients are connected", lambda: all(client.opened.is_set() for client in crowd))
    return crowd


def check(services: Services, clients: int, rate: float):
    services.await_serving()
    say("all is ready: three replicas, Redis, HAProxy with the console, Prometheus with its rules")
    crowd = crowd_of(services, clients)
    publisher = Publisher(services, rate)
    publisher.start()
    await_(30, "messages arrive", lambda: all(client.received for client in crowd))
    fault(services, "kill a replica", ("kill", "gateway1"), ("start", "gateway1"))
    services.await_in_turn("gateway1")
    fault(services, "stop a replica, which drains", ("stop", "gateway2"), ("start", "gateway2"))
    services.await_in_turn("gateway2")
    fault(services, "create a replica again", ("up", "--detach", "--no-build", "--no-deps", "--force-recreate", "gateway3"))
    services.await_in_turn("gateway3")
    fault(services, "restart HAProxy", ("restart", "haproxy"))
    await_(30, "clients are connected again", lambda: all(client.received[-1] > publisher.published - 2 * rate for client in crowd))
    publisher.finish()
    finish(crowd, publisher.published, may_have_gaps=False)
    if not any(client.resumes for client in crowd):
        raise Failed("no client has resumed, so the faults have reached none")
    report(crowd, publisher.published)


def check_cluster(services: Services, clients: int, rate: float):
    def is_master(node: str) -> bool:
        return services.redis_cli(node, "ROLE").startswith("master")

    def links() -> list[list[str]]:
        """By node, how it knows each other one."""
        return [services.redis_cli(node, "CLUSTER", "NODES").splitlines() for node in NODES]

    def is_whole() -> bool:
        """Each node knows six, and is connected to all of them."""
        return all(len(lines) == len(NODES) and all(" connected" in line and "fail" not in line for line in lines) for lines in links())

    def await_flow(seconds: float):
        since = poster.published
        await_(seconds, "new messages arrive", lambda: all(client.wrong or client.received[-1] > since + 1 for client in crowd))

    services.await_serving()
    await_(30, "the masters have copies", lambda: sum(map(is_master, NODES)) == 3)
    say("all is ready: three replicas, a cluster of three masters with a copy each, HAProxy, Prometheus")
    crowd = crowd_of(services, clients)
    # Every node takes them: PUBLISH goes to all, and a function answers where its channel is.
    services.redis_cli("redis5", "-c", "PUBLISH", f"sse:{CHANNEL}", "1")
    services.redis_cli("redis3", "-c", "FCALL", "sse_publish", "0", CHANNEL, "2")
    services.redis_cli("redis", "-c", "FCALL", "sse_publish", "0", CHANNEL, "3")
    poster = Poster(services.public, rate)
    poster.published = 3
    poster.start()
    await_flow(30)

    fault(services, "kill a master, whose copy takes its place", ("kill", "redis2"))
    await_(30, "the copy is the master", lambda: is_master("redis5"))
    await_flow(30)
    fault(services, "start it again", ("start", "redis2"))
    await_(30, "it is the copy now, and the cluster is whole", lambda: is_whole() and not is_master("redis2"))
    await_flow(30)
    fault(services, "restart all nodes", ("restart", *NODES))
    await_(60, "the cluster is whole", is_whole)
    await_flow(30)
    before = {line.split()[0]: line.split()[1] for line in links()[0]}
    # The engine gives the lowest free address.
    fault(services, "start all nodes at other addresses", ("stop", *NODES), *(("start", node) for node in reversed(NODES)))
    await_(60, "the cluster is whole", is_whole)
    await_flow(30)
    moved = sum(line.split()[1] != before.get(line.split()[0]) for line in links()[0])
    say(f"{moved} of {len(NODES)} nodes have another address than before")
    services.create()
    await_(30, "a second `up` leaves the cluster whole", is_whole)
    await_flow(30)
    poster.finish()
    say(f"{poster.repeated} requests to publish were repeated, and the longest took {poster.longest:.1f} s")
    finish(crowd, poster.published, may_have_gaps=True)
    report(crowd, poster.published)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--rate", type=float, default=50, help="messages a second")
    arguments = parser.parse_args()
    # So that everything is taken down then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Debian's client, which fits Debian's engine, before any other.
    os.environ["PATH"] = f"/usr/bin:/usr/sbin:{os.environ['PATH']}"
    DATA.mkdir(parents=True, exist_ok=True)
    try:
        with engine() as ours:
            images = Images(may_stand_in=ours)
            images.build()
            for files, judge in ((SINGLE, check), (CLUSTER, check_cluster)):
                say(f"COMPOSE_FILE={files}")
                services = Services(files)
                with services.up(images):
                    judge(services, arguments.clients, arguments.rate)
    except (Failed, subprocess.CalledProcessError) as failed:
        sys.exit(f"compose: {failed}")
    say("all is taken down")


STARTED = time.monotonic()
if __name__ == "__main__":
    main()
