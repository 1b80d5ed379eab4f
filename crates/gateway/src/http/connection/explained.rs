//! `Explained`: adds a body with the reason to hyper's own refusals of a request head.
//!
//! If hyper cannot read a head, it answers with nothing but a status, before any route sees the request. Such an answer
//! passes here as one write, and is replaced.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBufCursor, Write};

use crate::http::error::Problem;

/// The header of hyper's own answers, which have no body. Answers of the routes have one.
const NO_BODY: &[u8] = b"content-length: 0\r\n";

/// A connection of HTTP/1.
pub(crate) struct Explained<T> {
    io: T,
    /// The unsent rest of an answer that replaced one of hyper's.
    rest: Vec<u8>,
}

impl<T> Explained<T> {
    pub(crate) fn new(io: T) -> Self {
        Self {
            io,
            rest: Vec::new(),
        }
    }

    pub(crate) fn into_inner(self) -> T {
        self.io
    }
}

/// The answer that replaces this one, if it is one of hyper's own.
fn explain(bytes: &[u8]) -> Option<Vec<u8>> {
    let status = bytes.strip_prefix(b"HTTP/1.1 4")?.first_chunk::<3>()?;
    let problem = match status {
        b"31 " | b"14 " => Problem::HeaderTooLarge,
        b"00 " => Problem::BadHead,
        _ => return None,
    };
    let place = find(bytes, NO_BODY)?;
    if !bytes.ends_with(b"\r\n\r\n") || find(bytes, b"content-type:").is_some() {
        return None;
    }
    let body = problem.to_json().to_string();
    let headers = format!(
        "content-type: application/problem+json\r\ncache-control: no-store\r\ncontent-length: {}\r\n",
        body.len()
    );
    let (before, after) = bytes.split_at(place);
    Some(
        [
            before,
            headers.as_bytes(),
            &after[NO_BODY.len()..],
            body.as_bytes(),
        ]
        .concat(),
    )
}

/// The position of `wanted`.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut windows = bytes.windows(wanted.len());
    windows.position(|window| window == wanted)
}

impl<T: Write + Unpin> Explained<T> {
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => drop(self.rest.drain(..written)),
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Read + Unpin> Read for Explained<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl<T: Write + Unpin> Write for Explained<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        match explain(bytes) {
            None => Pin::new(&mut self.io).poll_write(cx, bytes),
            Some(answer) => {
                self.rest = answer;
                // The rest is sent when hyper flushes.
                if let Poll::Ready(Err(error)) = self.poll_rest(cx) {
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // An answer without a body is one slice.
        if let [bytes] = slices {
            return self.poll_write(cx, bytes);
        }
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_without_a_body_are_explained() {
        let bare = |status: &str| {
            format!(
                "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n"
            )
        };
        for (status, code) in [
            ("431 Request Header Fields Too Large", "header_too_large"),
            ("414 URI Too Long", "header_too_large"),
            ("400 Bad Request", "bad_head"),
        ] {
            let answer = explain(bare(status).as_bytes()).unwrap();
            let answer = String::from_utf8(answer).unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(body.contains(&format!("\"code\":\"{code}\"")), "{answer}");
            assert!(
                head.contains(&format!("content-length: {}\r\n", body.len())),
                "{answer}"
            );
            assert_eq!(answer.matches("content-length").count(), 1, "{answer}");
        }
        let with_body =
            "HTTP/1.1 400 Bad Request\r\ncontent-type: x\r\ncontent-length: 2\r\n\r\n{}";
        for other in [
            bare("200 OK"),
            bare("404 Not Found"),
            with_body.to_owned(),
            "data: HTTP/1.1 400 \n\n".to_owned(),
        ] {
            assert!(explain(other.as_bytes()).is_none(), "{other}");
        }
    }
}
