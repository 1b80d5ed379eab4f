//! Candidacies: which replicas may subscribe to raw messages, `--recorders` of them.

use std::{future::Future, time::Duration};

use futures_util::FutureExt as _;

use super::Recorder;
use crate::{Error, call::Function};

/// The answer to a claim.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Candidacy {
    None,
    Granted,
    /// Granted, because a candidate always keeps its candidacy, but there are more candidates than `recorders`.
    Surplus,
}

impl Recorder {
    /// Claims a candidacy for the duration `ttl`. Zero releases it.
    pub(super) fn claim(
        &self,
        ttl: Duration,
        has: Candidacy,
    ) -> impl Future<Output = Result<Candidacy, Error>> + Send + use<> {
        let node = self.node.clone();
        let (recorders, ttl) = (self.recorders.to_string(), ttl.as_millis().to_string());
        let has: &[u8] = if has == Candidacy::None { b"0" } else { b"1" };
        // The command that migrates is one more recorder, and gateways must not make room for it: it may be killed.
        let is_extra = self.diversion.is_some();
        async move {
            if is_extra {
                return Ok(Candidacy::Granted);
            }
            let deployment = node.deployment();
            let partition = node.first_partition().ok_or(Error::NoOwner)?;
            let call = deployment.new_call(Function::Candidate, partition);
            let call = call.arg(deployment.replica());
            let call = call.arg(&recorders).arg(&ttl).arg(has);
            Ok(match node.call(&call).await? {
                0 => Candidacy::None,
                1 => Candidacy::Granted,
                _ => Candidacy::Surplus,
            })
        }
    }

    pub(super) fn give_up_candidacy(&self) -> impl Future<Output = ()> + Send + use<> {
        let claim = self.claim(Duration::ZERO, Candidacy::Granted);
        claim.map(|_expires| ())
    }
}
