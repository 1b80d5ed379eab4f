//! `Gauges`: the parts of one recorder in the gauges of its replica, which sum up all nodes.

use prometheus::IntGauge;

use super::machine::Machine;
use crate::metrics::Metrics;

/// The parts of one recorder in the gauges, while it has a candidacy. They end when this is dropped.
pub(super) struct Gauges {
    _candidacy: Part,
    in_sync: Part,
    active: Part,
    compared: Part,
    pending: Part,
}

/// The part of one recorder in a gauge.
struct Part {
    gauge: IntGauge,
    part: i64,
}

impl Part {
    fn of(gauge: &IntGauge) -> Self {
        Self {
            gauge: gauge.clone(),
            part: 0,
        }
    }

    /// Returns whether it has changed.
    fn set(&mut self, part: i64) -> bool {
        let change = part - std::mem::replace(&mut self.part, part);
        if change != 0 {
            self.gauge.add(change);
        }
        change != 0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.set(0);
    }
}

impl Gauges {
    /// The recorder has a candidacy from now on.
    pub(super) fn new(metrics: &Metrics) -> Self {
        let mut candidacy = Part::of(&metrics.candidacy);
        candidacy.set(1);
        Self {
            _candidacy: candidacy,
            in_sync: Part::of(&metrics.in_sync),
            active: Part::of(&metrics.active),
            compared: Part::of(&metrics.compared),
            pending: Part::of(&metrics.pending),
        }
    }

    /// The number of partitions that are compared with the deliveries of other nodes.
    pub(super) fn compare(&mut self, partitions: usize) {
        self.compared.set(partitions as i64);
    }

    /// Measures the machines. `hears`: the subscription works.
    pub(super) fn measure<'a>(&mut self, machines: impl Iterator<Item = &'a Machine>, hears: bool) {
        let (mut in_sync, mut active, mut pending) = (0, 0, 0);
        for machine in machines {
            in_sync += i64::from(hears && machine.is_in_sync());
            active += i64::from(machine.active().is_some());
            pending += machine.pending() as i64;
        }
        self.in_sync.set(in_sync);
        self.pending.set(pending);
        if self.active.set(active) {
            tracing::info!(partitions = active, "recording");
        }
    }
}
