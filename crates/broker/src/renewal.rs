//! `Renewal`: the settings that can be changed while the broker runs.

use crate::{Error, Rule, Server, connection::Redis};

/// Changes the retention rules and the certificates; clone it.
#[derive(Clone)]
pub struct Renewal(Redis);

impl Renewal {
    pub(crate) fn new(redis: Redis) -> Self {
        Self(redis)
    }

    /// From now on connections to Redis, and to sentinels, are made with the certificates of `server`, which was made with
    /// the same URLs. Those that there are stay.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn set_certificates(&self, server: &Server) -> Result<(), Error> {
        self.0.renew(server).map_err(Error::of)
    }

    /// Replaces the rules in the function library.
    ///
    /// # Errors
    /// When Redis does not take it now. It is given it with the next connection then.
    pub async fn set_rules(&self, rules: &[Rule]) -> Result<(), Error> {
        self.0.set_rules(rules);
        self.0.prepare().await
    }
}
