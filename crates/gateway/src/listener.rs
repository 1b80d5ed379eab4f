//! `Listener`: accepts connections over TCP, or over a Unix socket from a balancer on the same machine.

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// Connections that wait in the kernel until they are accepted.
const BACKLOG: i32 = 4096;
/// The owner and the group of the process may connect. A balancer is put into that group.
const SOCKET_MODE: u32 = 0o660;

/// The address of every client of a Unix socket, until a balancer names another in `X-Forwarded-For`.
pub(crate) const UNIX_PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A public address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The absolute path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix("unix:") else {
            let address = parse_address(text);
            return address
                .map(Self::Tcp)
                .map_err(|error| format!("{error}, or unix:PATH for a balancer on this machine"));
        };
        let path = PathBuf::from(path);
        // The system's error explains neither of the two.
        match path.is_absolute() && SockAddr::unix(&path).is_ok() {
            true => Ok(Self::Unix(path)),
            false => Err(
                "the path of a Unix socket has to be absolute and at most 107 bytes, such as \
                 unix:/run/sse-gateway/public.sock"
                    .to_owned(),
            ),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ListenAddress {
    /// Whether only programs on this machine can connect, and none is known to act for others. A Unix socket is for a
    /// balancer, which acts for others.
    pub(crate) fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => false,
        }
    }
}

/// Parses an IP address with a port.
fn parse_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(|_| {
        "an IP address and a port are needed, such as 127.0.0.1:8080 for this machine alone, or 0.0.0.0:8080 for all \
         networks"
    })
}

/// The addresses of this process.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ListenConfig {
    /// Public address: /events. unix:/run/sse-gateway/public.sock is a Unix socket, for a balancer on this machine.
    #[arg(
        long = "listen",
        env = "SSE_GATEWAY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8080",
        value_parser = ListenAddress::from_str
    )]
    pub(crate) public: ListenAddress,

    /// Address for operators: /metrics, /livez, /readyz. Not for the public.
    #[arg(
        long = "admin-listen",
        env = "SSE_GATEWAY_ADMIN_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:9090",
        value_parser = parse_address,
        global = true
    )]
    pub(crate) admin: SocketAddr,
}

/// An address that is bound, before a runtime accepts on it.
#[derive(Debug)]
pub(crate) struct Bound {
    socket: Socket,
    /// Removed before the socket is closed. So the file cannot belong to another process yet.
    file: Option<Arc<SocketFile>>,
}

/// The file of a Unix socket.
#[derive(Debug)]
pub(crate) struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::debug!(%error, path = %self.0.display(), "failed to remove socket");
        }
    }
}

/// Binds an address for this many workers.
///
/// # Errors
/// When it is in use, or the system refuses it.
pub(crate) fn bind(address: &ListenAddress, count: usize) -> io::Result<Vec<Bound>> {
    match address {
        ListenAddress::Tcp(address) => bind_tcp(*address, count),
        ListenAddress::Unix(path) => bind_unix(path, count),
    }
}

/// Each worker has a socket of its own, and the kernel spreads the connections over them.
fn bind_tcp(mut address: SocketAddr, count: usize) -> io::Result<Vec<Bound>> {
    let bind = |address: SocketAddr, is_shared| {
        let domain = Domain::for_address(address);
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(is_shared)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(Bound { socket, file: None })
    };
    // Sockets that share a port do not notice that another process has it too. A socket that does not share the port
    // shows whether it is free.
    let probe = bind(address, false)?;
    address.set_port(probe.tcp_address()?.port());
    if count == 1 {
        probe.listen()?;
        return Ok(vec![probe]);
    }
    drop(probe);
    let listen = |_| {
        let bound = bind(address, true)?;
        bound.listen()?;
        Ok(bound)
    };
    (0..count).map(listen).collect()
}

/// All workers accept on the same socket, because a path has only one.
fn bind_unix(path: &Path, count: usize) -> io::Result<Vec<Bound>> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    match socket.bind(&address) {
        // A killed process leaves its socket file.
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
            fs::remove_file(path)?;
            socket.bind(&address)?;
        }
        bound => bound?,
    }
    let file = Arc::new(SocketFile(path.to_owned()));
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    let share = |_| {
        let socket = socket.try_clone()?;
        let file = Some(Arc::clone(&file));
        Ok(Bound { socket, file })
    };
    let bound: Vec<Bound> = (0..count).map(share).collect::<io::Result<_>>()?;
    if let Some(first) = bound.first() {
        first.listen()?;
    }
    Ok(bound)
}

fn is_stale(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

impl Bound {
    fn listen(&self) -> io::Result<()> {
        self.socket.set_nonblocking(true)?;
        self.socket.listen(BACKLOG)
    }

    fn tcp_address(&self) -> io::Result<SocketAddr> {
        let address = self.socket.local_addr()?.as_socket();
        address.ok_or_else(|| io::Error::other("not an internet address"))
    }

    /// The address that clients connect to. Port 0 is replaced by the port that the system chose.
    pub(crate) fn address(&self) -> io::Result<ListenAddress> {
        match &self.file {
            Some(file) => Ok(ListenAddress::Unix(file.0.clone())),
            None => self.tcp_address().map(ListenAddress::Tcp),
        }
    }

    /// # Errors
    /// Outside of a runtime.
    pub(crate) fn into_listener(self) -> io::Result<Listener> {
        Ok(match self.file {
            Some(file) => Listener::Unix {
                _file: file,
                listener: UnixListener::from_std(self.socket.into())?,
            },
            None => Listener::Tcp(TcpListener::from_std(self.socket.into())?),
        })
    }
}

/// Accepts connections.
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix {
        /// Dropped first, see [`Bound::file`].
        _file: Arc<SocketFile>,
        listener: UnixListener,
    },
}

impl Listener {
    /// The next connection and its peer. A connection over a Unix socket is a `TcpStream` too: the later calls (send,
    /// recv, shutdown) are the same in the kernel. So deliveries need no separate case.
    pub(crate) async fn accept(&self, stall: Duration) -> io::Result<(TcpStream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                prepare(&socket, stall);
                Ok((socket, peer))
            }
            Self::Unix { listener, .. } => {
                let (socket, _unnamed) = listener.accept().await?;
                let socket = std::os::fd::OwnedFd::from(socket.into_std()?);
                let socket = TcpStream::from_std(socket.into())?;
                Ok((socket, SocketAddr::new(UNIX_PEER, 0)))
            }
        }
    }
}

fn prepare(socket: &TcpStream, stall: Duration) {
    let socket = SockRef::from(socket);
    // An event is a small write, and no other write follows it soon.
    let nodelay = socket.set_tcp_nodelay(true);
    // A client that lost its network closes nothing, and heartbeats to it pile up in the kernel. Without this timeout
    // it would hold its descriptor for a quarter of an hour.
    let vanished = socket.set_tcp_user_timeout(Some(stall));
    if let Err(error) = nodelay.and(vanished) {
        tracing::debug!(%error, "a connection could not be prepared");
    }
}
