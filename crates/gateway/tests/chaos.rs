//! The fault suite in its short form: every fault alone, and somebody who falsifies an event.
//!
//! The long form, with faults two at once at random, is `./dev chaos`.

use std::time::Duration;

use loadtest::{Chaos, Fault, Sabotage};
use tokio::{
    sync::Mutex,
    task::{JoinSet, LocalSet},
};

/// Two cores are shared by everything.
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

/// Breaks when any fault loses, repeats or reorders an event that was promised, or when a gap is told
/// where nothing is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_keeps_the_promises() {
    let _machine = MACHINE.lock().await;
    // A failover is mostly waiting.
    let all = Fault::all().iter().copied();
    let (guarded, others): (Vec<_>, Vec<_>) = all.partition(|fault| fault.needs_sentinels());
    let (guarded, others) = (chaos(30, &guarded), chaos(60, &others));
    let (guarded, others) = tokio::join!(Box::pin(guarded.run()), Box::pin(others.run()));
    for findings in [guarded, others] {
        assert_eq!(findings.failed, None);
        assert!(findings.is_kept(), "see the rows above");
        // A row in which nothing happened shows nothing.
        for row in &findings.rows {
            assert!(row.messages > 20 && row.deliveries > 1000, "{row}");
        }
    }
}

/// Breaks when the judge does not notice what is falsified, or takes it for something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_that_is_falsified_is_noticed() {
    let _machine = MACHINE.lock().await;
    let (here, mut runs) = (LocalSet::new(), JoinSet::new());
    for (sabotage, fault) in [
        (Sabotage::Drop, Fault::None),
        (Sabotage::Drop, Fault::FlushAll),
        (Sabotage::Repeat, Fault::KillPubsub),
        (Sabotage::StripId, Fault::OutOfMemory),
        (Sabotage::Reorder, Fault::KillCommands),
        (Sabotage::Renumber, Fault::None),
        (Sabotage::Leak, Fault::ScriptFlush),
        (Sabotage::DropAlike, Fault::Trim),
        (Sabotage::FalseGap, Fault::Trim),
    ] {
        let run = async move {
            let row = chaos(20, &[]).sabotaged(sabotage, fault).await;
            (sabotage, row.expect("a run to its end"))
        };
        runs.spawn_local_on(run, &here);
    }
    for (sabotage, row) in here.run_until(runs.join_all()).await {
        assert!(!row.is_kept(), "{sabotage:?}: {row}");
        let (counted, said) = match sabotage {
            Sabotage::Drop => (row.lost, "never came"),
            Sabotage::DropAlike => (row.lost, "times, elsewhere"),
            Sabotage::Repeat => (row.repeated, "came again, as"),
            Sabotage::StripId => (row.disorder, "came without an id"),
            Sabotage::Reorder => (row.disorder, " came after "),
            Sabotage::Renumber => (row.disorder, ", elsewhere "),
            Sabotage::Leak => (row.disorder, "was not asked for"),
            Sabotage::FalseGap => (row.disorder, "where a gap was told"),
        };
        let examples = &row.examples;
        let is_said = examples.iter().any(|example| example.contains(said));
        assert!(is_said, "{sabotage:?}: {examples:?}");
        // A false id is false for everybody who compares; one that is late may be so behind two.
        let may_be_more = matches!(sabotage, Sabotage::Renumber | Sabotage::Reorder);
        let is_it = counted == 1 || may_be_more && counted > 0;
        assert!(is_it, "{sabotage:?}: {row}");
    }
}
