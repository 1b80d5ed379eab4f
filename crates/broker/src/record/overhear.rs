//! Listening to a node of a cluster without recording from it, to compare it with the node that is recorded from.
//!
//! A node has a limited number of candidates. So a replica may be a candidate at one node only, and would have nothing to
//! compare. Then it subscribes to the raw messages of another one, too.

use std::io;

use tokio::time::interval;

use super::{Recorder, candidacy::Candidacy, ear::Ear, machine::Digest};
use crate::{
    times::{CANDIDACY, MAX_SILENT, PING},
    wire::{Push, moved},
};

impl Recorder {
    /// Whether this replica needs to listen to this node as well. Then no other node is listened to, until the subscription
    /// ends.
    pub(super) fn is_needed(&self) -> bool {
        let id = self.node.id();
        id.is_some_and(|id| self.deliveries.lock().needs(id))
    }

    /// Listens until this replica becomes a candidate at the node, or needs the subscription no longer.
    ///
    /// # Errors
    /// When the connection fails.
    pub(super) async fn overhear(&self) -> io::Result<()> {
        let listen = self.node.listen(self.max_payload).await;
        let (mut listener, run) = listen.map_err(io::Error::other)?;
        listener.subscribe_raw(&self.prefix).await?;
        let (mut ear, mut pushes) = (None, Vec::new());
        let (mut ping, mut silent) = (interval(PING), 0);
        loop {
            tokio::select! {
                read = listener.read(&mut pushes) => {
                    read?;
                    silent = 0;
                    for push in pushes.drain(..) {
                        match (push, &ear) {
                            (Push::Subscribed { .. }, _) => ear = Ear::new(&self.deliveries, &self.node),
                            (Push::Message { channel, payload }, Some(ear)) => self.overheard(ear, &channel, &payload),
                            _ => {}
                        }
                    }
                }
                _ = ping.tick() => {
                    silent += 1;
                    if silent > MAX_SILENT {
                        return Err(io::Error::other("no sign of life"));
                    }
                    if !self.node.uses(&run) || self.node.partitions().is_empty() {
                        return Err(moved());
                    }
                    listener.ping().await?;
                    let is_candidate = !matches!(self.claim(CANDIDACY, Candidacy::None).await, Ok(Candidacy::None) | Err(_));
                    if is_candidate || !self.is_needed() {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn overheard(&self, ear: &Ear, channel: &[u8], payload: &[u8]) {
        let partitions = self.node.deployment().partitions();
        if let Some(name) = channel.strip_prefix(self.prefix.as_bytes())
            && let Ok(channel) = partitions.channel_from_bytes(name)
        {
            ear.arrived(&channel, payload, Digest::of(&channel, payload));
        }
    }
}
