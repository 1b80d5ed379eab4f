//! `Log`: writes log lines to standard error without ever waiting for it.
//!
//! Standard error may be a pipe that its reader has closed or does not read, or a file on a full disk. A thread of its
//! own writes the lines. A line that cannot be written, or that finds the queue full, is dropped and counted.

use std::{
    io::{self, Write as _},
    sync::{
        LazyLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait while standard error accepts none, about 1 MiB.
const QUEUE: usize = 4096;
/// Longest wait at the end of the process for the lines that are still in the queue.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Time between two attempts where standard error is non-blocking and full. std cannot wait for room, and only the thread of
/// the log does.
const PAUSE: Duration = Duration::from_millis(10);

/// Lines that were not written.
static DROPPED: LazyLock<IntCounter> = LazyLock::new(|| {
    IntCounter::new(
        "sse_gateway_log_lines_dropped_total",
        "Log lines that standard error did not take: its disk is full, its reader is gone or does not read",
    )
    .expect("the name is one")
});

/// The counter of log lines that were not written.
pub(crate) fn dropped() -> IntCounter {
    DROPPED.clone()
}

/// Waits for the last lines when it is dropped.
#[derive(Debug)]
#[must_use = "the last lines are lost without it"]
pub struct Log(SyncSender<Order>);

#[derive(Debug)]
enum Order {
    Line(Vec<u8>),
    /// Answered when all lines before it are written.
    Flush(SyncSender<()>),
}

/// Puts lines into the queue.
#[derive(Clone)]
pub(crate) struct Writer(SyncSender<Order>);

/// Starts the thread that writes.
pub(crate) fn start() -> io::Result<(Writer, Log)> {
    let (lines, queue) = sync_channel(QUEUE);
    let thread = thread::Builder::new().name("log".to_owned());
    thread.spawn(move || write_all(&queue))?;
    Ok((Writer(lines.clone()), Log(lines)))
}

fn write_all(queue: &Receiver<Order>) {
    let mut output = Output::default();
    let mut reported = 0;
    while let Ok(message) = queue.recv() {
        match message {
            Order::Line(line) => {
                if output.write(&line).is_err() {
                    DROPPED.inc();
                    continue;
                }
                let dropped = DROPPED.get();
                if dropped > reported {
                    let lines = dropped - reported;
                    reported = dropped;
                    tracing::warn!(
                        lines,
                        "log lines were dropped: standard error did not take them"
                    );
                }
            }
            // The end of the process no longer waits for it.
            Order::Flush(done) => drop(done.try_send(())),
        }
    }
}

/// Standard error, with whole lines.
#[derive(Default)]
struct Output {
    /// Only the beginning of the last line was written.
    is_torn: bool,
}

impl Output {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.write_some(b"\n")?;
        }
        self.write_some(line)
    }

    fn write_some(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match io::stderr().write(bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    bytes = &bytes[written..];
                    self.is_torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process that has the same pipe made it non-blocking.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl io::Write for Writer {
    /// Takes a line. Never fails, because a full log must not break the code that logs.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Order::Line(line.to_vec())).is_err() {
            DROPPED.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Writer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (done, written) = sync_channel(1);
        let lines = self.0.clone();
        // The queue may be full, and a channel of std has no deadline for that: this thread ends with the process.
        let flush = thread::Builder::new().spawn(move || lines.send(Order::Flush(done)));
        if flush.is_ok() {
            let _late = written.recv_timeout(LAST_LINES);
        }
    }
}
