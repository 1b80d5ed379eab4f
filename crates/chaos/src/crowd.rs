//! The clients of a run: which channels each follows, when they leave, and when all receive again.

use std::time::Duration;

use anyhow::{Result, bail};
use testkit::{
    lab::{Fleet, Plan},
    micros_since_epoch,
};
use tokio::time::{Instant, interval, sleep};

use crate::channels::{BURST, CHANNELS, FUNCTION, POST, RAW, SAME};

/// Longest wait until every client receives again.
pub(crate) const LIVE: Duration = Duration::from_secs(60);
/// How often clients leave by themselves.
const AMBIENT: Duration = Duration::from_millis(500);
/// The share of clients that leave each time.
pub(crate) const AMBIENT_SHARE: f64 = 0.03;
/// Number of clients of the channel that fills buffers.
pub(crate) const BURST_CLIENTS: usize = 12;
/// Longest stall of a client that stalls.
const STALL: Duration = Duration::from_secs(2);

/// The channels of the client with this number. The last [`BURST_CLIENTS`] of all clients follow the channel that fills
/// buffers.
pub(crate) fn plan(number: usize, clients: usize) -> Plan {
    let (channels, other, stalls) = match (number + BURST_CLIENTS).checked_sub(clients) {
        Some(number) => (0..1, Some(BURST), number % 2 == 0),
        None => {
            let same = number.is_multiple_of(2).then_some(SAME);
            (number..number + 1 + number % 3, same, number % 10 == 3)
        }
    };
    let channels = channels.map(|at| CHANNELS[at % CHANNELS.len()].to_owned());
    Plan {
        others: other.map(str::to_owned).into_iter().collect(),
        stall: if stalls { STALL } else { Duration::ZERO },
        ..Plan::new(&channels.collect::<Vec<_>>(), number)
    }
}

/// Whether the client with this number follows a channel.
pub(crate) fn follows(number: usize, clients: usize, channel: &str) -> bool {
    let Plan {
        channels, others, ..
    } = plan(number, clients);
    channels.iter().chain(&others).any(|mine| mine == channel)
}

/// Clients leave and reconnect all the time.
pub(crate) async fn leave_and_return<T>(fleet: &Fleet, share: f64) -> T {
    let mut pace = interval(AMBIENT);
    loop {
        pace.tick().await;
        fleet.cut_some(share, AMBIENT);
    }
}

/// Waits until every client has a stored and a raw message that was sent at `micros` or later.
///
/// # Errors
/// If some clients do not receive them.
pub(crate) async fn everybody(fleet: &Fleet, micros: u64, stalling: bool) -> Result<()> {
    let deadline = Instant::now() + LIVE;
    let publishers = [RAW, FUNCTION, POST];
    let behind = || publishers.map(|publisher| fleet.stale(publisher, micros, stalling));
    while behind() != [0; 3] {
        if Instant::now() > deadline {
            let behind = behind();
            bail!("{behind:?} clients are behind with {publishers:?} and do not catch up");
        }
        sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}

/// How long after `over` every reading client receives a stored message, and a raw one.
pub(crate) async fn live(fleet: &Fleet, over: u64) -> Result<(Duration, Duration)> {
    let mut times = [None; 2];
    let deadline = Instant::now() + LIVE;
    loop {
        for (time, publisher) in times.iter_mut().zip([FUNCTION, RAW]) {
            if time.is_none() && fleet.stale(publisher, over, false) == 0 {
                let passed = micros_since_epoch().saturating_sub(over);
                *time = Some(Duration::from_micros(passed));
            }
        }
        if let [Some(function), Some(raw)] = times {
            return Ok((function, raw));
        }
        if Instant::now() > deadline {
            let behind = [FUNCTION, RAW].map(|publisher| fleet.stale(publisher, over, false));
            bail!("{behind:?} clients receive nothing from the function, or nothing raw");
        }
        sleep(Duration::from_millis(5)).await;
    }
}
