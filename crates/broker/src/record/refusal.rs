//! `Refusal`: whether Redis lets this replica subscribe to raw messages.

use prometheus::IntGauge;

use crate::{metrics::Metrics, node::Node};

/// Whether Redis lets this replica subscribe to raw messages of a node. Its user may lack the right, and some managed
/// services have no PSUBSCRIBE.
pub(super) struct Refusal {
    /// Number of nodes that refuse.
    gauge: IntGauge,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Allowed,
    Refused,
}

impl Refusal {
    pub(super) fn new(metrics: &Metrics) -> Self {
        Self {
            gauge: metrics.raw_refused.clone(),
            state: State::Unknown,
        }
    }

    /// Asks Redis, unless it has allowed it before. Returns whether it refuses. A change is logged once for all nodes.
    /// Without an answer the result is false, because the subscription will fail for the same reason.
    pub(super) async fn ask(&mut self, node: &Node, prefix: &str) -> bool {
        if self.state == State::Allowed {
            return false;
        }
        match node.refusal_of_raw(prefix).await {
            Err(error) => {
                tracing::debug!(%error, "failed to ask whether raw messages may be subscribed to");
                return false;
            }
            Ok(None) => self.set(State::Allowed),
            Ok(Some(_)) if self.state == State::Refused => {}
            Ok(Some(error)) => {
                if self.gauge.get() == 0 {
                    tracing::warn!(
                        error,
                        "redis refuses PSUBSCRIBE: messages of PUBLISH are not recorded and reach no client. POST and \
                         FCALL sse_publish work. If nothing is published by PUBLISH, set --recorders 0"
                    );
                }
                self.set(State::Refused);
            }
        }
        self.state == State::Refused
    }

    /// The last subscription did not begin, so Redis is asked again before the next one.
    pub(super) fn forget(&mut self) {
        self.set(State::Unknown);
    }

    fn set(&mut self, state: State) {
        let before = std::mem::replace(&mut self.state, state);
        let is = |it| i64::from(it == State::Refused);
        self.gauge.add(is(state) - is(before));
        if before == State::Refused && state == State::Allowed {
            tracing::info!("redis allows PSUBSCRIBE now");
        }
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        self.set(State::Unknown);
    }
}
