//! A publisher with a thread of its own, which keeps a rate and notes what it sent.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::Message;

/// Being late by less is not worth a word.
const LATE: Duration = Duration::from_millis(50);
/// Messages that go out in one pipeline.
const MAX_PIPELINE: u64 = 256;

/// Where messages go, and how.
#[derive(Clone, Debug)]
pub enum Way {
    /// `PUBLISH <prefix><channel>` on a Redis.
    Redis {
        /// The server.
        address: SocketAddr,
        /// In front of a channel's name.
        prefix: String,
    },
    /// `POST`, with the payload as the body, over one connection; those that are due at once are
    /// pipelined.
    Http {
        /// The server.
        address: SocketAddr,
        /// Path and query; `{channel}` is the channel's name.
        target: String,
        /// Sent as a bearer token.
        token: Option<String>,
    },
}

/// What is published.
#[derive(Clone, Debug)]
pub struct Load {
    /// Where to.
    pub way: Way,
    /// Names the publisher in its messages.
    pub name: String,
    /// The channels, in turn.
    pub channels: Vec<String>,
    /// The number of the next message on each channel.
    pub next: Vec<u64>,
    /// Messages a second over all channels.
    pub rate: f64,
    /// Bytes of a payload.
    pub bytes: usize,
    /// For so long.
    pub duration: Duration,
}

/// What was published.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The number of the next message on each channel.
    pub next: Vec<u64>,
    /// Messages sent.
    pub messages: u64,
    /// Messages that Redis gave to nobody.
    pub unheard: u64,
    /// How much longer than planned it took: the rate was too much for this way.
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

/// A publisher at work.
pub struct Publisher(JoinHandle<Result<Sent>>);

impl Publisher {
    /// Begins to publish.
    #[must_use]
    pub fn start(load: Load) -> Self {
        Self(thread::spawn(move || publish(&load)))
    }

    /// Whether everything is sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.is_finished()
    }

    /// What was sent, once it is.
    ///
    /// # Errors
    /// When the server refused or went away.
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

/// Reads one answer: whether anybody received the message.
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
