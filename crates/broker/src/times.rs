//! All times of the protocol, and the relations between them.
//!
//! docs/protocol.md lists the most important. A relation that does not hold does not compile.

use std::time::Duration;

/// Another recorder can acquire a lease that was not renewed for this long. A recorder that dies is replaced within
/// this time. A shorter lease costs commands, and false alarms when a process stalls. The library uses it.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
/// Between two looks at the lease.
pub(crate) const TICK: Duration = Duration::from_millis(200);
/// An active recorder renews its lease at every second tick.
pub(crate) const RENEW_TICKS: u32 = 2;
/// If a fence has not arrived after this many ticks, the subscription delivers nothing.
pub(crate) const FENCE_TICKS: u32 = 12;
/// A barrier that was not recorded after this many ticks is published again. The recorder that received it may be gone.
pub(crate) const BARRIER_TICKS: u32 = 50;
/// An in-sync mark expires after this many leases. The library multiplies by the same number.
pub(crate) const IN_SYNC_LEASES: u32 = 2;

/// A raw message has arrived from all nodes of a cluster within this time, unless the cluster has lost it on the way.
pub(crate) const SETTLE: Duration = Duration::from_secs(2);
/// The same in ticks.
pub(crate) const SETTLE_TICKS: u32 = 10;
/// A raw message that has arrived from one node of a cluster arrives from the others within this time, or never. A node
/// drops a connection to a peer that is silent for half of `cluster-node-timeout`, which is 15 s by default.
pub(crate) const LATEST: Duration = Duration::from_secs(15);
/// A node that answers a ping within this time is not stalled.
pub(crate) const PROMPT: Duration = Duration::from_millis(500);

/// A candidacy that is not claimed again for this long expires.
pub(crate) const CANDIDACY: Duration = Duration::from_secs(3);
/// Between two claims of a candidacy.
pub(crate) const CLAIM: Duration = Duration::from_secs(1);
/// If Redis refuses the subscription to raw messages, it is asked again after this time. Rights can be granted later.
pub(crate) const RAW_RETRY: Duration = Duration::from_secs(5);

/// A replica that stops continues to record for this long at most while there is no successor. A replica that waits for
/// a candidacy needs a little more than a second.
pub const HANDOVER: Duration = Duration::from_secs(5);
/// The last part of it. The recorder has unsubscribed, so that PUBLISH is answered 0, and records what it has received.
pub(crate) const LAST_APPENDS: Duration = Duration::from_secs(1);
/// Longest wait for the end of a subscription to a master that was replaced.
pub(crate) const PART: Duration = Duration::from_millis(300);

/// Between two pings over a recorder's subscription.
pub(crate) const PING: Duration = Duration::from_secs(1);
/// After more pings than this without an answer, the recorder sends no commands.
pub(crate) const MAX_UNHEARD: u32 = 1;
/// After this many pings without an answer Redis is asked on another connection.
pub(crate) const MAX_SILENT: u32 = 3;
/// If Redis answers there, the silent connection gets this many more pings.
pub(crate) const LAST_PINGS: u32 = 2;

/// Between two probes of every partition over the subscription of live events.
pub(crate) const PROBE: Duration = Duration::from_secs(1);
/// With sentinels there are this many probes in that time, so that a live connection is never silent for [`STALE`].
pub(crate) const PROBES_WITH_SENTINELS: u32 = 3;
/// A node that was silent for this long may have been stalled, and replaced in that time. Sentinels need longer than
/// this to replace one.
pub(crate) const STALE: Duration = Duration::from_millis(1200);
/// If too few sentinels can be asked, a silent node is believed again when it has answered for this long. A replica
/// that has moved to another master would have retired it by then.
pub(crate) const DOUBT: Duration = Duration::from_secs(2);

/// An event has reached every replica within this time, unless the replica is cut off. The library uses it.
pub(crate) const LATENCY: Duration = Duration::from_secs(2);
/// Two out-of-sync recorders that preempt each other resume recording once within this time. The library uses it.
pub(crate) const RESUMED: Duration = Duration::from_secs(10);
/// After Redis lost its newest writes, the first events of an unknown channel may have been among them. The library
/// assumes it for this long. After that the channel's publisher has published again.
pub(crate) const LOST_BEGINNINGS: Duration = Duration::from_secs(60);
/// An end that waits is announced again after this long. Its recorders may have died, or relayed messages while Redis
/// took no writes. The library uses it.
pub(crate) const REPEAT: Duration = Duration::from_secs(5);

/// A partition that the command `migrate` keeps closed is open again after this time without a sign of it. The library
/// uses it.
pub(crate) const CLOSING: Duration = Duration::from_secs(3);
/// Between two of these signs.
pub(crate) const KEEP_CLOSED: Duration = Duration::from_millis(300);
/// Another such command takes over after this time without a sign. The library uses it.
pub(crate) const GONE: Duration = Duration::from_millis(1200);

const fn times(time: Duration, count: u32) -> u128 {
    time.as_millis() * count as u128
}

// Several renewals may be lost before a lease expires.
const _: () = assert!(times(TICK, 4 * RENEW_TICKS) < LEASE.as_millis());
// A late fence can be distinguished from a lease that another recorder holds.
const _: () = assert!(times(TICK, FENCE_TICKS) > LEASE.as_millis());
const _: () = assert!(times(TICK, SETTLE_TICKS) == SETTLE.as_millis());
const _: () = assert!(LATEST.as_millis() > times(SETTLE, 4));
const _: () = assert!(PROMPT.as_millis() < PING.as_millis());
// A barrier is not published again while a dead recorder's lease runs out.
const _: () = assert!(times(TICK, BARRIER_TICKS) > times(LEASE, 2));
// A recorder whose subscription is silent stops sending commands before its mark expires.
const _: () = assert!(times(PING, MAX_UNHEARD + 1) < times(LEASE, IN_SYNC_LEASES));
// Several claims may be lost before a candidacy is free.
const _: () = assert!(times(CLAIM, 3) <= CANDIDACY.as_millis());
// While a replica stops, another one may become a candidate and get in sync.
const _: () = assert!(times(LEASE, 2) + CLAIM.as_millis() <= HANDOVER.as_millis());
const _: () = assert!(LAST_APPENDS.as_millis() < HANDOVER.as_millis());
// A live connection is never taken for a stale one.
const _: () = assert!(times(STALE, PROBES_WITH_SENTINELS) > PROBE.as_millis());
// A recorder that was stalled takes its messages back before a later recorder appends the end that follows them.
const _: () = assert!(REPEAT.as_millis() > times(LEASE, 2));
// Several signs may be late before another command takes over, and before the partition is open again.
const _: () = assert!(times(KEEP_CLOSED, 4) <= GONE.as_millis());
const _: () = assert!(times(GONE, 2) < CLOSING.as_millis());
// Two recorders that preempt each other do so within the time of their leases.
const _: () = assert!(RESUMED.as_millis() > times(LEASE, 2));
