//! Sentinels: where the master is, by the answers of more than half of them.

use std::{
    io,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{Client, Cmd, ConnectionAddr, ConnectionInfo, RedisError};
use tokio::time::{sleep, timeout};

use super::{Server, url::host_and_port};
use crate::{
    Error,
    process::{connection_config, is_master},
    throttled,
};

/// On this channel a sentinel announces another master: its name, then the old and the new address.
const SWITCH: &str = "+switch-master";
/// Pause before this process subscribes again to a sentinel whose connection has ended.
const RELISTEN: Duration = Duration::from_secs(1);
/// Longest wait for the answer of a sentinel.
const ANSWER: Duration = Duration::from_secs(1);
/// Sentinels inform each other of a failover within seconds. A sentinel that does not know of one for longer has
/// started to count again.
const HEARSAY: Duration = Duration::from_secs(30);

/// The address of a server, and the failover that made it the master.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) info: ConnectionInfo,
    /// The number of the failover that made it the master; 0 without sentinels.
    pub(crate) epoch: u64,
    /// When a sentinel last confirmed it.
    at: Instant,
}

impl Place {
    fn new(info: ConnectionInfo, epoch: u64) -> Self {
        Self {
            info,
            epoch,
            at: Instant::now(),
        }
    }

    fn is(&self, known: &Known) -> bool {
        host_and_port(self.info.addr()) == Some((&*known.host, known.port))
    }

    /// Whether a later failover made it the master, of which the sentinels with this answer do not know yet.
    fn is_later_than(&self, known: &Known) -> bool {
        known.epoch < self.epoch && !self.is(known) && self.at.elapsed() < HEARSAY
    }
}

/// The answers of all sentinels about the master.
pub(crate) struct Survey {
    /// As sentinels know the master.
    pub(crate) name: String,
    /// How many sentinels there are.
    pub(crate) sentinels: usize,
    /// The address of the master, from each sentinel that answered.
    pub(crate) masters: Vec<(String, u16)>,
    /// Why one of the others did not answer.
    pub(crate) failed: Option<String>,
}

/// A master, as a sentinel knows it.
struct Known {
    /// Grows with each failover.
    epoch: u64,
    host: String,
    port: u16,
}

impl Server {
    /// Locates the master. The last place stays unless more than half of the sentinels answer, because fewer could not
    /// have made another server the master. It also stays while the server there reports that it is the master, and the
    /// sentinels do not know yet of the failover that made it so.
    ///
    /// # Errors
    /// When no sentinel knows the master, and there is no last place.
    pub(crate) async fn locate(&self, was: Option<&Place>) -> Result<Place, Error> {
        let inner = self.inner();
        let info = inner.info.clone();
        if let Some(node) = &self.node {
            return Ok(Place::new(self.info_at(node), 0));
        }
        if self.is_cluster() {
            // Any node will do.
            let masters = self.ask_cluster(&self.seeds()).await?.masters();
            let any = masters.first().ok_or(Error::NoOwner)?;
            return Ok(Place::new(self.info_at(&any.address), 0));
        }
        if inner.sentinels.is_empty() {
            return Ok(Place::new(info, 0));
        }
        let mut epoch = 0;
        let mut addr = info.addr().clone();
        // Only these two kinds of address can have sentinels.
        if let ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } =
            &mut addr
        {
            let most = inner.sentinels.len() / 2 + 1;
            let (answers, failed) = self.ask_sentinels(host, most).await;
            let mut newest = newest(answers, inner.sentinels.len(), was);
            if let (Some(known), Some(was)) = (&newest, was)
                && was.is_later_than(known)
                && is_master(&Client::open(was.info.clone())?)
                    .await
                    .unwrap_or(false)
            {
                newest = None;
            }
            match (newest, was) {
                (Some(newest), _) => {
                    (*host, *port, epoch) = (newest.host, newest.port, newest.epoch);
                }
                (None, Some(was)) => return Ok(was.clone()),
                (None, None) => {
                    return Err(Error::NoMaster {
                        name: host.clone(),
                        because: failed.unwrap_or_default(),
                    });
                }
            }
        }
        Ok(Place::new(info.set_addr(addr), epoch))
    }

    /// Whether the sentinels know no later master. `None` unless more than half of them answer. All are asked, because
    /// for a moment only the sentinel that has replaced the master knows.
    pub(crate) async fn confirms(&self, place: &Place) -> Option<bool> {
        let inner = self.inner();
        let (host, _) = host_and_port(inner.info.addr())?;
        let (answers, _) = self.ask_sentinels(host, inner.sentinels.len()).await;
        confirm(answers, inner.sentinels.len(), place)
    }

    /// Asks all sentinels where the master is; none if there are none.
    pub(crate) async fn survey(&self) -> Option<Survey> {
        let inner = self.inner();
        let (name, _) = host_and_port(inner.info.addr())?;
        let sentinels = inner.sentinels.len();
        if sentinels == 0 {
            return None;
        }
        let (answers, failed) = self.ask_sentinels(name, sentinels).await;
        Some(Survey {
            name: name.to_owned(),
            sentinels,
            masters: answers
                .into_iter()
                .map(|known| (known.host, known.port))
                .collect(),
            failed,
        })
    }

    /// Whether there are sentinels, so that another server may become the master.
    pub(crate) fn has_sentinels(&self) -> bool {
        !self.inner().sentinels.is_empty()
    }

    /// Calls `switched` when a sentinel announces another master, and when an announcement may have been missed. Never
    /// returns.
    pub(crate) async fn watch(&self, switched: impl Fn()) {
        let inner = self.inner();
        let master = host_and_port(inner.info.addr()).map_or("", |(host, _)| host);
        let watch = (0..inner.sentinels.len()).map(async |number| {
            loop {
                // With the present certificates.
                let sentinel = &self.inner().sentinels[number];
                if let Err(error) = listen(sentinel, master, &switched).await {
                    tracing::debug!(sentinel = %sentinel.addr(), %error, "failed to listen to a sentinel");
                }
                sleep(RELISTEN).await;
            }
        });
        let mut watch: FuturesUnordered<_> = watch.collect();
        while watch.next().await.is_some() {}
        std::future::pending::<()>().await;
    }

    /// The first `count` answers of the sentinels, or fewer if fewer answer; and the last failure.
    async fn ask_sentinels(&self, master: &str, count: usize) -> (Vec<Known>, Option<String>) {
        let sentinels = &self.inner().sentinels;
        let asked = sentinels.iter().map(async |sentinel| {
            let answer = timeout(ANSWER, ask(sentinel, master)).await;
            let timed_out =
                |_| Err(RedisError::from(io::Error::from(io::ErrorKind::TimedOut)).into());
            (sentinel.addr(), answer.unwrap_or_else(timed_out))
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let (mut answers, mut failed) = (Vec::new(), None);
        while answers.len() < count
            && let Some((sentinel, answer)) = asked.next().await
        {
            match answer {
                Ok(known) => answers.push(known),
                Err(error) => {
                    throttled!(warn, %sentinel, %error, "a sentinel does not know the master");
                    failed = Some(format!("{sentinel}: {error}"));
                }
            }
        }
        (answers, failed)
    }
}

/// The newest of the sentinels' answers, if a client that is at a master, or at none yet, may follow it.
fn newest(answers: Vec<Known>, sentinels: usize, is_at: Option<&Place>) -> Option<Known> {
    if is_at.is_some() && answers.len() <= sentinels / 2 {
        return None;
    }
    // Each failover increases the epoch. Of answers with the same epoch, the present place is preferred.
    let is_there = |known: &Known| is_at.is_some_and(|place| place.is(known));
    answers
        .into_iter()
        .max_by_key(|known| (known.epoch, is_there(known)))
}

/// Whether these answers name no later master. `None` unless more than half of the sentinels have answered.
fn confirm(answers: Vec<Known>, sentinels: usize, place: &Place) -> Option<bool> {
    let known = newest(answers, sentinels, Some(place))?;
    Some(place.is(&known) || place.is_later_than(&known))
}

/// Asks a sentinel for the address of a master.
async fn ask(sentinel: &ConnectionInfo, master: &str) -> Result<Known, Error> {
    let client = Client::open(sentinel.clone())?;
    let config = connection_config();
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    let mut connection = connection.await?;
    // In this order, because during a failover the epoch changes before the address does.
    let mut epoch = Cmd::new();
    epoch.arg("SENTINEL").arg("MASTER").arg(master);
    let fields: Vec<String> = epoch.query_async(&mut connection).await?;
    let mut fields = fields.chunks_exact(2);
    let epoch = fields.find(|field| field[0] == "config-epoch");
    let mut address = Cmd::new();
    address.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME");
    address.arg(master);
    let (host, port): (String, u16) = address.query_async(&mut connection).await?;
    // If the sentinel cannot resolve the host name, it answers an empty one.
    let epoch = epoch.filter(|_| !host.is_empty());
    let epoch = epoch.and_then(|field| field[1].parse().ok());
    let epoch = epoch.ok_or(Error::Malformed)?;
    Ok(Known { epoch, host, port })
}

/// Calls `switched` after it has subscribed, and whenever this sentinel announces another master of this name. Ends
/// with the connection.
async fn listen(
    sentinel: &ConnectionInfo,
    master: &str,
    switched: &impl Fn(),
) -> Result<(), RedisError> {
    let client = Client::open(sentinel.clone())?;
    let subscribe = async {
        let mut listener = client.get_async_pubsub().await?;
        listener.subscribe(SWITCH).await?;
        Ok::<_, RedisError>(listener)
    };
    let subscribed = timeout(ANSWER, subscribe).await;
    let mut listener = subscribed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    // The sentinel may have announced a switch before the subscription.
    switched();
    let mut messages = listener.on_message();
    while let Some(message) = messages.next().await {
        let payload: String = message.get_payload()?;
        if payload.split(' ').next() == Some(master) {
            switched();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_answer_counts_if_enough_sentinels_answer() {
        let at = |(epoch, host): (u64, &str)| {
            let info = format!("redis://{host}:1").parse().unwrap();
            Place::new(info, epoch)
        };
        let go = |answers: &[(u64, &str)], is_at: Option<&Place>| {
            let answers = answers.iter().map(|(epoch, host)| Known {
                epoch: *epoch,
                host: (*host).to_owned(),
                port: 1,
            });
            let newest = newest(answers.collect(), 3, is_at);
            let newest = newest.filter(|known| !is_at.is_some_and(|at| at.is_later_than(known)));
            newest.map(|known| known.host)
        };
        for (answers, is_at, to) in [
            (&[(1, "a"), (2, "b")][..], Some((1, "a")), Some("b")),
            (&[(2, "b"), (1, "a")], Some((1, "a")), Some("b")),
            (&[(1, "a"), (1, "b")], Some((1, "a")), Some("a")),
            (&[(1, "b"), (1, "a")], Some((1, "a")), Some("a")),
            (&[(1, "b"), (1, "b")], Some((1, "a")), Some("b")),
            (&[(1, "b"), (1, "b")], Some((2, "a")), None),
            (&[(1, "b"), (2, "a")], Some((2, "a")), Some("a")),
            (&[(0, "a"), (0, "a")], Some((2, "a")), Some("a")),
            (&[(2, "b")], Some((1, "a")), None),
            (&[(2, "b")], None, Some("b")),
            (&[], Some((1, "a")), None),
            (&[], None, None),
        ] {
            let to_go = go(answers, is_at.map(at).as_ref());
            assert_eq!(to_go.as_deref(), to, "{answers:?} {is_at:?}");
        }
        // No sentinel has confirmed the place for this long.
        let mut old = at((2, "a"));
        old.at = Instant::now().checked_sub(HEARSAY).unwrap();
        assert_eq!(go(&[(1, "b"), (1, "b")], Some(&old)).as_deref(), Some("b"));
    }
}

#[cfg(test)]
mod simulation;
