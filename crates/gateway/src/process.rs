//! The metrics of the process, read from `/proc` at each scrape. prometheus's own collector takes as long to compile as
//! half of the gateway, because its parser knows all of `/proc`.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{
    Counter, IntGauge,
    core::{Collector, Desc},
    proto::MetricFamily,
};
use rlimit::Resource;

/// Linux shows programs the times in `/proc/self/stat` in hundredths of a second. The kernel's own ticks may differ.
const TICKS_PER_SECOND: f64 = 100.0;

/// Collects the `process_` metrics of this process.
pub(crate) struct Process {
    cpu: Counter,
    open_fds: IntGauge,
    max_fds: IntGauge,
    virtual_memory: IntGauge,
    resident_memory: IntGauge,
    start: IntGauge,
    threads: IntGauge,
}

impl Process {
    /// To be called at the start, whose time is one of the metrics.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let start = IntGauge::new(
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
        )?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        start.set(now.map_or(0, |now| integer(now.as_secs())));
        Ok(Self {
            cpu: Counter::new(
                "process_cpu_seconds_total",
                "Total user and system CPU time spent in seconds.",
            )?,
            open_fds: IntGauge::new("process_open_fds", "Number of open file descriptors.")?,
            max_fds: IntGauge::new(
                "process_max_fds",
                "Maximum number of open file descriptors.",
            )?,
            virtual_memory: IntGauge::new(
                "process_virtual_memory_bytes",
                "Virtual memory size in bytes.",
            )?,
            resident_memory: IntGauge::new(
                "process_resident_memory_bytes",
                "Resident memory size in bytes.",
            )?,
            start,
            threads: IntGauge::new("process_threads", "Number of OS threads in the process.")?,
        })
    }

    fn gauges(&self) -> [&IntGauge; 6] {
        [
            &self.open_fds,
            &self.max_fds,
            &self.virtual_memory,
            &self.resident_memory,
            &self.start,
            &self.threads,
        ]
    }

    /// A part that cannot be read keeps its value.
    fn read(&self) {
        if let Some(files) = open_fds() {
            self.open_fds.set(integer(files));
        }
        if let Ok((soft, _)) = Resource::NOFILE.get() {
            self.max_fds.set(integer(soft));
        }
        if let Ok(status) = fs::read_to_string("/proc/self/status") {
            let set = |gauge: &IntGauge, name, unit: u64| {
                if let Some(value) = field(&status, name) {
                    gauge.set(integer(value.saturating_mul(unit)));
                }
            };
            set(&self.virtual_memory, "VmSize:", 1024);
            set(&self.resident_memory, "VmRSS:", 1024);
            set(&self.threads, "Threads:", 1);
        }
        let stat = fs::read_to_string("/proc/self/stat").ok();
        if let Some(seconds) = stat.as_deref().and_then(cpu_seconds) {
            self.cpu.inc_by((seconds - self.cpu.get()).max(0.0));
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        let gauges = self.gauges().into_iter().flat_map(Collector::desc);
        gauges.chain(self.cpu.desc()).collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.read();
        let gauges = self.gauges().into_iter().flat_map(Collector::collect);
        gauges.chain(self.cpu.collect()).collect()
    }
}

/// Linux 6.2 and later has the number as the size of the directory. Before, its entries are counted.
fn open_fds() -> Option<u64> {
    const OPEN: &str = "/proc/self/fd";
    match fs::metadata(OPEN).ok()?.len() {
        // The directory itself is open while it is read.
        0 => Some((fs::read_dir(OPEN).ok()?.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

/// The number of a line such as `VmRSS:     1616 kB`.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// User and system time, of `/proc/self/stat`. The second field is the program's name in parentheses, which may contain
/// spaces and parentheses.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    // The fields after the name begin with the third.
    let mut times = fields.split(' ').skip(14 - 3).take(2);
    let [user, system]: [f64; 2] = [times.next()?.parse().ok()?, times.next()?.parse().ok()?];
    Some((user + system) / TICKS_PER_SECOND)
}

/// A limit as a gauge takes it. Without a limit, the largest number.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_status_and_the_times_of_stat_are_read() {
        let status = "VmSize:\t    3060 kB\nVmRSS:\t    1616 kB\nThreads:\t7\n";
        assert_eq!(field(status, "VmRSS:"), Some(1616));
        assert_eq!(field(status, "Threads:"), Some(7));
        assert_eq!(field(status, "VmSwap:"), None);
        let stat = "42 (a) (b c) S 1 42 42 0 -1 4194560 107 0 0 0 150 75 3 4 20 0 1 0 33 0 0";
        assert_eq!(cpu_seconds(stat), Some(2.25));
        assert_eq!(cpu_seconds("42 (a) S 1"), None);
    }

    #[test]
    fn all_metrics_of_this_process_have_values() {
        let process = Process::new().unwrap();
        let families = process.collect();
        assert_eq!(families.len(), process.desc().len());
        for gauge in process.gauges() {
            let family = gauge.collect();
            assert!(gauge.get() > 0, "{family:?}");
        }
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while process.cpu.get() == 0.0 {
            assert!(std::time::Instant::now() < deadline, "no time was counted");
            process.read();
        }
    }
}
