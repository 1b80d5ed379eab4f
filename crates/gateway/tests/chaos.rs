//! The short form of the fault suite: every fault alone, and changed events.
//!
//! The long form, with random faults up to two at once, is `./dev chaos`.

use std::time::Duration;

use chaos::{Chaos, Fault, Kind, Mutation};
use futures_util::future::join_all;
use tokio::{
    sync::Mutex,
    task::{JoinSet, LocalSet},
};

/// All tests share two cores.
static MACHINE: Mutex<()> = Mutex::const_new(());

fn chaos(clients: usize, alone: &[Fault]) -> Chaos {
    Chaos {
        clients,
        rate: 30.0,
        seed: 1,
        alone: alone.iter().map(|fault| vec![*fault]).collect(),
        random: Duration::ZERO,
    }
}

/// Breaks when any fault loses, repeats or reorders an event against the promises, or when a gap arrives although no
/// message is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_keeps_the_promises() {
    let _machine = MACHINE.lock().await;
    // Faults spend most of their time waiting, so these runs share the machine.
    let all = Fault::all().iter().copied();
    let of = |kind| all.clone().filter(move |fault| fault.kind() == kind);
    let lone: Vec<_> = of(Kind::Lone).collect();
    let [watched, cluster] =
        [Kind::Watched, Kind::Cluster].map(|kind| of(kind).collect::<Vec<_>>());
    let (first, second) = lone.split_at(lone.len() / 2);
    let runs = [(30, &*watched), (40, first), (40, second), (30, &*cluster)];
    let runs = runs.map(async |(clients, faults)| chaos(clients, faults).run().await);
    for findings in join_all(runs).await {
        assert_eq!(findings.failed, None);
        assert!(findings.is_kept(), "see the rows above");
        // A row without activity proves nothing. While Redis is stopped, little is published.
        for row in &findings.rows {
            let is_active = row.messages > 20 && row.deliveries > 5 * row.messages;
            assert!(is_active, "{row}");
        }
    }
}

/// Breaks when the checker does not notice the changed event, or reports another violation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checker_notices_a_changed_event() {
    let _machine = MACHINE.lock().await;
    let (here, mut runs) = (LocalSet::new(), JoinSet::new());
    for (mutation, fault) in [
        (Mutation::Drop, Fault::None),
        (Mutation::Drop, Fault::FlushAll),
        (Mutation::Repeat, Fault::KillPubsub),
        (Mutation::StripId, Fault::OutOfMemory),
        (Mutation::Reorder, Fault::KillCommands),
        (Mutation::Renumber, Fault::None),
        (Mutation::Leak, Fault::ScriptFlush),
        (Mutation::DropAlike, Fault::Trim),
        (Mutation::FalseGap, Fault::Trim),
    ] {
        let run = async move {
            let row = chaos(20, &[]).mutated(mutation, fault).await;
            (mutation, row.expect("a run to its end"))
        };
        runs.spawn_local_on(run, &here);
    }
    for (mutation, row) in here.run_until(runs.join_all()).await {
        assert!(!row.is_kept(), "{mutation:?}: {row}");
        let (counted, text) = match mutation {
            Mutation::Drop => (row.lost, "did not arrive"),
            Mutation::DropAlike => (row.lost, "times, elsewhere"),
            Mutation::Repeat => (row.repeated, "arrived again, as"),
            Mutation::StripId => (row.disorder, "arrived without an id"),
            Mutation::Reorder => (row.disorder, " arrived after "),
            Mutation::Renumber => (row.disorder, ", elsewhere "),
            Mutation::Leak => (row.disorder, "was not requested"),
            Mutation::FalseGap => (row.disorder, "where a gap was received"),
        };
        let examples = &row.examples;
        let is_found = examples.iter().any(|example| example.contains(text));
        assert!(is_found, "{mutation:?}: {examples:?}");
        // Each client that compares ids may report a false id. A late event may arrive after two others.
        let may_be_more = matches!(mutation, Mutation::Renumber | Mutation::Reorder);
        let is_it = counted == 1 || may_be_more && counted > 0;
        assert!(is_it, "{mutation:?}: {row}");
    }
}
