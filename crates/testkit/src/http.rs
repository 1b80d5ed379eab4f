//! A minimal HTTP/1.1 client on plain sockets. A test can also send invalid bytes with it.

use std::{net::SocketAddr, str};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A larger head of an answer is refused.
const MAX_HEAD: usize = 64 * 1024;

/// Status and header fields of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    /// The status code.
    pub status: u16,
    fields: Vec<(String, String)>,
}

impl Head {
    /// The value of a header field. The case of the name is ignored.
    pub fn field(&self, name: &str) -> Option<&str> {
        let same = |(field, _): &&(String, String)| field.eq_ignore_ascii_case(name);
        self.fields.iter().find(same).map(|(_, value)| &**value)
    }

    /// The head at the start of `bytes` and its length, or `None` while it is incomplete.
    ///
    /// # Errors
    ///
    /// If the bytes are not the start of an HTTP/1.1 answer.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>> {
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            ensure!(bytes.len() < MAX_HEAD, "endless head");
            return Ok(None);
        };
        let mut lines = str::from_utf8(&bytes[..end])?.split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line
            .strip_prefix("HTTP/1.")
            .and_then(|rest| rest.get(2..5)?.parse().ok())
            .with_context(|| format!("not a status line: {status_line:?}"))?;
        let fields = lines
            .map(|line| {
                let (name, value) = line
                    .split_once(':')
                    .with_context(|| format!("not a header field: {line:?}"))?;
                Ok((name.to_owned(), value.trim().to_owned()))
            })
            .collect::<Result<_>>()?;
        Ok(Some((Self { status, fields }, end + 4)))
    }

    /// How the end of the body is marked.
    ///
    /// # Errors
    ///
    /// If a length is not a number, or the coding is not known.
    pub fn framing(&self) -> Result<Framing> {
        if self.status == 204 || self.status == 304 {
            return Ok(Framing(Body::Length(0)));
        }
        if let Some(coding) = self.field("transfer-encoding") {
            ensure!(coding.eq_ignore_ascii_case("chunked"), "coding {coding:?}");
            return Ok(Framing(Body::Chunked(Chunk::Size(Size::default()))));
        }
        match self.field("content-length") {
            Some(length) => Ok(Framing(Body::Length(length.parse()?))),
            None => Ok(Framing(Body::UntilClose)),
        }
    }
}

/// How a body is encoded in the bytes of a connection.
#[derive(Debug)]
pub struct Framing(Body);

/// The body that is still missing.
#[derive(Debug)]
enum Body {
    Chunked(Chunk),
    /// This many bytes are missing.
    Length(u64),
    UntilClose,
}

/// The next part of a chunked body.
#[derive(Debug)]
enum Chunk {
    /// The rest of a size line.
    Size(Size),
    /// This many bytes of the chunk are missing.
    Data(u64),
    /// The line end after the data. This many bytes of it are missing.
    DataEnd(u8),
    /// The trailer. This many bytes of its current line have been read.
    Trailer(usize),
    Done,
}

/// The part of a chunk's size line that has been read.
#[derive(Debug, Default)]
struct Size {
    value: Option<u64>,
    /// After a semicolon, the rest of the line is ignored.
    in_extension: bool,
    bytes: u16,
}

impl Size {
    fn push(&mut self, byte: u8) -> Result<()> {
        self.bytes += 1;
        ensure!(self.bytes < 1024, "endless chunk size");
        let digit = char::from(byte).to_digit(16);
        match (digit, byte) {
            _ if self.in_extension => {}
            (Some(digit), _) => {
                let value = self.value.unwrap_or_default().checked_mul(16);
                self.value = Some(value.context("endless chunk")? + u64::from(digit));
            }
            (None, b';') => self.in_extension = true,
            (None, b' ' | b'\t' | b'\r') => {}
            (None, _) => bail!("not a chunk size: {:?}", char::from(byte)),
        }
        Ok(())
    }
}

impl Framing {
    /// Whether the body is complete.
    pub fn is_done(&self) -> bool {
        matches!(self.0, Body::Length(0) | Body::Chunked(Chunk::Done))
    }

    /// Whether the body is complete if the connection closes now.
    pub fn may_close(&self) -> bool {
        self.is_done() || matches!(self.0, Body::UntilClose)
    }

    /// Passes the body's share of `bytes` to `on`.
    ///
    /// # Errors
    ///
    /// If the bytes are not chunks.
    pub fn decode(&mut self, bytes: &[u8], mut on: impl FnMut(&[u8])) -> Result<()> {
        match &mut self.0 {
            Body::UntilClose => on(bytes),
            Body::Length(left) => {
                let taken = take(bytes, *left);
                *left -= taken.len() as u64;
                on(taken);
            }
            Body::Chunked(chunk) => chunk.decode(bytes, on)?,
        }
        Ok(())
    }
}

impl Chunk {
    fn decode(&mut self, mut rest: &[u8], mut on: impl FnMut(&[u8])) -> Result<()> {
        while let Some((&byte, after)) = rest.split_first() {
            match self {
                Self::Data(left) => {
                    let taken = take(rest, *left);
                    on(taken);
                    rest = &rest[taken.len()..];
                    *left -= taken.len() as u64;
                    if *left == 0 {
                        *self = Self::DataEnd(2);
                    }
                    continue;
                }
                Self::Size(size) if byte == b'\n' => {
                    *self = match size.value.context("a chunk without size")? {
                        0 => Self::Trailer(0),
                        size => Self::Data(size),
                    };
                }
                Self::Size(size) => size.push(byte)?,
                Self::DataEnd(left) => {
                    ensure!(
                        byte == [b'\n', b'\r'][usize::from(*left) - 1],
                        "chunk too long"
                    );
                    *left -= 1;
                    if *left == 0 {
                        *self = Self::Size(Size::default());
                    }
                }
                Self::Trailer(read) => match byte {
                    b'\n' if *read == 0 => *self = Self::Done,
                    b'\n' => *read = 0,
                    b'\r' => {}
                    _ => *read += 1,
                },
                Self::Done => bail!("bytes after the body: {:?}", String::from_utf8_lossy(rest)),
            }
            rest = after;
        }
        Ok(())
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status and header fields.
    pub head: Head,
    /// The body, decoded.
    pub body: String,
}

/// Sends `request` byte for byte over a new connection, and reads the whole answer.
///
/// # Errors
///
/// If there is no connection, no answer, or no valid HTTP/1.1 answer. There is no time limit.
pub async fn request(to: SocketAddr, request: &[u8]) -> Result<Response> {
    let mut socket = TcpStream::connect(to).await?;
    // A server may answer and close before it has read everything, which fails the write.
    let written = socket.write_all(request).await;
    let mut received = Vec::new();
    let (head, mut at) = loop {
        if let Some(parsed) = Head::parse(&received)? {
            break parsed;
        }
        let read = socket.read_buf(&mut received).await.context("no answer")?;
        ensure!(read > 0, "closed without an answer (request: {written:?})");
    };
    let mut framing = match request.starts_with(b"HEAD ") {
        // RFC 9110, section 9.3.2: the length is that of the body that GET would return. HEAD returns none.
        true => Framing(Body::Length(0)),
        false => head.framing()?,
    };
    let mut body = Vec::new();
    loop {
        framing.decode(&received[at..], |bytes| body.extend_from_slice(bytes))?;
        if framing.is_done() {
            break;
        }
        received.clear();
        at = 0;
        if socket.read_buf(&mut received).await? == 0 {
            ensure!(framing.may_close(), "the body was cut");
            break;
        }
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Response { head, body })
}

fn take(bytes: &[u8], at_most: u64) -> &[u8] {
    let length = usize::try_from(at_most).unwrap_or(usize::MAX);
    &bytes[..bytes.len().min(length)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes `bytes` cut into pieces of `size`.
    fn decode(framing: &str, bytes: &[u8], size: usize) -> Result<(String, bool)> {
        let head = format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n");
        let (head, length) = Head::parse(head.as_bytes())?.context("incomplete")?;
        assert_eq!(length, framing.len() + 21);
        let mut framing = head.framing()?;
        let mut body = Vec::new();
        for piece in bytes.chunks(size) {
            framing.decode(piece, |bytes| body.extend_from_slice(bytes))?;
        }
        Ok((String::from_utf8(body)?, framing.is_done()))
    }

    #[test]
    fn bodies_are_equal_for_all_sizes_of_pieces() {
        for size in 1..20 {
            let chunked = b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: 1\r\n\r\n";
            let (body, done) = decode("Transfer-Encoding: chunked", chunked, size).unwrap();
            assert_eq!((&*body, done), ("hello world", true));
            let (body, done) = decode("Content-Length: 5", b"hello", size).unwrap();
            assert_eq!((&*body, done), ("hello", true));
            let (body, done) = decode("Connection: close", b"hello", size).unwrap();
            assert_eq!((&*body, done), ("hello", false));
        }
    }

    #[test]
    fn a_cut_chunked_body_is_not_done() {
        let (_, done) = decode("Transfer-Encoding: chunked", b"5\r\nhello\r\n", 64).unwrap();
        assert!(!done);
        assert!(decode("Transfer-Encoding: chunked", b"5\r\nhelloX\r\n", 64).is_err());
        assert!(decode("Transfer-Encoding: chunked", b"x\r\n", 64).is_err());
    }
}
