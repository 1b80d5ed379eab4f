//! `Signals`: the meaning of each signal for a gateway. None ends it at once, except SIGKILL and the second stop
//! signal.

use std::{
    io::{self, IsTerminal as _},
    task::Poll,
};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Sent when a write exceeds the limit of a file's size, for example a write to the log.
const FILE_SIZE: i32 = 25;

/// Receives signals from its creation on.
#[derive(Debug)]
pub(crate) struct Signals {
    signals: Vec<(&'static str, Meaning, Signal)>,
    /// It was started in a terminal, which sends SIGHUP when it is closed.
    in_terminal: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Drain,
    Stop,
    Reload,
    /// Programs send them by custom. They are meant for other servers: to open their logs again, or to replace their
    /// binary.
    Nothing,
    /// The write has failed, and its caller handles the error.
    Silence,
}

/// The action that a signal requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To drain and end. Balancers get `--drain-delay` to notice.
    Drain,
    /// The same without the delay, because a person waits at a terminal.
    Stop,
    /// To read the configuration again.
    Reload,
}

impl Signals {
    /// # Errors
    /// When the system refuses a handler.
    pub(crate) fn new() -> io::Result<Self> {
        let signals = [
            ("SIGTERM", Meaning::Drain, SignalKind::terminate()),
            ("SIGINT", Meaning::Stop, SignalKind::interrupt()),
            ("SIGQUIT", Meaning::Drain, SignalKind::quit()),
            ("SIGHUP", Meaning::Reload, SignalKind::hangup()),
            ("SIGUSR1", Meaning::Nothing, SignalKind::user_defined1()),
            ("SIGUSR2", Meaning::Nothing, SignalKind::user_defined2()),
            ("SIGALRM", Meaning::Nothing, SignalKind::alarm()),
            ("SIGXFSZ", Meaning::Silence, SignalKind::from_raw(FILE_SIZE)),
        ];
        let signals = signals
            .into_iter()
            .map(|(name, meaning, kind)| Ok((name, meaning, signal(kind)?)));
        Ok(Self {
            signals: signals.collect::<io::Result<_>>()?,
            in_terminal: io::stdin().is_terminal(),
        })
    }

    /// The next signal that requests an action.
    pub(crate) async fn next(&mut self) -> Wish {
        loop {
            let (name, meaning) = self.receive().await;
            match meaning {
                Meaning::Drain => return Wish::Drain,
                Meaning::Stop => return Wish::Stop,
                // A closed terminal no longer counts as one.
                Meaning::Reload if self.in_terminal && !io::stdin().is_terminal() => {
                    return Wish::Stop;
                }
                Meaning::Reload => return Wish::Reload,
                Meaning::Nothing => {
                    broker::throttled!(info, "{name} received: it has no meaning here");
                }
                Meaning::Silence => {}
            }
        }
    }

    /// The next signal that requests a stop.
    pub(crate) async fn stop(&mut self) {
        while self.next().await == Wish::Reload {}
    }

    async fn receive(&mut self) -> (&'static str, Meaning) {
        std::future::poll_fn(|context| {
            for (name, meaning, signal) in &mut self.signals {
                if signal.poll_recv(context).is_ready() {
                    return Poll::Ready((*name, *meaning));
                }
            }
            Poll::Pending
        })
        .await
    }
}
