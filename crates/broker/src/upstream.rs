//! `Upstream`: the broker as one hub sees it.

use std::sync::Arc;

use hub::{Channel, EventId, Page};
use tokio::sync::{mpsc, oneshot};

use crate::deliver::{Commands, HistoryRequest, HubCommand};

/// Passes on the requests of a hub. When the broker is gone they are dropped, because the process is ending.
#[derive(Clone)]
pub struct Upstream {
    worker: usize,
    commands: Commands,
    requests: mpsc::UnboundedSender<HistoryRequest>,
}

impl Upstream {
    pub(crate) fn new(
        worker: usize,
        commands: Commands,
        requests: mpsc::UnboundedSender<HistoryRequest>,
    ) -> Self {
        Self {
            worker,
            commands,
            requests,
        }
    }
}

impl hub::Upstream for Upstream {
    fn attach(&self, channel: &Channel, generation: u64) {
        self.commands.send(HubCommand::Attach {
            worker: self.worker,
            channel: channel.clone(),
            generation,
        });
    }

    fn detach(&self, channel: &Channel) {
        self.commands.send(HubCommand::Detach {
            worker: self.worker,
            channel: channel.clone(),
        });
    }

    fn page(
        &self,
        channel: &Channel,
        after: EventId,
        share: usize,
        reply: oneshot::Sender<Arc<Page>>,
    ) {
        let _ending = self.requests.send(HistoryRequest::Page {
            channel: channel.clone(),
            after,
            share,
            reply,
        });
    }

    fn newest(&self, channel: &Channel, count: u32, reply: oneshot::Sender<Vec<EventId>>) {
        let _ending = self.requests.send(HistoryRequest::Newest {
            channel: channel.clone(),
            count,
            reply,
        });
    }
}
