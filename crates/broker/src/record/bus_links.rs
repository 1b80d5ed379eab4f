//! `BusLinks`: whether the links over which the other nodes of a cluster send to a node were made again.

use std::{collections::HashMap, sync::Once};

use redis::{Cmd, Value, from_redis_value};

use crate::{Error, node::Node, throttled};

/// A link to a node from another one: the id of that node, and when the link was made, in milliseconds since 1970.
pub(super) type Link = (String, i64);

/// The links to a node. When a link is made again, the messages that waited for it are lost.
#[derive(Default)]
pub(super) struct BusLinks {
    made: HashMap<String, i64>,
    pub(super) is_refused: bool,
}

impl BusLinks {
    /// The node has answered which links there are to it.
    pub(super) fn answered(&mut self, node: &Node, links: Result<Vec<Link>, Error>) {
        match links {
            Ok(links) => {
                let rebuilt = self.rebuilt(links);
                if rebuilt > 0 {
                    node.metrics().rebuilt_links.inc_by(rebuilt);
                    throttled!(
                        warn,
                        node = ?node.address(),
                        links = rebuilt,
                        "links of the cluster bus were made again: raw messages on their way to this node were lost. Those that other nodes have delivered are recorded late"
                    );
                }
            }
            Err(error) if is_refusal(&error) => {
                self.is_refused = true;
                static ONCE: Once = Once::new();
                ONCE.call_once(|| {
                    tracing::warn!(%error, "CLUSTER LINKS is refused: losses on the cluster bus are not counted");
                });
            }
            // Asked again.
            Err(error) => tracing::debug!(%error, "the links of the cluster bus are not known"),
        }
    }

    /// How many links were made again since the last time.
    fn rebuilt(&mut self, links: Vec<Link>) -> u64 {
        let rebuilt = links.into_iter().filter(|(id, made)| {
            let before = self.made.insert(id.clone(), *made);
            before.is_some_and(|before| before != *made)
        });
        rebuilt.count() as u64
    }
}

/// Asks a node for the links to it. A user of Redis may lack that right, or a service forbid the command.
pub(super) async fn links_to(node: Node) -> Result<Vec<Link>, Error> {
    let command = Cmd::new().arg("CLUSTER").arg("LINKS").to_owned();
    let links: Vec<HashMap<String, Value>> = node.ask(&command).await?;
    let link = |link: &HashMap<String, Value>| {
        let value = |name| link.get(name).cloned();
        let text = |name| from_redis_value::<String>(value(name)?).ok();
        let made = from_redis_value(value("create-time")?).ok()?;
        (text("direction")? == "from").then_some((text("node")?, made))
    };
    Ok(links.iter().filter_map(link).collect())
}

/// Whether asking once more would be in vain.
fn is_refusal(error: &Error) -> bool {
    match error {
        Error::Forbidden(_) | Error::TooOld => true,
        Error::Unavailable(error) => error.to_string().contains("nknown subcommand"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_was_made_again_is_counted_once() {
        let mut links = BusLinks::default();
        let mut rebuilt = |all: &[(&str, i64)]| {
            let all = all.iter().map(|(id, made)| ((*id).to_owned(), *made));
            links.rebuilt(all.collect())
        };
        assert_eq!(rebuilt(&[("a", 1), ("b", 1)]), 0);
        assert_eq!(rebuilt(&[("a", 2), ("b", 1), ("c", 2)]), 1);
        assert_eq!(rebuilt(&[("a", 2)]), 0);
        assert_eq!(rebuilt(&[("a", 2), ("b", 3), ("c", 2)]), 1);
    }
}
