//! `Renewal`: the settings that can be changed while the broker runs.

use crate::{Error, Rule, Server, topology::Topology};

/// Changes the retention rules and the certificates; clone it.
#[derive(Clone)]
pub struct Renewal(Topology);

impl Renewal {
    pub(crate) fn new(topology: Topology) -> Self {
        Self(topology)
    }

    /// From now on new connections to Redis and to sentinels use the certificates of `server`, which was made with the
    /// same URLs. Existing connections stay.
    ///
    /// # Errors
    /// When the certificates cannot be used.
    pub fn set_certificates(&self, server: &Server) -> Result<(), Error> {
        for node in self.0.layout().nodes() {
            node.renew(server).map_err(Error::of)?;
        }
        Ok(())
    }

    /// Replaces the rules in the function library.
    ///
    /// # Errors
    /// When Redis does not accept the library now. Then the next connection loads it.
    pub async fn set_rules(&self, rules: &[Rule]) -> Result<(), Error> {
        self.0.deployment().set_rules(rules);
        for node in self.0.layout().nodes() {
            node.prepare().await?;
        }
        Ok(())
    }
}
