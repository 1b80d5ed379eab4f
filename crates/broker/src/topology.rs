//! `Topology`: which node holds each partition. For several Redis servers, only this and `server/` would differ.

use crate::{Config, deployment::Deployment, metrics::Metrics, node::Node};

/// The nodes of a deployment. One Redis server holds all partitions. A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct Topology {
    node: Node,
}

impl Topology {
    pub(crate) fn new(config: &Config, metrics: Metrics) -> Self {
        let deployment = Deployment::new(config, metrics);
        let partitions = config.partitions.all().collect();
        Self {
            node: Node::new(deployment, config.redis.clone(), partitions),
        }
    }

    pub(crate) fn deployment(&self) -> &Deployment {
        self.node.deployment()
    }

    /// All nodes.
    pub(crate) fn nodes(&self) -> &[Node] {
        std::slice::from_ref(&self.node)
    }

    /// The place in [`nodes`](Self::nodes) of the node that holds a partition. One Redis holds all.
    pub(crate) fn index(&self, _partition: u16) -> usize {
        0
    }

    /// The node that holds a partition.
    pub(crate) fn node(&self, partition: u16) -> &Node {
        &self.nodes()[self.index(partition)]
    }
}
