//! A connection to Redis that sends any bytes as commands, also in a pipeline.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream},
    net::TcpStream,
};

/// One connection.
#[derive(Debug)]
pub struct Commands {
    socket: BufStream<TcpStream>,
}

/// An answer, by its first byte in RESP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+`
    Text(String),
    /// `-`
    Error(String),
    /// `:`
    Integer(i64),
    /// `$`
    Bytes(Vec<u8>),
    /// `$-1` or `*-1`
    Nil,
    /// `*`
    Array(Vec<Self>),
}

impl Commands {
    /// Connects to Redis.
    ///
    /// # Errors
    ///
    /// If that is not possible.
    pub async fn connect(to: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(to).await?;
        socket.set_nodelay(true)?;
        Ok(Self {
            socket: BufStream::new(socket),
        })
    }

    /// Sends commands in one pipeline and returns their answers.
    pub async fn call_all(&mut self, calls: &[Vec<&[u8]>]) -> io::Result<Vec<Reply>> {
        for words in calls {
            self.send(words).await?;
        }
        self.socket.flush().await?;
        let mut replies = Vec::new();
        for _ in calls {
            replies.push(self.reply().await?);
        }
        Ok(replies)
    }

    /// Raw PUBLISH of many messages (channel and payload) in one pipeline. Each needs a subscriber.
    pub async fn publish_all(&mut self, messages: &[(String, String)]) {
        let raw: Vec<_> = messages
            .iter()
            .map(|(channel, _)| format!("sse:{channel}"))
            .collect();
        let calls: Vec<_> = raw
            .iter()
            .zip(messages)
            .map(|(raw, (_, payload))| vec![&b"PUBLISH"[..], raw.as_bytes(), payload.as_bytes()])
            .collect();
        let replies = self.call_all(&calls).await.expect("Redis answers");
        for reply in replies {
            assert!(
                matches!(reply, Reply::Integer(1..)),
                "nobody listens: {reply:?}"
            );
        }
    }

    async fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        let count = format!("*{}\r\n", words.len());
        self.socket.write_all(count.as_bytes()).await?;
        for word in words {
            let length = format!("${}\r\n", word.len());
            self.socket.write_all(length.as_bytes()).await?;
            self.socket.write_all(word).await?;
            self.socket.write_all(b"\r\n").await?;
        }
        Ok(())
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.socket.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        let number = || line[1..].parse::<i64>().map_err(io::Error::other);
        match line.as_bytes().first() {
            Some(b'+') => Ok(Reply::Text(line[1..].to_owned())),
            Some(b'-') => Ok(Reply::Error(line[1..].to_owned())),
            Some(b':') => Ok(Reply::Integer(number()?)),
            Some(b'$' | b'*') if number()? < 0 => Ok(Reply::Nil),
            Some(b'$') => {
                let length = usize::try_from(number()?).map_err(io::Error::other)?;
                let mut bytes = vec![0; length + 2];
                self.socket.read_exact(&mut bytes).await?;
                bytes.truncate(length);
                Ok(Reply::Bytes(bytes))
            }
            Some(b'*') => {
                let mut replies = Vec::new();
                for _ in 0..number()? {
                    replies.push(Box::pin(self.reply()).await?);
                }
                Ok(Reply::Array(replies))
            }
            _ => Err(io::Error::other(format!("not a reply: {line:?}"))),
        }
    }

    /// Sends a command and returns its answer.
    pub async fn call(&mut self, words: &[&[u8]]) -> io::Result<Reply> {
        self.send(words).await?;
        self.socket.flush().await?;
        self.reply().await
    }

    /// Sends a command of words without spaces. Its answer must not be an error.
    pub async fn run(&mut self, command: &str) -> Reply {
        let words: Vec<_> = command.split(' ').map(str::as_bytes).collect();
        match self.call(&words).await {
            Ok(Reply::Error(error)) => panic!("{command}: {error}"),
            Ok(reply) => reply,
            Err(error) => panic!("{command}: {error}"),
        }
    }

    /// A raw PUBLISH, as any backend would send it. Returns the number of receivers.
    pub async fn publish(&mut self, channel: &str, payload: impl AsRef<[u8]>) -> i64 {
        let channel = format!("sse:{channel}");
        let words = [b"PUBLISH", channel.as_bytes(), payload.as_ref()];
        match self.call(&words).await {
            Ok(Reply::Integer(receivers)) => receivers,
            other => panic!("PUBLISH {channel}: {other:?}"),
        }
    }
}

/// The call that appends a payload to a channel's history.
pub fn append_call<'a>(channel: &'a str, payload: &'a str) -> [&'a [u8]; 5] {
    let (channel, payload) = (channel.as_bytes(), payload.as_bytes());
    [b"FCALL", b"sse_publish", b"0", channel, payload]
}

impl Reply {
    /// The text of a bulk or simple reply.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            other => panic!("not a text: {other:?}"),
        }
    }

    /// The number of an integer reply.
    pub fn integer(&self) -> i64 {
        match self {
            Self::Integer(integer) => *integer,
            other => panic!("not an integer: {other:?}"),
        }
    }

    /// The parts of an array.
    pub fn array(&self) -> &[Self] {
        match self {
            Self::Array(replies) => replies,
            other => panic!("not an array: {other:?}"),
        }
    }
}
