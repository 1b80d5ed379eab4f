//! Real browsers behind real load balancers, while the replicas die.
//!
//! In the tests of this file the page is a plain `EventSource` without any code about reconnecting; see `page.html`.
//! The browsers are Debian's (`chromium` and `firefox-esr`), unless the environment variables `CHROMIUM` and `FIREFOX`
//! name others.

mod browser;
mod console;
mod driver;
mod log;
mod many;
mod page;
mod publisher;
mod recipes;
mod stage;
// The servers and processes of the integration tests. These tests use only a part of them.
#[allow(dead_code, unused_imports)]
#[path = "../it/support/mod.rs"]
mod support;

use browser::Engine;
use stage::Stage;
use support::Kind;

/// Shares of the machine per test. Two tests run at once, because a browser needs much CPU time.
const SHARES: u32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_receives_every_line_of_a_log_once() {
    every_line_of_a_log_once(Engine::Chromium).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firefox_receives_every_line_of_a_log_once() {
    every_line_of_a_log_once(Engine::Firefox).await;
}

/// A log is piped line by line through `redis-cli PUBLISH`. Meanwhile the replica that serves the page is killed, then
/// the replica that records, and both once more.
///
/// Breaks when a browser does not resume after a cut, when a line is lost or recorded twice after the recorder dies, or
/// when a line arrives changed.
async fn every_line_of_a_log_once(engine: Engine) {
    let lines = log::lines().await;
    let mut stage = Stage::open(engine, Kind::HaProxy, "log", "").await;
    let mut rest = lines.as_slice();
    for kills_left in (1..=4).rev() {
        stage.two_recorders_are_in_sync().await;
        let victim = match kills_left % 2 {
            0 => stage.serving().await,
            _ => stage.recording().await,
        };
        let (share, later) = rest.split_at(rest.len() / (kills_left + 1));
        let mut publisher = stage.publish(share);
        publisher.reached(share.len() / 2).await;
        stage.kill(victim);
        publisher.finish().await;
        stage.replace(victim).await;
        rest = later;
    }
    stage.publish(rest).finish().await;

    log::assert_same(&stage.page.messages_until(log::END).await, &lines);
    assert!(
        stage.page.opened() >= 3,
        "the page was cut fewer than two times"
    );
    stage.page.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_resumes_after_a_cut_before_its_first_event() {
    cut_before_its_first_event(Engine::Chromium).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firefox_resumes_after_a_cut_before_its_first_event() {
    cut_before_its_first_event(Engine::Firefox).await;
}

/// The replica that serves the page is killed before the first event. The page receives the events that were published
/// while it was disconnected.
///
/// Breaks when the browser does not use the id of `gateway.open` as its last event id, or when a gap is sent instead of
/// a channel's first event.
async fn cut_before_its_first_event(engine: Engine) {
    let (missed, live) = (ten("missed"), ten("live"));
    // The page is away for at least five seconds, long enough to publish.
    let mut stage = Stage::open(engine, Kind::HaProxy, "quiet", "--retry 10s").await;
    stage.kill(stage.serving().await);
    stage.append(&missed).finish().await;
    assert!(stage.page_is_away().await, "the page was not disconnected");

    stage.page.until_opened(2).await;
    stage.recording().await;
    stage.publish(&live).finish().await;
    let all = [missed, live].concat();
    assert_eq!(stage.page.messages_until("live 9").await, all);
    assert_eq!(stage.page.opened(), 2);
    stage.page.assert_content();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_keeps_trying_while_every_replica_is_dead() {
    every_replica_is_dead(Engine::Chromium, Kind::HaProxy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_keeps_trying_behind_nginx() {
    every_replica_is_dead(Engine::Chromium, Kind::Nginx).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_keeps_trying_behind_caddy() {
    every_replica_is_dead(Engine::Chromium, Kind::Caddy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_keeps_trying_behind_envoy() {
    every_replica_is_dead(Engine::Chromium, Kind::Envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn firefox_keeps_trying_while_every_replica_is_dead() {
    every_replica_is_dead(Engine::Firefox, Kind::HaProxy).await;
}

/// The replica that serves the page dies, and the balancer sends the page to another. When no replica is left, the
/// balancer answers in their place, again and again, until there is one.
///
/// Breaks when an `EventSource` does not retry after the balancer's answer, or when that answer makes the browser
/// forget its position.
async fn every_replica_is_dead(engine: Engine, kind: Kind) {
    let (before, meanwhile, after) = (ten("before"), ten("meanwhile"), ten("after"));
    let one_less = ten("one less");
    let mut stage = Stage::open(engine, kind, "outage", "").await;
    stage.publish(&before).finish().await;
    assert_eq!(stage.page.messages_until("before 9").await, before);
    let opened = stage.page.opened();
    let victim = stage.serving().await;
    stage.kill(victim);
    stage.page.until_opened(opened + 1).await;
    stage.recording().await;
    stage.append(&one_less).finish().await;
    assert_eq!(stage.page.messages_until("one less 9").await.len(), 20);
    stage.kill_all();
    // The balancer opens and ends each of these streams without an event.
    stage.page.until_opened(stage.page.opened() + 2).await;
    stage.append(&meanwhile).finish().await;

    stage.replace(0).await;
    stage.publish(&after).finish().await;
    let all = [before, one_less, meanwhile, after].concat();
    assert_eq!(stage.page.messages_until("after 9").await, all);
    // No recorder ran during that time, so raw messages may be missing.
    stage.page.assert_open_with_gaps(1);
}

/// The lines `{name} 0` to `{name} 9`.
fn ten(name: &str) -> Vec<String> {
    (0..10).map(|number| format!("{name} {number}")).collect()
}
