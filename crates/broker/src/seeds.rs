//! How many random traces a simulation runs.

/// `SIMULATION_SEEDS`, or this many. More take longer and find rarer faults.
pub(crate) fn seeds(default: u64) -> u64 {
    let seeds = std::env::var("SIMULATION_SEEDS");
    seeds.map_or(default, |seeds| seeds.parse().expect("it is a number"))
}
