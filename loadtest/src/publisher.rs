//! A publisher with its own thread, which keeps a rate and notes the messages it sent.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use testkit::Message;

/// A shorter delay is not reported.
const LATE: Duration = Duration::from_millis(50);
/// Most messages in one pipeline.
const MAX_PIPELINE: u64 = 256;

/// The destination of messages, and how they are sent.
#[derive(Clone, Debug)]
pub enum Way {
    /// `PUBLISH <prefix><channel>` on a Redis.
    Redis {
        /// The server.
        address: SocketAddr,
        /// Prefix of a channel's name.
        prefix: String,
    },
    /// `POST`, with the payload as the body, over one connection. Messages that are due at the same
    /// time are pipelined.
    Http {
        /// The server.
        address: SocketAddr,
        /// Path and query. `{channel}` is replaced by the channel's name.
        target: String,
        /// The bearer token.
        token: Option<String>,
    },
}

/// The messages to publish.
#[derive(Clone, Debug)]
pub struct Load {
    /// The destination.
    pub way: Way,
    /// The publisher's name in its messages.
    pub name: String,
    /// The channels, used in turn.
    pub channels: Vec<String>,
    /// The number of the next message on each channel.
    pub next: Vec<u64>,
    /// Messages per second over all channels.
    pub rate: f64,
    /// Bytes per payload.
    pub bytes: usize,
    /// Duration of the load.
    pub duration: Duration,
}

/// The published messages.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The number of the next message on each channel.
    pub next: Vec<u64>,
    /// Number of messages sent.
    pub messages: u64,
    /// Messages without a subscriber in Redis.
    pub unheard: u64,
    /// The time beyond the planned duration. If it is long, the rate was too high for this way.
    pub late: Duration,
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} messages sent", self.messages)?;
        if self.unheard > 0 {
            write!(f, ", {} heard by nobody", self.unheard)?;
        }
        if self.late > LATE {
            write!(f, ", in {:.2?} more than planned", self.late)?;
        }
        Ok(())
    }
}

/// A running publisher.
pub struct Publisher(JoinHandle<Result<Sent>>);

impl Publisher {
    /// Starts publishing.
    #[must_use]
    pub fn start(load: Load) -> Self {
        Self(thread::spawn(move || publish(&load)))
    }

    /// Whether all messages have been sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits until all messages have been sent, and returns the result.
    ///
    /// # Errors
    /// If the server refused a message or closed the connection.
    pub fn finish(self) -> Result<Sent> {
        match self.0.join() {
            Ok(sent) => sent,
            Err(_) => bail!("the publisher panicked"),
        }
    }
}

fn publish(load: &Load) -> Result<Sent> {
    let address = match &load.way {
        Way::Redis { address, .. } | Way::Http { address, .. } => *address,
    };
    let socket = TcpStream::connect(address).context("publisher")?;
    socket.set_nodelay(true)?;
    let mut answers = BufReader::new(socket.try_clone()?);
    let mut socket = socket;
    let total = (load.rate * load.duration.as_secs_f64()).round() as u64;
    let mut sent = Sent {
        next: load.next.clone(),
        messages: 0,
        unheard: 0,
        late: Duration::ZERO,
    };
    let mut out = Vec::new();
    let start = Instant::now();
    while sent.messages < total {
        let due = (start.elapsed().as_secs_f64() * load.rate) as u64 + 1;
        let count = due
            .min(total)
            .saturating_sub(sent.messages)
            .min(MAX_PIPELINE);
        if count == 0 {
            let at = start + Duration::from_secs_f64(sent.messages as f64 / load.rate);
            thread::sleep(at.saturating_duration_since(Instant::now()));
            continue;
        }
        out.clear();
        for _ in 0..count {
            let index = (sent.messages % load.channels.len() as u64) as usize;
            let (channel, seq) = (&load.channels[index], sent.next[index]);
            let payload = Message::now(&load.name, channel, seq).padded(load.bytes);
            command(&load.way, channel, &payload, &mut out)?;
            sent.next[index] += 1;
            sent.messages += 1;
        }
        socket.write_all(&out)?;
        for _ in 0..count {
            sent.unheard += u64::from(!heard(&load.way, &mut answers)?);
        }
    }
    sent.late = start.elapsed().saturating_sub(load.duration);
    Ok(sent)
}

fn command(way: &Way, channel: &str, payload: &str, out: &mut Vec<u8>) -> Result<()> {
    match way {
        Way::Redis { prefix, .. } => write!(
            out,
            "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{prefix}{channel}\r\n${}\r\n{payload}\r\n",
            prefix.len() + channel.len(),
            payload.len()
        )?,
        Way::Http {
            address,
            target,
            token,
        } => {
            let target = target.replace("{channel}", channel);
            write!(out, "POST {target} HTTP/1.1\r\nHost: {address}\r\n")?;
            if let Some(token) = token {
                write!(out, "Authorization: Bearer {token}\r\n")?;
            }
            write!(
                out,
                "Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{payload}",
                payload.len()
            )?;
        }
    }
    Ok(())
}

/// Reads one answer: whether the message had a receiver.
fn heard(way: &Way, answers: &mut BufReader<TcpStream>) -> Result<bool> {
    let mut line = String::new();
    ensure!(answers.read_line(&mut line)? > 0, "the server went away");
    if matches!(way, Way::Redis { .. }) {
        let receivers = line.trim_end().strip_prefix(':');
        let receivers = receivers.with_context(|| format!("redis answered {line:?}"))?;
        return Ok(receivers != "0");
    }
    ensure!(line.contains(" 20"), "the server answered {line:?}");
    let mut length = 0;
    loop {
        line.clear();
        ensure!(answers.read_line(&mut line)? > 0, "the server went away");
        let field = line.trim_end().to_ascii_lowercase();
        if field.is_empty() {
            break;
        }
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    std::io::copy(
        &mut std::io::Read::take(answers, length),
        &mut std::io::sink(),
    )?;
    Ok(true)
}
