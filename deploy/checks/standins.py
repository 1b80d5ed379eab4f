"""Stand-ins of base images, for a machine that reaches Debian's packages but no registry of images.

Each is the same Debian with the packages of all of them and this machine's Rust, under the official name. A stand-in
shows whether our files work together. It does not show whether they work with the official image.
"""

import pathlib
import shutil
import subprocess

PACKAGES = "build-essential,ca-certificates,haproxy,prometheus,redis-server"
BASE = "sse-gateway-standin"
# The beginning of an image's name, and the Dockerfile that makes its stand-in of the base.
STANDINS = {
    "rust:": """
        COPY rust /usr/local/rust
        ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/rust/bin:/usr/bin:/bin
        """,
    "gcr.io/distroless/cc": "USER 65532:65532",
    # The official image has no protected mode, which would refuse connections from other containers.
    "redis:": """
        RUN mkdir /data && chown redis:redis /data
        USER redis
        WORKDIR /data
        VOLUME /data
        ENTRYPOINT ["/bin/sh", "-c", "exec \\"$@\\" --protected-mode no", "sh"]
        CMD ["redis-server"]
        """,
    "haproxy:": "USER haproxy",
    "prom/prometheus:": """
        RUN mkdir --mode 777 /prometheus
        USER nobody
        WORKDIR /prometheus
        VOLUME /prometheus
        ENTRYPOINT ["/usr/bin/prometheus"]
        CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
        """,
}


def run(*command: str, **options) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout.strip()


def make(image: str, directory: pathlib.Path) -> bool:
    """Makes the stand-in of the image. False: there is none."""
    steps = next((steps for name, steps in STANDINS.items() if image.startswith(name)), None)
    if steps is None:
        return False
    directory.mkdir(parents=True, exist_ok=True)
    rust = directory / "rust"
    if not rust.exists():
        unfinished = directory / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(run("rustc", "--print", "sysroot"), unfinished, symlinks=True, ignore=shutil.ignore_patterns("doc"))
        unfinished.rename(rust)
    if not run("docker", "image", "ls", "--quiet", BASE):
        root = directory / "root"
        # An earlier attempt may have been interrupted.
        shutil.rmtree(root, ignore_errors=True)
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root), *mirror())
        # A network may have a certificate authority of its own.
        shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as files:
            run("docker", "import", "-", BASE, stdin=files.stdout)
        shutil.rmtree(root)
    dockerfile = "\n".join([f"FROM {BASE}", *(line.strip() for line in steps.strip().splitlines()), ""])
    # Only a step that copies needs the files here.
    context = ["--file", "-", str(directory)] if "COPY" in steps else ["-"]
    run("docker", "build", "--quiet", "--tag", image, *context, input=dockerfile)
    return True


def mirror() -> list[str]:
    """Where this machine gets Debian's packages, if it is a Debian. Otherwise debootstrap chooses."""
    sources = [pathlib.Path("/etc/apt/sources.list"), *pathlib.Path("/etc/apt/sources.list.d").iterdir()]
    words = [word for file in sources if file.exists() for word in file.read_text().split()]
    return [word for word in words if word.startswith("http") and word.rstrip("/").endswith("/debian")][:1]
