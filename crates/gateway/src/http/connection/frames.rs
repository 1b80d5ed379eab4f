//! `Frames`: counts frames of an HTTP/2 client that are not part of a request.
//!
//! h2 answers or ignores any number of PING, SETTINGS, PRIORITY and unknown frames, and of RST_STREAM for closed
//! streams: 3 million a second. A few connections that send nothing else can keep a worker from its streams. Such a
//! connection is closed. h2 itself limits CONTINUATION, and small DATA that is not read.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

/// Frames that may arrive at once, and per second after these. Clients send a PING now and then, or with each part of a
/// large body.
const BURST: f64 = 2000.0;
const RATE: f64 = 200.0;
/// Frames that are part of a request, in addition to its head and its data: an empty DATA that ends it, and a
/// RST_STREAM.
const PER_REQUEST: f64 = 2.0;
/// For this many written bytes, one window update is not counted. A client may send two updates for each frame, and the
/// smallest frame of a stream is a heartbeat.
const BYTES_PER_UPDATE: f64 = 5.0;

/// Bytes of the connection preface, before the first frame; RFC 9113, 3.4.
const PREFACE: usize = 24;
/// The head of a frame; RFC 9113, 4.1.
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// A connection whose frames are counted.
pub(crate) struct Counted<T> {
    io: T,
    frames: Frames,
    has_flooded: Rc<Cell<bool>>,
}

struct Frames {
    /// Bytes up to the next frame.
    skip: usize,
    /// The bytes of its head that have arrived.
    head: [u8; HEAD],
    read: usize,
    /// Frames that may still arrive.
    left: f64,
    /// Frames that may still arrive for the requests so far.
    of_requests: f64,
    /// Window updates that may still arrive.
    updates: f64,
    since: Instant,
}

impl<T> Counted<T> {
    /// `has_flooded` is set when the connection is closed because of its frames.
    pub(crate) fn new(io: T, has_flooded: &Rc<Cell<bool>>) -> Self {
        Self {
            io,
            has_flooded: Rc::clone(has_flooded),
            frames: Frames::new(Instant::now()),
        }
    }
}

impl Frames {
    fn new(now: Instant) -> Self {
        Self {
            skip: PREFACE,
            head: [0; HEAD],
            read: 0,
            left: BURST,
            of_requests: 0.0,
            updates: BURST,
            since: now,
        }
    }

    /// Counts the frames in these bytes. Returns whether all counts are within their limits.
    fn see(&mut self, mut bytes: &[u8], now: Instant) -> bool {
        let earned = RATE * now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.left = (self.left + earned).min(BURST);
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let more = (HEAD - self.read).min(bytes.len());
            self.head[self.read..self.read + more].copy_from_slice(&bytes[..more]);
            self.read += more;
            bytes = &bytes[more..];
            if self.read < HEAD {
                return self.left >= 0.0 && self.updates >= 0.0;
            }
            self.read = 0;
            let [a, b, c, kind, ..] = self.head;
            self.skip = u32::from_be_bytes([0, a, b, c]) as usize;
            match kind {
                DATA if self.skip > 0 => {}
                HEADERS => self.of_requests = (self.of_requests + PER_REQUEST).min(1e9),
                CONTINUATION => {}
                DATA | RESET if self.of_requests >= 1.0 => self.of_requests -= 1.0,
                WINDOW_UPDATE => self.updates -= 1.0,
                _ => self.left -= 1.0,
            }
        }
    }

    fn wrote(&mut self, bytes: usize) {
        self.updates = (self.updates + bytes as f64 / BYTES_PER_UPDATE).min(1e9);
    }
}

impl<T: Read + Unpin> Read for Counted<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Frames are counted before hyper sees them.
        let mut bytes = [0; 8 << 10];
        let room = buffer.remaining().min(bytes.len());
        let mut read = ReadBuf::new(&mut bytes[..room]);
        match Pin::new(&mut this.io).poll_read(cx, read.unfilled()) {
            Poll::Ready(Ok(())) => {}
            other => return other,
        }
        if !this.frames.see(read.filled(), Instant::now()) {
            this.has_flooded.set(true);
            let flood = "too many frames that ask for nothing";
            return Poll::Ready(Err(io::Error::other(flood)));
        }
        buffer.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: Write + Unpin> Write for Counted<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = written {
            self.frames.wrote(written);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        if let Poll::Ready(Ok(written)) = written {
            self.frames.wrote(written);
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(length).unwrap().to_be_bytes();
        [&[a, b, c, kind, 0, 0, 0, 0, 1][..], &vec![7; length]].concat()
    }

    /// Whether these bytes are accepted, in parts of this size.
    fn may(frames: &mut Frames, bytes: &[u8], part: usize, now: Instant) -> bool {
        bytes.chunks(part).all(|part| frames.see(part, now))
    }

    #[test]
    fn frames_are_found_however_they_are_cut() {
        let now = Instant::now();
        for part in [1, 7, 9, 100, 1 << 20] {
            let mut frames = Frames::new(now);
            let mut bytes = vec![b'x'; PREFACE];
            for _ in 0..3000 {
                bytes.extend(frame(HEADERS, 20));
                bytes.extend(frame(DATA, 300));
            }
            for _ in 0..BURST as usize {
                bytes.extend(frame(6, 8));
            }
            assert!(may(&mut frames, &bytes, part, now), "{part}");
            for kind in [6, 4, 2, 99] {
                let mut flooded = Frames { ..frames };
                assert!(!may(&mut flooded, &frame(kind, 8), part, now), "{kind}");
            }
        }
    }

    #[test]
    fn a_request_may_be_ended_and_reset() {
        let now = Instant::now();
        for kind in [DATA, RESET] {
            let mut frames = Frames::new(now);
            frames.see(&[0; PREFACE], now);
            for _ in 0..10_000 {
                assert!(frames.see(&frame(HEADERS, 20), now));
                assert!(frames.see(&frame(DATA, 300), now));
                assert!(frames.see(&frame(DATA, 0), now) && frames.see(&frame(RESET, 4), now));
            }
            let length = usize::from(kind == RESET) * 4;
            let more = frame(kind, length).repeat(BURST as usize);
            assert!(may(&mut frames, &more, 1 << 20, now));
            assert!(!frames.see(&frame(kind, length), now), "{kind}");
        }
    }

    #[test]
    fn a_frame_now_and_then_is_always_accepted() {
        let mut now = Instant::now();
        let mut frames = Frames::new(now);
        frames.see(&[0; PREFACE], now);
        for _ in 0..100_000 {
            now += Duration::from_millis(10);
            assert!(frames.see(&frame(6, 8), now));
        }
    }

    #[test]
    fn written_bytes_allow_window_updates() {
        let now = Instant::now();
        let mut frames = Frames::new(now);
        frames.see(&[0; PREFACE], now);
        let update = frame(WINDOW_UPDATE, 4);
        for _ in 0..100_000 {
            // The frame of a heartbeat.
            frames.wrote(HEAD + 3);
            assert!(frames.see(&update, now) && frames.see(&update, now));
        }
        assert!(!(0..200_000).all(|_| frames.see(&update, now)));
    }
}
