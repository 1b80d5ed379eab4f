//! `Unsent`: bytes on their way to a socket, framed as HTTP asks for.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
};

use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::net::TcpStream;

/// Slices handed to one system call at most; the kernel's own limit is 1024.
const MAX_SLICES: usize = 64;
/// `\r\n` after a chunk (RFC 9112, 7.1).
const CHUNK_END: &[u8] = b"\r\n";
/// The last chunk and the end of the body.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// HTTP/1.1: by chunks, so that a client can distinguish an end from a cut.
    Chunked,
    /// HTTP/1.0: by the end of the connection. Also for a pipe, because hyper frames its bytes.
    Bare,
}

impl Framing {
    /// Part of a body, in one piece.
    pub(crate) fn frame(self, body: &Bytes) -> Bytes {
        match self {
            Self::Bare => body.clone(),
            Self::Chunked => [&size_line(body.len()), &body[..], CHUNK_END]
                .concat()
                .into(),
        }
    }
}

/// Pieces that are shared with other streams, not copied.
#[derive(Debug, Default)]
pub(crate) struct Unsent {
    pieces: VecDeque<Bytes>,
    /// Bytes of the first piece that were written. Its memory is kept as a whole.
    begun: usize,
}

impl Unsent {
    /// Bytes that are framed already.
    pub(crate) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }

    /// Part of a body.
    pub(crate) fn push_body(&mut self, framing: Framing, blocks: &[Bytes]) {
        let bytes = blocks.iter().map(Bytes::len).sum();
        // An empty chunk would end the body.
        let framed = framing == Framing::Chunked && bytes > 0;
        if framed {
            self.push(size_line(bytes).into());
        }
        self.pieces.extend(blocks.iter().cloned());
        if framed {
            self.push(Bytes::from_static(CHUNK_END));
        }
    }

    /// The end of the body, which a client can distinguish from a cut.
    pub(crate) fn push_end(&mut self, framing: Framing) {
        if framing == Framing::Chunked {
            self.push(Bytes::from_static(LAST_CHUNK));
        }
    }

    /// The next piece.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        self.pieces.pop_front()
    }

    /// Visits each piece, with the bytes of memory that it keeps.
    pub(crate) fn see(&self, see: &mut dyn FnMut(&Bytes, usize)) {
        let mut begun = self.begun;
        for piece in &self.pieces {
            see(piece, piece.len() + std::mem::take(&mut begun));
        }
    }

    /// Bytes that are not written.
    pub(crate) fn bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// Bytes of memory that are kept for them.
    pub(crate) fn kept(&self) -> usize {
        self.bytes() + self.begun
    }

    /// Writes until nothing is left.
    ///
    /// # Errors
    /// `WouldBlock` when the socket takes no more for now. Any other error is its end.
    pub(crate) fn write_to(&mut self, socket: &TcpStream) -> io::Result<()> {
        while let Some(first) = self.pieces.front() {
            let written = if self.pieces.len() == 1 {
                send(socket, first)?
            } else {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = self.pieces.len().min(MAX_SLICES);
                for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
                    *slice = IoSlice::new(piece);
                }
                socket.try_write_vectored(&slices[..count])?
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.advance(written);
        }
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.pieces.front_mut() {
            if written < first.len() {
                first.advance(written);
                self.begun += written;
                return;
            }
            written -= first.len();
            self.pieces.pop_front();
            self.begun = 0;
        }
    }
}

/// Calls the system directly. tokio would first look up whether it considers the socket ready, which costs a delivery a
/// cache miss or two. tokio is used only when the socket takes nothing, so that it learns this.
fn send(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    match SockRef::from(socket).send(bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.try_write(bytes),
        sent => sent,
    }
}

fn size_line(bytes: usize) -> Vec<u8> {
    format!("{bytes:x}\r\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest(unsent: &Unsent) -> Vec<u8> {
        unsent.pieces.iter().flatten().copied().collect()
    }

    #[test]
    fn unwritten_bytes_remain() {
        let blocks: Vec<Bytes> = (0..200).map(|n| Bytes::from(format!("<{n}>"))).collect();
        let body: Bytes = blocks.concat().into();
        let framed = Framing::Chunked.frame(&body);
        assert!(framed.starts_with(format!("{:x}\r\n<0>", body.len()).as_bytes()));
        for step in [1, 3, 7, 1000] {
            let mut unsent = Unsent::default();
            unsent.push(Bytes::from_static(b"head"));
            unsent.push_body(Framing::Chunked, &blocks);
            unsent.push_end(Framing::Chunked);
            let whole = [b"head", &framed[..], LAST_CHUNK].concat();
            let lengths: Vec<_> = unsent.pieces.iter().map(Bytes::len).collect();
            // A piece is kept as a whole until all of it is written.
            let kept_after = |written: usize| {
                let ends = lengths.iter().scan(0, |end, length| {
                    *end += length;
                    Some(*end)
                });
                whole.len() - ends.take_while(|end| *end <= written).last().unwrap_or(0)
            };
            let mut written = 0;
            while written < whole.len() {
                assert!(rest(&unsent) == whole[written..], "steps of {step}");
                let now = step.min(whole.len() - written);
                unsent.advance(now);
                written += now;
                let mut kept = 0;
                unsent.see(&mut |_, bytes| kept += bytes);
                assert_eq!(kept, unsent.kept());
                assert_eq!(kept, kept_after(written));
            }
            assert!(unsent.pieces.is_empty());
            assert_eq!(unsent.kept(), 0);
        }
    }

    #[test]
    fn an_empty_chunk_would_end_the_body_and_is_never_written() {
        let mut unsent = Unsent::default();
        unsent.push_body(Framing::Chunked, &[]);
        unsent.push_body(Framing::Chunked, &[Bytes::new()]);
        assert_eq!(rest(&unsent), b"");
    }
}
