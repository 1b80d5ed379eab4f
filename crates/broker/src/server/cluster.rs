//! A Redis Cluster: which master owns each slot, by the answers of several nodes.
//!
//! Nodes learn of a change one after the other, so the newest of several answers counts. A node that takes over a slot,
//! in a failover or a move, has a greater config epoch than its predecessor (Redis Cluster specification, "Hash slots
//! configuration propagation").
//!
//! A master that has become a copy sends the epoch of its new master with each message. A node that has not learned of the
//! change assigns that epoch to the old master, which it still takes for the owner. So an owner counts only as long as
//! it does not disagree itself.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    ops::RangeInclusive,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use redis::{Client, Cmd};
use tokio::time::timeout;

use super::{Address, Server, url::has_tls};
use crate::{Error, process::open, throttled};

/// Longest wait for the answer of a node.
const ANSWER: Duration = Duration::from_secs(1);

/// A master, as a node of the cluster knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Stays the same when its address changes.
    pub(crate) id: Arc<str>,
    pub(crate) address: Address,
    /// Grows whenever it takes over slots.
    pub(crate) epoch: u64,
}

/// The cluster, as one node sees it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The id of the asked node.
    own: Option<Arc<str>>,
    /// The ids of all nodes, lost ones as well.
    ids: HashSet<Arc<str>>,
    /// All nodes that can be asked, copies as well.
    nodes: Vec<Address>,
    /// Masters that own slots.
    masters: Vec<(Owner, Vec<RangeInclusive<u16>>)>,
    /// Those to which the asked node is connected. It knows that they are at these addresses. A node that was restarted
    /// elsewhere does not always know its own new address.
    connected: Vec<(Arc<str>, Address)>,
}

impl View {
    /// Reads an answer to CLUSTER NODES of the node with this address. Nodes are known by their host names if
    /// `by_name`, where they have any.
    fn parse(text: &str, asked: &Address, by_name: bool) -> Option<Self> {
        let mut view = Self::default();
        for line in text.lines() {
            let mut fields = line.split(' ');
            let (id, address, flags) = (fields.next()?, fields.next()?, fields.next()?);
            let (_master, _ping, _pong) = (fields.next()?, fields.next()?, fields.next()?);
            let (epoch, link) = (fields.next()?, fields.next()?);
            let has = |flag: &str| flags.split(',').any(|other| other == flag);
            let id = Arc::<str>::from(id);
            view.ids.insert(Arc::clone(&id));
            if has("myself") {
                view.own = Some(Arc::clone(&id));
            }
            if has("noaddr") || has("handshake") {
                continue;
            }
            let (ip_and_port, rest) = address.split_once('@')?;
            let (ip, port) = ip_and_port.rsplit_once(':')?;
            let name = rest
                .split(',')
                .nth(1)
                .filter(|name| by_name && !name.is_empty());
            let host = match name.unwrap_or(ip) {
                // It does not know its own address yet.
                "" => &*asked.host,
                host => host,
            };
            let address = Address {
                host: host.into(),
                port: port.parse().ok()?,
            };
            if !has("fail") {
                view.nodes.push(address.clone());
            }
            let slots: Option<Vec<_>> = fields
                .filter(|slots| !slots.starts_with('['))
                .map(|slots| {
                    let (from, to) = slots.split_once('-').unwrap_or((slots, slots));
                    Some(from.parse().ok()?..=to.parse().ok()?)
                })
                .collect();
            let (slots, epoch) = (slots?, epoch.parse().ok()?);
            if has("master") && !slots.is_empty() {
                if link == "connected" && !has("myself") && !has("fail") && !has("fail?") {
                    view.connected.push((Arc::clone(&id), address.clone()));
                }
                view.masters.push((Owner { id, address, epoch }, slots));
            }
        }
        Some(view)
    }

    fn owner(&self, slot: u16) -> Option<&Owner> {
        let owns = |(_, slots): &&(Owner, Vec<RangeInclusive<u16>>)| {
            slots.iter().any(|range| range.contains(&slot))
        };
        self.masters.iter().find(owns).map(|(owner, _)| owner)
    }
}

/// The answers of some nodes.
#[derive(Debug, Default)]
pub(crate) struct Views(Vec<View>);

impl Views {
    fn new(mut views: Vec<View>) -> Self {
        let addresses = known_addresses(&views);
        for (owner, _) in views.iter_mut().flat_map(|view| &mut view.masters) {
            if let Some(address) = addresses.get(&owner.id) {
                owner.address = address.clone();
            }
        }
        Self(views)
    }

    /// The newest owner of a slot, if any node knows one.
    pub(crate) fn owner(&self, slot: u16) -> Option<&Owner> {
        self.owners(slot).max_by_key(|owner| owner.epoch)
    }

    /// All owners of a slot that nodes know, unless they disagree themselves.
    fn owners(&self, slot: u16) -> impl Iterator<Item = &Owner> {
        let disagrees = move |owner: &Owner| {
            let mut own = self
                .0
                .iter()
                .filter(|view| view.own.as_ref() == Some(&owner.id));
            own.any(|view| view.owner(slot).is_none_or(|it| it.id != owner.id))
        };
        let owners = self.0.iter().filter_map(move |view| view.owner(slot));
        owners.filter(move |owner| !disagrees(owner))
    }

    /// Whether this owner of a slot is newer than `known`, or the same, maybe with a newer epoch or at another address.
    ///
    /// An owner that no node knows any more was in a cluster that was created again, whose epochs begin again. The known
    /// epoch may be that of the successor. Then the known owner is given up if most nodes answer, and none takes it for
    /// the owner.
    pub(crate) fn are_newer(&self, slot: u16, owner: &Owner, known: &str, epoch: u64) -> bool {
        let is_given_up = || {
            2 * self.count() > self.nodes().len()
                && self.owners(slot).all(|owner| &*owner.id != known)
        };
        owner.epoch > epoch
            || !self.know(known)
            || owner.epoch == epoch && (&*owner.id == known || is_given_up())
    }

    /// All nodes that can be asked, each once.
    pub(crate) fn nodes(&self) -> Vec<Address> {
        let mut nodes: Vec<_> = self.0.iter().flat_map(|view| view.nodes.clone()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// All masters that own slots, with the newest epoch of each.
    pub(crate) fn masters(&self) -> Vec<Owner> {
        let mut masters = BTreeMap::<&Address, &Owner>::new();
        for (owner, _) in self.0.iter().flat_map(|view| &view.masters) {
            let newest = masters.entry(&owner.address).or_insert(owner);
            if owner.epoch > newest.epoch {
                *newest = owner;
            }
        }
        masters.into_values().cloned().collect()
    }

    /// Whether any node knows a node with this id.
    pub(crate) fn know(&self, id: &str) -> bool {
        self.0.iter().any(|view| view.ids.contains(id))
    }

    /// How many nodes answered.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// By id, where most of the nodes that are connected to a master have reached it. Nodes learn of another address one
/// after the other.
fn known_addresses(views: &[View]) -> HashMap<Arc<str>, Address> {
    let mut counts = BTreeMap::<&(Arc<str>, Address), usize>::new();
    for connected in views.iter().flat_map(|view| &view.connected) {
        *counts.entry(connected).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| *count);
    // The last one of each id counts.
    let known = counts.into_iter().map(|(connected, _)| connected.clone());
    known.collect()
}

impl Server {
    /// Asks nodes for their views, all at once.
    ///
    /// # Errors
    /// When none of them has an answer.
    pub(crate) async fn ask_cluster(&self, nodes: &[Address]) -> Result<Views, Error> {
        let asked = nodes.iter().map(async |node| {
            let answer = timeout(ANSWER, self.ask_node(node)).await;
            let answer = answer.unwrap_or_else(|_| {
                let late = redis::RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
                Err(Error::connecting(&self.info_at(node), &late))
            });
            (node, answer)
        });
        let mut asked: FuturesUnordered<_> = asked.collect();
        let (mut views, mut failed) = (Vec::new(), None);
        while let Some((node, answer)) = asked.next().await {
            match answer {
                Ok(view) => views.push(view),
                Err(error) => {
                    throttled!(warn, %node, %error, "a node of the cluster does not answer");
                    failed = Some(error);
                }
            }
        }
        match failed {
            Some(error) if views.is_empty() => Err(error),
            _ => Ok(Views::new(views)),
        }
    }

    async fn ask_node(&self, node: &Address) -> Result<View, Error> {
        let info = self.info_at(node);
        let connection = open(&Client::open(info.clone())?).await;
        let mut connection = connection.map_err(|error| Error::connecting(&info, &error))?;
        let mut ask = Cmd::new();
        ask.arg("CLUSTER").arg("NODES");
        let text: String = ask.query_async(&mut connection).await.map_err(Error::of)?;
        View::parse(&text, node, has_tls(&info)).ok_or(Error::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> Address {
        Address {
            host: "asked".into(),
            port: 1,
        }
    }

    /// As Redis 7.0 answers. The third line is of 6.0, the fourth of a node without an address of its own.
    const NODES: &str = "\
        a 10.0.0.1:7000@17000,one.example master - 0 0 5 connected 0-99 200 [77->-b] [93-<-b]\n\
        b 10.0.0.2:7000@17000,,shard-id=x slave a 0 1 5 connected\n\
        c ::1:7001@17001 master,fail - 0 0 6 disconnected 100-199\n\
        d :7002@17002 myself,master - 0 0 0 connected 201\n\
        e 10.0.0.3:7000@17000 master - 0 0 9 connected\n\
        f :0@0 slave,noaddr - 0 0 0 disconnected\n";

    #[test]
    fn a_node_tells_who_owns_each_slot() {
        let view = View::parse(NODES, &asked(), false).unwrap();
        for (slot, host) in [
            (0, Some("10.0.0.1")),
            (99, Some("10.0.0.1")),
            (100, Some("::1")),
            (200, Some("10.0.0.1")),
            (201, Some("asked")),
            (202, None),
        ] {
            let owner = view.owner(slot).map(|owner| &*owner.address.host);
            assert_eq!(owner, host, "{slot}");
        }
        let nodes: Vec<_> = view.nodes.iter().map(|node| &*node.host).collect();
        assert_eq!(nodes, ["10.0.0.1", "10.0.0.2", "asked", "10.0.0.3"]);
        let named = View::parse(NODES, &asked(), true).unwrap();
        assert_eq!(&*named.owner(0).unwrap().address.host, "one.example");
        assert_eq!(View::parse("nonsense", &asked(), false), None);
    }

    #[test]
    fn of_several_answers_the_newest_counts() {
        let parse = |text: &str| View::parse(text, &asked(), false).unwrap();
        let line = |host: &str, epoch: u64| format!("a {host}:1@2 master - 0 0 {epoch} x 0-9\n");
        let views = [
            parse(&line("old", 3)),
            parse(&line("new", 4)),
            parse(&line("old", 3)),
        ];
        let views = Views::new(views.into());
        assert_eq!(&*views.owner(5).unwrap().address.host, "new");
        assert_eq!(views.masters().len(), 2);
        assert_eq!(views.owner(10), None);
    }

    #[test]
    fn a_node_is_where_most_others_are_connected_to_it() {
        let parse = |a: &str, b: &str| {
            let text = format!("a {a} 0 0 1 connected 0-9\nb {b} 0 0 1 connected 10-19\n");
            View::parse(&text, &asked(), false).unwrap()
        };
        let lost = "one:1@2 master,fail? -";
        // The nodes have changed places, and do not know their own yet.
        let views = Views::new(vec![
            parse("one:1@2 myself,master -", "one:1@2 master -"),
            parse("two:1@2 master -", "two:1@2 myself,master -"),
            parse("two:1@2 master -", "one:1@2 master -"),
            parse(lost, "two:1@2 master -"),
        ]);
        for (slot, host) in [(0, "two"), (10, "one")] {
            assert_eq!(&*views.owner(slot).unwrap().address.host, host, "{slot}");
        }
        assert_eq!(views.masters().len(), 2);
        // Of a single node, its own answer counts.
        assert!(views.know("a") && !views.know("c"));
        let alone = Views::new(vec![parse("one:1@2 myself,master -", lost)]);
        assert_eq!(&*alone.owner(0).unwrap().address.host, "one");
    }

    /// Breaks when a node that has become a copy is taken for the owner. Its messages have the epoch of its new master, and a
    /// node that has not learned of the change assigns that epoch to it.
    #[test]
    fn an_owner_that_has_become_a_copy_does_not_count() {
        let parse = |text: &str| View::parse(text, &asked(), false).unwrap();
        let late = || {
            parse(
                "x h:1@2 master - 0 0 6 connected 0-9\n\
                 y h:2@3 slave x 0 0 6 connected\n\
                 z h:3@4 myself,master - 0 0 2 connected 10\n",
            )
        };
        let copy = parse(
            "x h:1@2 myself,slave y 0 0 6 connected\n\
             y h:2@3 master - 0 0 6 connected 0-9\n\
             z h:3@4 master - 0 0 2 connected 10\n",
        );
        let alone = Views::new(vec![late()]);
        let x = alone.owner(0).unwrap();
        assert_eq!(&*x.id, "x");
        assert!(alone.are_newer(0, x, "x", 1));
        // A replica that has asked the late node alone has x with epoch 6.
        let both = Views::new(vec![copy, late()]);
        let y = both.owner(0).unwrap();
        assert_eq!(&*y.id, "y");
        assert!(both.are_newer(0, y, "x", 6));
        // It does not go back.
        assert!(!alone.are_newer(0, x, "y", 6));
        assert!(!both.are_newer(0, x, "y", 6));
    }

    #[test]
    fn an_owner_is_newer_by_its_epoch_or_if_the_known_one_is_gone() {
        let text = "a a:1@2 master - 0 0 5 connected 0-9\nb b:1@2 slave a 0 0 5 connected\n";
        let views = Views::new(vec![View::parse(text, &asked(), false).unwrap()]);
        let owner = views.owner(0).unwrap();
        for (known, epoch, is_newer) in [
            ("a", 4, true),
            ("a", 5, true),
            ("a", 6, false),
            ("b", 4, true),
            // Only one of two nodes answers.
            ("b", 5, false),
            ("b", 6, false),
            ("of another cluster", 6, true),
        ] {
            let found = views.are_newer(0, owner, known, epoch);
            assert_eq!(found, is_newer, "{known} {epoch}");
        }
    }
}
