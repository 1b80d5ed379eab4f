//! The results of a run.

use crate::{Chaos, row::Row};

/// The results of a run.
#[derive(Clone, Debug)]
pub struct Findings {
    /// The configuration of the run.
    pub chaos: Chaos,
    /// The result of each entry of `alone`.
    pub rows: Vec<Row>,
    /// The result of all random faults together, if there were any.
    pub random: Option<Soak>,
    /// The reason, if the run ended early.
    pub failed: Option<String>,
}

/// The result of the random faults.
#[derive(Clone, Debug)]
pub struct Soak {
    /// The sums of all rows.
    pub row: Row,
    /// Number of rows.
    pub rounds: u64,
    /// Number of rows that broke a promise.
    pub broken: u64,
    /// Number of rows in which every raw message had to be recorded.
    pub recorded: u64,
    /// Resident bytes and open files (without streams) of a replica that lived through all rows, once per minute.
    pub usage: Vec<[u64; 2]>,
}

impl Soak {
    /// Whether that replica grew: its memory by more than 2 MiB, or its open files by more than two. The least value of
    /// the last fifth of the time is compared with that of the first fifth, because clients move both values. Less than
    /// ten minutes prove nothing.
    pub fn has_grown(&self) -> bool {
        let part = self.usage.len() / 5;
        let least = |usage: &[[u64; 2]], what: usize| usage.iter().map(|at| at[what]).min();
        part >= 2
            && [2 << 20, 2].into_iter().enumerate().any(|(what, room)| {
                let first = least(&self.usage[..part], what);
                let last = least(&self.usage[self.usage.len() - part..], what);
                last.zip(first)
                    .is_some_and(|(last, first)| last > first + room)
            })
    }
}

impl Default for Soak {
    fn default() -> Self {
        Self {
            row: Row::new(&[], true),
            rounds: 0,
            broken: 0,
            recorded: 0,
            usage: Vec::new(),
        }
    }
}

impl Findings {
    /// Whether everything was as promised.
    pub fn is_kept(&self) -> bool {
        let rows = self.rows.iter().all(Row::is_kept);
        let soak = |soak: &Soak| soak.broken == 0 && !soak.has_grown();
        self.failed.is_none() && rows && self.random.iter().all(soak)
    }
}

#[cfg(test)]
mod tests {
    use super::Soak;

    #[test]
    fn a_slow_leak_is_growth() {
        let grown = |megabytes: [u64; 2], files: [u64; 2]| {
            let usage = (0..30).map(|minute| {
                let at = |[first, last]: [u64; 2]| first + (last - first) * minute / 29;
                // The activity of clients moves both values too.
                let noise = minute % 3;
                [(at(megabytes) + noise) << 20, at(files) + noise]
            });
            let usage = usage.collect();
            let soak = Soak {
                usage,
                ..Soak::default()
            };
            soak.has_grown()
        };
        assert!(!grown([15, 15], [22, 22]));
        assert!(!grown([15, 16], [22, 23]));
        assert!(grown([15, 20], [22, 22]));
        assert!(grown([15, 15], [22, 27]));
    }
}
