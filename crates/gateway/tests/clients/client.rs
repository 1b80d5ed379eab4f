//! A running client program, and its output.

use std::{collections::HashMap, net::SocketAddr};

use tokio::sync::watch;

use crate::{
    front::{Front, Mode},
    libraries::Library,
    support::Process,
    tools::Tools,
};

/// How a library is used: as its documentation shows, or as `docs/clients.md` recommends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    Shown,
    Recommended,
}

/// A program that follows the channel, or has ended.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) tested: &'static Library,
    pub(crate) how: Use,
    pub(crate) front: Front,
    process: Process,
    /// Whether it has ended, and if so, successfully.
    pub(crate) exited: Option<bool>,
    /// Whether it has received everything so far.
    pub(crate) is_well: bool,
}

/// The output of a program.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// The numbers of the events, in the order of arrival. `None`: an event that was not published
    /// like this.
    pub(crate) events: Vec<Option<usize>>,
    /// Whether it knows that the channel is complete.
    pub(crate) end: bool,
}

impl Seen {
    /// The number of the newest event.
    pub(crate) fn last(&self) -> Option<usize> {
        self.events.iter().flatten().next_back().copied()
    }
}

/// The number of each published event, by its line in the output.
pub(crate) type Published = HashMap<String, usize>;

impl Client {
    pub(crate) async fn start(
        tools: &Tools,
        library: &'static Library,
        how: Use,
        balancer: SocketAddr,
        channel: &str,
        mode: watch::Receiver<Mode>,
    ) -> Self {
        let front = Front::to(balancer, mode).await;
        let url = format!("http://{}/events?channel={channel}", front.address);
        let word = match how {
            Use::Shown => "shown",
            Use::Recommended => "recommended",
        };
        let mut command = tools.command(library.tool, &[library.name, word, &url]);
        Self {
            tested: library,
            how,
            front,
            process: Process::start(format!("{} {word}", library.name), &mut command),
            exited: None,
            is_well: true,
        }
    }

    /// The name in the docs and in failures.
    pub(crate) fn name(&self) -> String {
        match self.how {
            Use::Shown => format!("{} as shown", self.tested.name),
            Use::Recommended => format!("{} as recommended", self.tested.name),
        }
    }

    pub(crate) fn is_recommended(&self) -> bool {
        self.how == Use::Recommended
    }

    /// Whether it runs.
    pub(crate) fn runs(&mut self) -> bool {
        if self.exited.is_none() {
            self.exited = self.process.exited().map(|status| status.success());
        }
        self.exited.is_none()
    }

    /// Its output so far, in whole lines.
    pub(crate) fn seen(&self, published: &Published) -> Seen {
        let output = self.process.output();
        let mut seen = Seen::default();
        for line in output
            .split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
        {
            if line == "end" {
                seen.end = true;
                continue;
            }
            // A library may not provide the id of each event.
            let (id, hash) = line.split_once('\t').unwrap_or_default();
            let number = published.get(hash).copied();
            let right = number.filter(|_| {
                self.how == Use::Shown || published.contains_key(&format!("{id} {hash}"))
            });
            seen.events.push(right);
        }
        seen
    }

    /// The end of its output and log, for a failure.
    pub(crate) fn tail(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(8)..].join("\n    ")
        };
        format!(
            "\n    {}\n    {}",
            tail(self.process.output()),
            tail(self.process.log())
        )
    }
}
