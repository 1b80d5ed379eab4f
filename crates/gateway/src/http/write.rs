//! `Chunk`: one batch on its way to a socket, framed as HTTP asks for.

use std::io::{self, IoSlice, Write as _};

use bytes::Bytes;
use tokio::net::TcpStream;

/// Slices handed to one system call at most; the kernel's own limit is 1024.
const MAX_SLICES: usize = 64;
/// `\r\n` behind a chunk, RFC 9112 section 7.1.
const CHUNK_END: &[u8] = b"\r\n";
/// The last chunk and the end of the body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// How a body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// HTTP/1.1: by chunks, so that a client can tell an end from a cut.
    Chunked,
    /// HTTP/1.0: by the end of the connection.
    Close,
}

/// Bytes of which some are written. The blocks are shared, not copied.
pub(super) struct Chunk<'a> {
    /// The chunk's size line, or what stands before it.
    head: Vec<u8>,
    blocks: &'a [Bytes],
    tail: &'static [u8],
    written: usize,
    total: usize,
}

impl<'a> Chunk<'a> {
    /// `before` is sent as it is; `blocks` as one chunk behind it.
    pub(super) fn new(framing: Framing, before: Vec<u8>, blocks: &'a [Bytes]) -> Self {
        let bytes: usize = blocks.iter().map(Bytes::len).sum();
        let (mut head, mut tail) = (before, &b""[..]);
        if framing == Framing::Chunked && bytes > 0 {
            write!(head, "{bytes:x}\r\n").expect("writing to a Vec cannot fail");
            tail = CHUNK_END;
        }
        let total = head.len() + bytes + tail.len();
        Self {
            head,
            blocks,
            tail,
            written: 0,
            total,
        }
    }

    pub(super) fn is_written(&self) -> bool {
        self.written == self.total
    }

    /// Writes what the socket takes now.
    ///
    /// # Errors
    /// `WouldBlock` when it takes no more; anything else is its end.
    pub(super) fn write(&mut self, socket: &TcpStream) -> io::Result<()> {
        while !self.is_written() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let count = self.remaining(&mut slices);
            match socket.try_write_vectored(&slices[..count])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                bytes => self.written += bytes,
            }
        }
        Ok(())
    }

    /// The first slices that are not written; how many there are.
    fn remaining<'s>(&'s self, slices: &mut [IoSlice<'s>; MAX_SLICES]) -> usize {
        let blocks = self.blocks.iter().map(|block| &block[..]);
        let all = [&self.head[..]]
            .into_iter()
            .chain(blocks)
            .chain([self.tail]);
        let (mut skip, mut count) = (self.written, 0);
        for slice in all {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            if count == MAX_SLICES {
                break;
            }
            slices[count] = IoSlice::new(&slice[skip..]);
            skip = 0;
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_what_was_not_written() {
        let blocks: Vec<Bytes> = (0..200).map(|n| Bytes::from(format!("<{n}>"))).collect();
        let whole: Vec<u8> = blocks.concat();
        let expected = [
            b"head",
            format!("{:x}\r\n", whole.len()).as_bytes(),
            &whole,
            b"\r\n",
        ]
        .concat();
        for step in [1, 3, 7, 1000] {
            let mut chunk = Chunk::new(Framing::Chunked, b"head".to_vec(), &blocks);
            let mut out = Vec::new();
            while !chunk.is_written() {
                let mut slices = [IoSlice::new(&[]); MAX_SLICES];
                let count = chunk.remaining(&mut slices);
                let now: Vec<u8> = slices[..count]
                    .iter()
                    .flat_map(|slice| slice.to_vec())
                    .collect();
                let taken = now.len().min(step);
                out.extend_from_slice(&now[..taken]);
                chunk.written += taken;
            }
            assert!(out == expected, "steps of {step}");
        }
    }

    #[test]
    fn an_empty_chunk_would_end_the_body_and_is_never_written() {
        let chunk = Chunk::new(Framing::Chunked, b"head".to_vec(), &[]);
        assert_eq!(
            (chunk.head.as_slice(), chunk.tail),
            (&b"head"[..], &b""[..])
        );
    }
}
