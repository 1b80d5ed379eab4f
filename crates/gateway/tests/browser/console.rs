//! Tests of the console, which use it as a person would to try the promises of the gateway.

use serde_json::json;

use crate::{
    SHARES,
    driver::Driver,
    support::{Balancer, Gateway, Kind, PATIENCE, Place, Redis, eventually, recording, shares},
};

/// The texts of the events on the list.
const TEXTS: &str =
    "[...document.querySelectorAll('#events .event')].map(row => row.innerText).join(' ')";

/// Breaks when the console does not show an event, or shows a loss or a repetition that did not happen. Also when it
/// does not publish, or one of its buttons has no effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_shows_a_stream_through_a_cut_a_freeze_a_kill_and_a_gap() {
    let _machine = shares(SHARES).await;
    let redis = Redis::start().await;
    let places = Place::some::<3>();
    let mut replicas = Vec::new();
    for place in places {
        let options = "--console-demo --publish-token t --retry 500ms";
        replicas.push(place.start(&redis, options).await);
    }
    recording(&replicas, 1).await;
    redis.recorders(2).await;
    let sites = places.map(|place| place.public);
    let balancer = Balancer::start(Kind::HaProxy, &places, &sites).await;
    let page = Driver::visit(&format!("http://{}/?channel=news", balancer.public)).await;
    let shows = async |text: &str| {
        page.until(&format!("{TEXTS}.includes({})", json!(text)), json!(true))
            .await;
    };
    page.until(
        "document.querySelector('#status').dataset.state",
        json!("open"),
    )
    .await;
    let mut commands = redis.connect().await;
    commands.publish("news", "by PUBLISH").await;
    shows("by PUBLISH").await;
    page.fill("#publish-channel", "news").await;
    page.fill("#publish-data", "by the page").await;
    page.click("#publish").await;
    shows("by the page").await;

    // The event was published while the page was cut. It is shown once all the same.
    page.click("#cut").await;
    commands.publish("news", "after a cut").await;
    shows("after a cut").await;
    page.until(
        "document.querySelector('#reconnects').textContent",
        json!("1"),
    )
    .await;

    page.click("#freeze").await;
    commands.publish("news", "in the ice").await;
    eventually("the replica has written it", PATIENCE, async || {
        let mut sum = 0.0;
        for gateway in &replicas {
            sum += gateway.metrics().await.sum("sse_gateway_deliveries_total");
        }
        if sum >= 4.0 {
            Ok(())
        } else {
            Err(sum.to_string())
        }
    })
    .await;
    let before = page.run(&format!("return {TEXTS}")).await;
    assert!(
        !before.as_str().expect("a text").contains("in the ice"),
        "{before}"
    );
    page.click("#freeze").await;
    shows("in the ice").await;

    page.click("#kill").await;
    eventually("a replica is dead", PATIENCE, async || {
        let dead = replicas
            .iter_mut()
            .position(|replica| replica.process().exited().is_some());
        dead.map(drop).ok_or_else(|| "all live".to_owned())
    })
    .await;
    page.until(
        "document.querySelector('#status').dataset.state",
        json!("open"),
    )
    .await;
    let left = replicas.iter_mut().filter_map(|replica| {
        let lives = replica.process().exited().is_none();
        lives.then_some(&*replica)
    });
    let left: Vec<&Gateway> = left.collect();
    recording(left.iter().copied(), 1).await;
    commands.publish("news", "after a death").await;
    shows("after a death").await;
    for counter in ["#gaps", "#duplicates", "#out-of-order"] {
        page.until(
            &format!("document.querySelector('{counter}').textContent"),
            json!("0"),
        )
        .await;
    }

    commands.run("FLUSHALL").await;
    page.until("document.querySelectorAll('#events .gap').length", json!(1))
        .await;
    page.until("document.querySelector('#gaps').textContent", json!("1"))
        .await;
}

/// Breaks when the console is on without a flag, or can be framed. Also when a console without the demonstration
/// contains a token or kills a replica.
#[tokio::test]
async fn the_console_is_off_by_default_and_harmless_without_the_demo() {
    let redis = Redis::start().await;
    let without = Gateway::start(&redis, "").await;
    assert_eq!(without.get("/", "").await.head.status, 404);
    let plain = Gateway::start(&redis, "--console --publish-token secret-4711").await;
    let page = plain.get("/", "").await;
    assert_eq!(page.head.status, 200);
    assert!(page.body.contains("<title>") && !page.body.contains("secret-4711"));
    let policy = page
        .head
        .field("content-security-policy")
        .expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    let demo = Gateway::start(&redis, "--console-demo --publish-token secret-4711").await;
    assert!(demo.get("/", "").await.body.contains("secret-4711"));
    let port = redis.address().port();
    let command = format!("redis-cli -p {port} PUBLISH sse:");
    assert!(demo.get("/", "").await.body.contains(&command));
    for (host, status) in [
        ("localhost:8080", 200),
        ("[::1]:8080", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = demo.send(head.as_bytes()).await.unwrap();
        assert_eq!(answer.head.status, status, "{host}");
        assert_eq!(answer.body.contains("secret-4711"), status == 200, "{host}");
    }
    let kill = "/console/kill?replica=x";
    assert_eq!(
        plain
            .post(kill, "X-Console: kill\r\n", "")
            .await
            .head
            .status,
        404
    );
    assert_eq!(
        demo.post(kill, "", "").await.head.status,
        403,
        "another site's page"
    );
    assert_eq!(
        demo.post(kill, "X-Console: kill\r\n", "").await.head.status,
        409,
        "another replica"
    );
}

/// Breaks when a link to the console shows a command that does more in a shell than publish.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_cannot_inject_into_the_command_to_paste() {
    let _machine = shares(1).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--console").await;
    let page = Driver::visit(&format!("http://{}/", gateway.public)).await;
    let command = async |channel: &str| {
        page.fill("#channels", &format!("\"{channel}\"")).await;
        let shown = page.run("return document.querySelector('#example').textContent");
        shown.await.as_str().expect("a text").to_owned()
    };
    assert_eq!(command("news").await, "redis-cli PUBLISH sse:news hello");
    let quoted = "redis-cli PUBLISH 'sse:two words, für alle' hello";
    assert_eq!(command("two words, für alle").await, quoted);
    // Characters that end a quotation in sh, fish, PowerShell or cmd, that one of them expands, or that control a
    // terminal.
    for bad in [
        "';id;'",
        "a\\",
        "\u{2019};id;\u{2019}",
        "a&id&",
        "a%b%",
        "$(id)",
        "`id`",
        "!id",
        "a\u{202e}b",
        "(a)",
    ] {
        let shown = command(bad).await;
        assert!(
            !shown.contains("redis-cli") && !shown.contains(bad),
            "{shown}"
        );
    }
}
