//! Whether the faults of a row had a visible effect.

use std::time::Duration;

use super::Row;
use crate::fault::Fault;

impl Row {
    /// Whether the faults had a visible effect. A row whose faults had none proves nothing.
    pub(super) fn has_shown(&self) -> bool {
        self.stored > 0 && self.faults.iter().all(|fault| self.shows(*fault))
    }

    fn shows(&self, fault: Fault) -> bool {
        // Raw messages may have no subscriber at that time. Appends are refused even then.
        let refused = r#"sse_gateway_published_total{result="redis_takes_no_writes"}"#;
        match fault {
            Fault::OutOfMemory | Fault::DiskFull => {
                return self.unrecorded > 0 || self.metrics.contains_key(refused);
            }
            fault if fault.causes_gaps() => return self.gaps > 0,
            // Another fault at the same time may hide the effect.
            _ if self.faults.len() > 1 => return true,
            _ => {}
        }
        let counted = |name: &str| -> f64 {
            let series = self.metrics.iter();
            let named = series.filter(|(series, _)| series.starts_with(name));
            named.map(|(_, by)| by).sum()
        };
        let logged = |text: &str| self.logs.keys().any(|line| line.contains(text));
        match fault {
            Fault::KillReplica
            | Fault::KillRecorder
            | Fault::TermReplica
            | Fault::TermRecorder
            // A replica that has just been replaced may have no client yet.
            | Fault::RollingRestart => self.cuts > 0 || self.ready[0] < self.ready[1],
            Fault::StopReplica | Fault::StopRecorder => self.up < self.ready[1],
            Fault::NoFiles => logged("cannot accept connections"),
            Fault::NeverReading => counted("sse_gateway_history_pages_total") > 0.0,
            Fault::Churn => counted("sse_gateway_streams_total") > 1000.0,
            Fault::Stampede => self.returns > 0,
            Fault::ScriptFlush => logged("the function library"),
            Fault::ClientPause | Fault::StopRedis => self.silence > Duration::from_secs(1),
            Fault::LoseSentinels => self.silence > Duration::from_secs(1),
            fault if fault.replaces_master() => logged("another redis is the master"),
            Fault::ClusterFailOver
            | Fault::ClusterStall
            | Fault::ClusterKill
            | Fault::MoveSlot
            | Fault::AddMaster => logged("partitions have moved to other nodes"),
            Fault::CutBus => counted("sse_gateway_raw_republished_total") > 0.0,
            Fault::KillPubsub | Fault::Cut => self.gaps > 0,
            Fault::RestartRedis
            | Fault::KillRedis
            | Fault::CutRecorder
            | Fault::HalfOpen
            | Fault::Blackhole
            | Fault::HalfOpenRecorder
            | Fault::BlackholeRecorder
            | Fault::OutputBuffer
            | Fault::RollingNodes => counted("sse_gateway_redis_reconnects_total") > 0.0,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Fault, Row};

    #[test]
    fn a_row_whose_faults_had_no_effect_is_not_kept() {
        let row = |faults: &[Fault]| Row {
            stored: 1,
            ready: [3, 3],
            up: 3,
            ..Row::new(faults, true)
        };
        for fault in Fault::all() {
            // Only the delay of events shows these faults.
            let shows_little = [
                Fault::None,
                Fault::Delay,
                Fault::DelayRecorder,
                Fault::KillCommands,
                Fault::Evict,
            ];
            let is_kept = row(&[*fault]).is_kept();
            assert_eq!(is_kept, shows_little.contains(fault), "{fault:?}");
        }
        let mut row = row(&[Fault::OutOfMemory, Fault::Cut]);
        assert!(!row.is_kept());
        let refused = r#"sse_gateway_published_total{result="redis_takes_no_writes"}"#;
        row.metrics.insert(refused.to_owned(), 1.0);
        assert!(row.is_kept());
    }
}
