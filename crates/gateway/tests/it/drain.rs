//! A replica that is asked to go, goes without a stampede.

use std::{collections::BTreeSet, time::Duration};

use loadtest::{Answer, Client, End, Received};
use tokio::{task::JoinSet, time::Instant};

use crate::support::{
    Fleet, Gateway, Load, PATIENCE, Plan, Redis, Replicas, Viewer, alone, assert_exact, in_time,
    messages, recording,
};

/// Breaks when a deployment cuts its pages all at once, or loses something on the way, or does not
/// end by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_drains_without_a_stampede() {
    const PAGES: usize = 200;
    const WINDOW: Duration = Duration::from_secs(3);
    let _machine = alone().await;
    let redis = Redis::start().await;
    // Two workers, which have different numbers of pages to drain.
    let options = "--drain-window 3s --heartbeat 1s --workers 2";
    let mut a = Gateway::start(&redis, options).await;
    let b = Gateway::start(&redis, "").await;
    recording([&a, &b], 1).await;
    let channels = ["news".to_owned()];
    let fleet = Fleet::start(
        (0..100).map(|_| Plan::new(&channels, 0)),
        &Replicas::of([&a, &b]),
        1,
        &["p"],
    );
    fleet.open().await;
    let mut pages = JoinSet::new();
    for _ in 0..PAGES {
        let mut page = Viewer::open(&a, "channel=quiet").await;
        pages.spawn(async move {
            let (events, end) = page.until_end().await;
            assert!(messages(&events).is_empty(), "{events:?}");
            assert_eq!(end, End::Whole, "a page was cut rather than told");
            (Instant::now(), page.client.retry())
        });
    }
    let load = Load::publish(&redis, "p", &channels, 100, 100).await;
    fleet.progress(50).await;

    let start = Instant::now();
    a.process().signal("TERM");
    a.readiness(503).await;
    let mut newcomer = Client::new("/events?channel=quiet");
    if let Ok(answer) = newcomer.connect(a.public).await {
        // Accepted in the last moment: it is told to come back, which only 200 does.
        assert_eq!(answer, Answer::Stream);
        while !matches!(in_time("the end", newcomer.next()).await, Received::End(_)) {}
    }
    let status = a.process().exit().await;
    assert_eq!(status.code(), Some(0), "{status}");
    let took = start.elapsed();
    assert!(took < WINDOW + Duration::from_secs(2), "took {took:?}");

    let (mut ends, mut retries) = (Vec::new(), BTreeSet::new());
    while let Some(page) = pages.join_next().await {
        let (end, retry) = page.unwrap();
        ends.push(end - start);
        retries.insert(retry.expect("a page is told when to come back"));
    }
    ends.sort_unstable();
    assert!(
        ends[PAGES - 1] - ends[0] > WINDOW / 3,
        "all went within {:?}",
        ends[PAGES - 1] - ends[0]
    );
    let crowd = ends
        .windows(PAGES / 2)
        .map(|half| half[half.len() - 1] - half[0])
        .min()
        .unwrap();
    assert!(crowd > WINDOW / 10, "half of them went within {crowd:?}");
    assert!(retries.len() > PAGES / 10, "told {retries:?}");

    fleet.progress(20).await;
    let goal = load.stop().await;
    let reports = fleet.finish(&goal, PATIENCE).await;
    assert_exact(&reports);
    assert!(
        reports.iter().all(|report| report.cuts == 1),
        "each went once"
    );
}
