//! `Listener`: a pub/sub connection of this crate's own. Its messages are slices of the buffers that it reads.
//!
//! The redis crate delivers pub/sub messages through an unbounded queue, each as a vector of values. Here every message
//! of the replica arrives, and a slow reader has to slow down the connection, not fill a queue. So this file parses the
//! few forms that RESP3 has in pub/sub in place. RESP3, because it allows calls on a connection that is subscribed.

use std::{io, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use redis::ConnectionInfo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::server::{Server, Stream};

/// Longest wait for the connection and its login, and for a command to be accepted.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Least room for each read.
const READ_BYTES: usize = 64 << 10;
/// Longest line other than a payload: a type byte and a number, or an error message.
const MAX_LINE: usize = 64 << 10;

/// A message from Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Push {
    /// A message on a channel that was subscribed by name, or by a pattern.
    Message { channel: Bytes, payload: Bytes },
    /// A message that is larger than the limit and was skipped unread. If the channel's name was too large as well, the
    /// channel is the pattern.
    Oversized { channel: Bytes },
    /// This channel or pattern is subscribed.
    Subscribed { channel: Bytes },
    /// This channel or pattern is not subscribed any more.
    Unsubscribed { channel: Bytes },
    /// The answer to a ping, after all messages that were published before it.
    Pong,
    /// Redis refused a subscription, or a call that was made together with one.
    Refused { error: Bytes },
}

/// A connection that only subscribes and receives.
pub(crate) struct Listener {
    stream: Box<dyn Stream>,
    parser: Parser,
}

impl Listener {
    /// Connects to where the server was located, and logs in. Payloads beyond `max_payload` bytes are skipped.
    pub(crate) async fn connect(
        server: &Server,
        info: &ConnectionInfo,
        max_payload: usize,
    ) -> io::Result<Self> {
        let login = async {
            let mut listener = Self {
                stream: server.open(info).await?,
                parser: Parser::new(max_payload),
            };
            let settings = info.redis_settings();
            let mut hello = vec![&b"HELLO"[..], b"3"];
            if let Some(password) = settings.password() {
                let user = settings.username().unwrap_or("default");
                hello.extend([b"AUTH", user.as_bytes(), password.as_bytes()]);
            }
            listener.send(&hello).await?;
            listener.skip_reply().await?;
            Ok(listener)
        };
        timeout(TIMEOUT, login).await?
    }

    /// The text that answers a command, before anything is subscribed. None if Redis does not allow it or does not have
    /// it.
    pub(crate) async fn ask(&mut self, command: &[&[u8]]) -> io::Result<Option<Bytes>> {
        let ask = async {
            self.send(command).await?;
            let line = self.any_line().await?;
            if is_refusal(&line) {
                return Ok(None);
            }
            if line.starts_with(b"-") {
                return Err(server_error(&line));
            }
            // A text may have its format, `txt:`, in front.
            let length = line.strip_prefix(b"=").or_else(|| line.strip_prefix(b"$"));
            let length = length.map(number);
            let length = length.unwrap_or_else(|| Err(protocol("no text")))?;
            if length > MAX_LINE {
                return Err(protocol("a text without end"));
            }
            while self.parser.buffer.len() < length + 2 {
                self.fill().await?;
            }
            let text = self.parser.buffer.split_to(length + 2);
            Ok(Some(text.freeze().slice(..length)))
        };
        timeout(TIMEOUT, ask).await?
    }

    /// The reason why Redis refuses to subscribe to all channels that begin with a prefix; none if it allows it, or has
    /// no MULTI. A command in a transaction is checked when it is queued. The transaction ends with the connection, so
    /// nothing is subscribed: PUBLISH would count a subscription.
    pub(crate) async fn refusal_of_prefix(mut self, prefix: &str) -> io::Result<Option<String>> {
        let ask = async {
            self.send(&[b"MULTI"]).await?;
            if self.any_line().await?.starts_with(b"-") {
                return Ok(None);
            }
            self.send(&[b"PSUBSCRIBE", pattern(prefix).as_bytes()])
                .await?;
            let answer = self.any_line().await?;
            match &answer[..] {
                b"+QUEUED" => Ok(None),
                _ if is_refusal(&answer) => {
                    Ok(Some(String::from_utf8_lossy(&answer[1..]).into_owned()))
                }
                _ => Err(server_error(&answer)),
            }
        };
        timeout(TIMEOUT, ask).await?
    }

    /// Subscribes to a channel that any client of Redis publishes to.
    pub(crate) async fn subscribe_public(&mut self, channel: &str) -> io::Result<()> {
        self.command(&[b"SUBSCRIBE", channel.as_bytes()]).await
    }

    /// Subscribes to channels of one partition.
    pub(crate) async fn subscribe<'a>(
        &mut self,
        channels: impl IntoIterator<Item = &'a str>,
    ) -> io::Result<()> {
        let names = channels.into_iter().map(str::as_bytes);
        let command: Vec<&[u8]> = [&b"SSUBSCRIBE"[..]].into_iter().chain(names).collect();
        self.command(&command).await
    }

    /// Unsubscribes from channels of one partition.
    pub(crate) async fn unsubscribe<'a>(
        &mut self,
        channels: impl IntoIterator<Item = &'a str>,
    ) -> io::Result<()> {
        let names = channels.into_iter().map(str::as_bytes);
        let command: Vec<&[u8]> = [&b"SUNSUBSCRIBE"[..]].into_iter().chain(names).collect();
        self.command(&command).await
    }

    /// Asks for a sign of life.
    pub(crate) async fn ping(&mut self) -> io::Result<()> {
        timeout(TIMEOUT, self.send(&[b"PING"])).await?
    }

    /// Unsubscribes from all channels that begin with a prefix. None of their messages arrive after the confirmation.
    pub(crate) async fn unsubscribe_prefix(&mut self, prefix: &str) -> io::Result<()> {
        self.command(&[b"PUNSUBSCRIBE", pattern(prefix).as_bytes()])
            .await
    }

    /// Subscribes to all channels that begin with a prefix, and makes a call, in one step: nothing is published between
    /// them. If Redis allows no MULTI, it carries out one after the other.
    pub(crate) async fn subscribe_prefix(&mut self, prefix: &str, call: &[u8]) -> io::Result<()> {
        let subscribe = packed(&[b"PSUBSCRIBE", pattern(prefix).as_bytes()]);
        let (multi, exec) = (packed(&[b"MULTI"]), packed(&[b"EXEC"]));
        self.parser.replies += 5;
        let step = [&*multi, &subscribe, call, &exec].concat();
        timeout(TIMEOUT, self.put(&step)).await?
    }

    /// Subscribes to all channels that begin with a prefix.
    pub(crate) async fn subscribe_raw(&mut self, prefix: &str) -> io::Result<()> {
        self.command(&[b"PSUBSCRIBE", pattern(prefix).as_bytes()])
            .await
    }

    /// Makes calls. Their answers are numbers, and are passed over. A call that fails is reported by [`Push::Refused`].
    pub(crate) async fn call(&mut self, calls: &[Vec<u8>]) -> io::Result<()> {
        self.parser.replies += calls.len();
        timeout(TIMEOUT, self.put(&calls.concat())).await?
    }

    /// Redis would answer an error to a command without arguments, so it is not sent.
    async fn command(&mut self, command: &[&[u8]]) -> io::Result<()> {
        if command.len() < 2 {
            return Ok(());
        }
        timeout(TIMEOUT, self.send(command)).await?
    }

    async fn send(&mut self, command: &[&[u8]]) -> io::Result<()> {
        self.put(&packed(command)).await
    }

    async fn put(&mut self, out: &[u8]) -> io::Result<()> {
        self.stream.write_all(out).await?;
        // TLS may have buffered a part of it.
        self.stream.flush().await
    }

    /// The first line of an answer that is not an error.
    async fn line(&mut self) -> io::Result<Bytes> {
        match self.any_line().await? {
            line if line.starts_with(b"-") => Err(server_error(&line)),
            line => Ok(line),
        }
    }

    /// The first line of any answer.
    async fn any_line(&mut self) -> io::Result<Bytes> {
        loop {
            match self.parser.line()? {
                Some(line) => return Ok(line),
                None => self.fill().await?,
            }
        }
    }

    /// Reads an answer that is not an error.
    async fn skip_reply(&mut self) -> io::Result<()> {
        let mut values = 1;
        while values > 0 {
            let line = self.line().await?;
            values -= 1;
            let length = || number(&line[1..]);
            match line.first() {
                Some(b'*' | b'~' | b'>') => values += length()?,
                Some(b'%') => values += 2 * length()?,
                Some(b'$' | b'=') => {
                    let length = length()? + 2;
                    if length > MAX_LINE {
                        return Err(protocol("a text without end"));
                    }
                    while self.parser.buffer.len() < length {
                        self.fill().await?;
                    }
                    self.parser.buffer.advance(length);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// All messages that one read from the connection brings, at least one. Cancel-safe.
    pub(crate) async fn read(&mut self, out: &mut Vec<Push>) -> io::Result<()> {
        loop {
            while let Some(push) = self.parser.next()? {
                out.push(push);
            }
            if !out.is_empty() {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        self.parser.buffer.reserve(READ_BYTES);
        match self.stream.read_buf(&mut self.parser.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// A command as Redis takes it.
fn packed(command: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        out.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        out.extend_from_slice(part);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// The pattern of Redis for a prefix, with each character escaped, and any text after it.
pub(crate) fn pattern(prefix: &str) -> String {
    let mut pattern = String::new();
    for c in prefix.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern.push('*');
    pattern
}

/// Splits the bytes that were read into messages.
struct Parser {
    buffer: BytesMut,
    max_payload: usize,
    /// Bytes of an oversized element that have not arrived yet.
    skip: usize,
    /// Elements after it in the same message.
    skip_elements: usize,
    /// Replies to calls that have not arrived yet.
    replies: usize,
}

/// One element of an array, by its place in the buffer.
enum Element {
    Bytes { from: usize, to: usize },
    Number,
    Oversized { from: usize, bytes: usize },
}

impl Parser {
    fn new(max_payload: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            max_payload,
            skip: 0,
            skip_elements: 0,
            replies: 0,
        }
    }

    /// The next complete message; none until more is read.
    fn next(&mut self) -> io::Result<Option<Push>> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip -= skipped;
            if self.skip > 0 || self.buffer.is_empty() {
                return Ok(None);
            }
            if self.skip_elements > 0 {
                if !self.skip_element()? {
                    return Ok(None);
                }
                continue;
            }
            match self.cut()? {
                Cut::Incomplete => return Ok(None),
                Cut::Push(push) => return Ok(Some(push)),
                Cut::Uninteresting => {}
            }
        }
    }

    /// Starts to skip the next element, as soon as its length has arrived.
    fn skip_element(&mut self) -> io::Result<bool> {
        let Some((line, behind)) = self.line_at(0)? else {
            return Ok(false);
        };
        self.skip = behind;
        if self.buffer[0] == b'$' {
            self.skip += number(&self.buffer[1..line])? + 2;
        }
        self.skip_elements -= 1;
        Ok(true)
    }

    /// Removes one reply from the front.
    fn cut(&mut self) -> io::Result<Cut> {
        let Some((line, mut at)) = self.line_at(0)? else {
            return Ok(Cut::Incomplete);
        };
        let count = match self.buffer[0] {
            b'>' => number(&self.buffer[1..line])?,
            // Redis answers the calls before any ping.
            b'-' if self.replies > 0 => {
                self.replies -= 1;
                let error = self.buffer.split_to(at).freeze().slice(1..line);
                return Ok(Cut::Push(Push::Refused { error }));
            }
            b'+' if self.buffer.starts_with(b"+PONG\r\n") => {
                self.buffer.advance(at);
                return Ok(Cut::Push(Push::Pong));
            }
            // A Redis that cannot write to its disk refuses writes, and also pings. It refuses no other command of this
            // connection.
            b'-' if self.buffer.starts_with(b"-MISCONF ") => {
                self.buffer.advance(at);
                return Ok(Cut::Push(Push::Pong));
            }
            // A node of a cluster refuses subscriptions to partitions that it does not hold.
            b'-' if self.buffer.starts_with(b"-MOVED ") => {
                let error = self.buffer.split_to(at).freeze().slice(1..line);
                return Ok(Cut::Push(Push::Refused { error }));
            }
            b'-' => return Err(server_error(&self.buffer[..line])),
            // The replies to the commands of a transaction follow theirs, and are like any others.
            b'+' | b':' | b'*' => {
                self.replies = self.replies.saturating_sub(1);
                self.buffer.advance(at);
                return Ok(Cut::Uninteresting);
            }
            _ => return Err(protocol("an unexpected reply")),
        };
        // Messages, subscriptions and their ends have three or four elements.
        if !(3..=4).contains(&count) {
            return Err(protocol("an array of unexpected length"));
        }
        let mut elements = Vec::with_capacity(4);
        for _ in 0..count {
            let Some((element, behind)) = self.element(at)? else {
                return Ok(Cut::Incomplete);
            };
            at = behind;
            let oversized = matches!(element, Element::Oversized { .. });
            elements.push(element);
            if oversized {
                self.skip_elements = count - elements.len();
                break;
            }
        }
        self.take(&elements, at)
    }

    fn take(&mut self, elements: &[Element], behind: usize) -> io::Result<Cut> {
        if let Some(Element::Oversized { from, bytes }) = elements.last() {
            let head = self.buffer.split_to(*from).freeze();
            self.skip = bytes + 2;
            let Some(Element::Bytes { from, to }) = elements.iter().rev().nth(1) else {
                return Err(protocol("an oversized name"));
            };
            let channel = head.slice(*from..*to);
            return Ok(Cut::Push(Push::Oversized { channel }));
        }
        let whole = self.buffer.split_to(behind).freeze();
        let part = |index: usize| match elements.get(index) {
            Some(Element::Bytes { from, to }) => whole.slice(*from..*to),
            _ => Bytes::new(),
        };
        let push = match (&*part(0), elements.len()) {
            (b"message" | b"smessage", 3) => Push::Message {
                channel: part(1),
                payload: part(2),
            },
            (b"pmessage", 4) => Push::Message {
                channel: part(2),
                payload: part(3),
            },
            (b"subscribe" | b"psubscribe" | b"ssubscribe", 3) => {
                Push::Subscribed { channel: part(1) }
            }
            (b"punsubscribe" | b"sunsubscribe", 3) => Push::Unsubscribed { channel: part(1) },
            _ => return Ok(Cut::Uninteresting),
        };
        Ok(Cut::Push(push))
    }

    fn element(&self, at: usize) -> io::Result<Option<(Element, usize)>> {
        let Some((line, from)) = self.line_at(at)? else {
            return Ok(None);
        };
        match self.buffer[at] {
            b':' => Ok(Some((Element::Number, from))),
            b'_' => Ok(Some((Element::Bytes { from, to: from }, from))),
            b'$' => {
                let bytes = number(&self.buffer[at + 1..line])?;
                if bytes > self.max_payload {
                    return Ok(Some((Element::Oversized { from, bytes }, from)));
                }
                let to = from + bytes;
                let complete = self.buffer.len() >= to + 2;
                Ok(complete.then_some((Element::Bytes { from, to }, to + 2)))
            }
            _ => Err(protocol("an unexpected element")),
        }
    }

    /// The end of the line that begins here, and the beginning of the next one.
    fn line_at(&self, at: usize) -> io::Result<Option<(usize, usize)>> {
        let rest = &self.buffer[at.min(self.buffer.len())..];
        match rest
            .windows(2)
            .take(MAX_LINE)
            .position(|pair| pair == b"\r\n")
        {
            Some(length) => Ok(Some((at + length, at + length + 2))),
            None if rest.len() > MAX_LINE => Err(protocol("a line without end")),
            None => Ok(None),
        }
    }

    fn line(&mut self) -> io::Result<Option<Bytes>> {
        Ok(self.line_at(0)?.map(|(line, next)| {
            let mut line_and_end = self.buffer.split_to(next).freeze();
            line_and_end.split_to(line)
        }))
    }
}

enum Cut {
    Incomplete,
    Push(Push),
    Uninteresting,
}

fn number(digits: &[u8]) -> io::Result<usize> {
    let text = std::str::from_utf8(digits).ok();
    let number = text.and_then(|text| text.parse().ok());
    number.ok_or_else(|| protocol("a length that is no number"))
}

fn protocol(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Whether a command is not allowed, or does not exist. Other errors pass: a script may be running, for example.
fn is_refusal(line: &[u8]) -> bool {
    line.starts_with(b"-NOPERM") || line.starts_with(b"-ERR")
}

/// Why a working connection is given up.
pub(crate) fn moved() -> io::Error {
    io::Error::other("the master is another")
}

fn server_error(line: &[u8]) -> io::Error {
    io::Error::other(String::from_utf8_lossy(line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(channel: &'static str, payload: &'static str) -> Push {
        Push::Message {
            channel: channel.into(),
            payload: payload.into(),
        }
    }

    const STREAM: &str = ">3\r\n$10\r\nssubscribe\r\n$1\r\na\r\n:1\r\n\
        >3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$2\r\nhi\r\n+PONG\r\n\
        >4\r\n$8\r\npmessage\r\n$2\r\nb*\r\n$2\r\nbc\r\n$4\r\n\r\n\r\n\r\n\
        >3\r\n$7\r\nmessage\r\n$1\r\na\r\n$15\r\n0123456789abcde\r\n\
        >4\r\n$8\r\npmessage\r\n$2\r\nb*\r\n$13\r\nb0123456789ab\r\n$2\r\nhi\r\n\
        -MISCONF Errors writing\r\n\
        >3\r\n$12\r\npunsubscribe\r\n_\r\n:0\r\n\
        >3\r\n$12\r\npunsubscribe\r\n$2\r\nb*\r\n:0\r\n\
        >3\r\n$7\r\nmessage\r\n$1\r\na\r\n$0\r\n\r\n";

    #[test]
    fn messages_are_parsed_wherever_reads_end() {
        for step in 1..STREAM.len() {
            let mut parser = Parser::new(12);
            let mut found = Vec::new();
            for chunk in STREAM.as_bytes().chunks(step) {
                parser.buffer.extend_from_slice(chunk);
                while let Some(push) = parser.next().unwrap() {
                    found.push(push);
                }
            }
            let expected = [
                Push::Subscribed {
                    channel: "a".into(),
                },
                push("a", "hi"),
                Push::Pong,
                push("bc", "\r\n\r\n"),
                Push::Oversized {
                    channel: "a".into(),
                },
                Push::Oversized {
                    channel: "b*".into(),
                },
                Push::Pong,
                Push::Unsubscribed { channel: "".into() },
                Push::Unsubscribed {
                    channel: "b*".into(),
                },
                push("a", ""),
            ];
            assert_eq!(found, expected, "reads of {step} bytes");
            assert!(parser.buffer.len() < 16, "nothing is kept");
        }
    }

    #[test]
    fn a_refused_call_ends_no_subscription() {
        let mut parser = Parser::new(100);
        let mut next = |replies: usize, text: &'static str| {
            parser.replies += replies;
            parser.buffer.extend_from_slice(text.as_bytes());
            parser.next()
        };
        let step =
            "+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n>3\r\n$10\r\npsubscribe\r\n$1\r\na\r\n:1\r\n";
        let channel = "a".into();
        assert_eq!(next(5, step).unwrap(), Some(Push::Subscribed { channel }));
        let error = "ERR no".into();
        assert_eq!(
            next(0, "-ERR no\r\n").unwrap(),
            Some(Push::Refused { error })
        );
        let error = "MISCONF no".into();
        assert_eq!(
            next(2, ":1\r\n-MISCONF no\r\n").unwrap(),
            Some(Push::Refused { error })
        );
        // This error does not belong to a call.
        assert!(next(0, "-ERR no\r\n").is_err());
    }

    #[test]
    fn other_texts_are_errors() {
        for nonsense in [
            "-ERR no\r\n",
            ">x\r\n",
            ">9\r\n",
            ">3\r\n!\r\n",
            "hello\r\n",
            ">3\r\n$x\r\n",
        ] {
            let mut parser = Parser::new(100);
            parser.buffer.extend_from_slice(nonsense.as_bytes());
            assert!(parser.next().is_err(), "{nonsense}");
        }
    }
}
