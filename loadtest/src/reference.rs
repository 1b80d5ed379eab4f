//! The servers that others are measured against: one epoll loop, plain Redis pub/sub, no promises.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::SocketAddr,
};

use anyhow::{Context, Result, bail};
use memchr::memmem;
use mio::{
    Events, Interest, Poll, Token,
    net::{TcpListener, TcpStream},
};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};

const LISTENER: Token = Token(usize::MAX);
const REDIS: Token = Token(usize::MAX - 1);
const BACKLOG: i32 = 4096;
const READ_BYTES: usize = 256 << 10;
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
    cache-control: no-store\r\nconnection: close\r\n\r\n";

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Writes {
    /// One write() per event and client: the least work for a server that sends at once.
    Each,
    /// One write() per client for all events of one read from Redis: the most that a server can
    /// save without waiting.
    Batch,
}

/// Serves `GET /events?channel=...` until the process is killed.
///
/// # Errors
/// If an address cannot be bound, or Redis cannot be reached.
pub fn serve(listen: SocketAddr, redis: SocketAddr, prefix: &str, writes: Writes) -> Result<()> {
    let mut server = Server {
        poll: Poll::new()?,
        clients: Slab::new(),
        channels: HashMap::new(),
        redis: TcpStream::connect(redis)?,
        received: Vec::new(),
        buffer: vec![0; READ_BYTES],
        prefix: prefix.to_owned(),
        writes,
    };
    let listener = Socket::new(
        Domain::for_address(listen),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    listener.set_reuse_address(true)?;
    listener.set_nonblocking(true)?;
    listener.bind(&listen.into())?;
    listener.listen(BACKLOG)?;
    let mut listener = TcpListener::from_std(listener.into());
    let both = Interest::READABLE | Interest::WRITABLE;
    let registry = server.poll.registry();
    registry.register(&mut listener, LISTENER, Interest::READABLE)?;
    registry.register(&mut server.redis, REDIS, both)?;
    let mut events = Events::with_capacity(1024);
    loop {
        server.poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => server.accept(&listener)?,
                REDIS if event.is_readable() => server.relay()?,
                REDIS => {}
                Token(key) => server.client(key),
            }
        }
    }
}

struct Server {
    poll: Poll,
    clients: Slab<Client>,
    channels: HashMap<Vec<u8>, Channel>,
    redis: TcpStream,
    /// Bytes from Redis that are not split into messages yet.
    received: Vec<u8>,
    buffer: Vec<u8>,
    prefix: String,
    writes: Writes,
}

struct Client {
    socket: TcpStream,
    /// Bytes that the socket did not accept.
    backlog: Vec<u8>,
    /// The channel whose list of clients it is in, if any.
    channel: Option<Vec<u8>>,
}

#[derive(Default)]
struct Channel {
    clients: Vec<usize>,
    /// Encoded events that have to be written.
    batch: Vec<u8>,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener) -> Result<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nodelay(true)?;
            let entry = self.clients.vacant_entry();
            let both = Interest::READABLE | Interest::WRITABLE;
            let token = Token(entry.key());
            self.poll.registry().register(&mut socket, token, both)?;
            entry.insert(Client {
                socket,
                backlog: Vec::new(),
                channel: None,
            });
        }
    }

    /// Handles a client's socket that is ready for reading or writing.
    fn client(&mut self, key: usize) {
        let Some(client) = self.clients.get_mut(key) else {
            return;
        };
        let read = client.socket.read(&mut self.buffer);
        let flushed = client.flush();
        match read {
            Ok(read) if read > 0 && client.channel.is_none() => {
                let Some(channel) = channel_of(&self.buffer[..read]) else {
                    return self.forget(key);
                };
                if client.write(HEAD).is_err() {
                    return self.forget(key);
                }
                client.channel = Some(channel.clone());
                if let Err(error) = self.join(channel, key) {
                    testkit::progress!("reference: {error:#}");
                }
            }
            Ok(read) if read > 0 => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && flushed.is_ok() => {}
            _ => self.forget(key),
        }
    }

    fn join(&mut self, name: Vec<u8>, key: usize) -> Result<()> {
        if !self.channels.contains_key(&name) {
            let raw = [self.prefix.as_bytes(), &name].concat();
            let mut command = format!("*2\r\n$9\r\nSUBSCRIBE\r\n${}\r\n", raw.len()).into_bytes();
            command.extend_from_slice(&raw);
            command.extend_from_slice(b"\r\n");
            self.redis.write_all(&command).context("subscribe")?;
        }
        self.channels.entry(name).or_default().clients.push(key);
        Ok(())
    }

    fn forget(&mut self, key: usize) {
        let client = self.clients.remove(key);
        if let Some(channel) = client.channel.and_then(|name| self.channels.get_mut(&name)) {
            channel.clients.retain(|other| *other != key);
        }
    }

    /// Reads from Redis and passes the messages on.
    fn relay(&mut self) -> Result<()> {
        loop {
            let read = match self.redis.read(&mut self.buffer) {
                Ok(0) => bail!("redis went away"),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            self.received.extend_from_slice(&self.buffer[..read]);
            let received = std::mem::take(&mut self.received);
            let mut rest = &received[..];
            let mut touched = Vec::new();
            while let Some((raw, payload, behind)) = message(rest)? {
                rest = behind;
                let Some(payload) = payload else { continue };
                let name = raw.strip_prefix(self.prefix.as_bytes()).unwrap_or(raw);
                let Some(channel) = self.channels.get_mut(name) else {
                    continue;
                };
                if channel.batch.is_empty() {
                    touched.push(name.to_owned());
                }
                channel.batch.extend_from_slice(b"data: ");
                channel.batch.extend_from_slice(payload);
                channel.batch.extend_from_slice(b"\n\n");
                if self.writes == Writes::Each {
                    self.write(name);
                }
            }
            self.received = rest.to_vec();
            for name in touched {
                self.write(&name);
            }
        }
    }

    fn write(&mut self, name: &[u8]) {
        let Some(channel) = self.channels.get_mut(name) else {
            return;
        };
        if channel.batch.is_empty() {
            return;
        }
        for key in &channel.clients {
            // A broken socket is reported by its own event.
            let _broken = self.clients[*key].write(&channel.batch);
        }
        channel.batch.clear();
    }
}

impl Client {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.backlog.is_empty() {
            self.backlog.extend_from_slice(bytes);
            return Ok(());
        }
        let written = match self.socket.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.backlog.extend_from_slice(&bytes[written..]);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        while !self.backlog.is_empty() {
            match self.socket.write(&self.backlog) {
                Ok(written) => _ = self.backlog.drain(..written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The channel that a request names. A request must arrive in one segment.
fn channel_of(request: &[u8]) -> Option<Vec<u8>> {
    let from = memmem::find(request, b"channel=")? + b"channel=".len();
    let rest = &request[from..];
    let to = rest.iter().position(|byte| matches!(byte, b' ' | b'&'))?;
    Some(rest[..to].to_vec())
}

/// The first reply: channel, payload and the rest of the bytes. Only a message has a payload.
type Reply<'a> = Option<(&'a [u8], Option<&'a [u8]>, &'a [u8])>;

fn message(bytes: &[u8]) -> Result<Reply<'_>> {
    let Some(mut rest) = line(bytes).map(|(_, rest)| rest) else {
        return Ok(None);
    };
    let mut parts = [&b""[..]; 3];
    for part in &mut parts {
        let Some((head, behind)) = line(rest) else {
            return Ok(None);
        };
        rest = behind;
        if head.first() == Some(&b'$') {
            let length: usize = std::str::from_utf8(&head[1..])?.parse()?;
            if rest.len() < length + 2 {
                return Ok(None);
            }
            *part = &rest[..length];
            rest = &rest[length + 2..];
        }
    }
    let is_message = parts[0] == b"message";
    Ok(Some((parts[1], is_message.then_some(parts[2]), rest)))
}

fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memmem::find(bytes, b"\r\n")?;
    Some((&bytes[..end], &bytes[end + 2..]))
}
