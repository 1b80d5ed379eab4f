//! A page with more streams than an HTTP/2 connection allows by default.

use axum::{Router, response::Html, routing::get};
use serde_json::json;

use crate::{
    SHARES,
    driver::Driver,
    recipes::serve,
    support::{Balancer, Gateway, Kind, PATIENCE, Place, Redis, eventually, shares},
};

/// More than the 100 and 128 that HAProxy and nginx allow by default.
const STREAMS: u32 = 150;

/// Breaks when a browser with many streams receives no other answer before one of them ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_of_a_browser_leave_room_for_a_request() {
    let _machine = shares(SHARES).await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let page = "<!doctype html><title>A page</title><link rel=icon href='data:,'>";
    let site = Router::new()
        .route("/", get(Html(page)))
        .route("/answer", get("forty-two"));
    let site = serve(site).await;
    let mut browser = None;
    for kind in [Kind::HaProxy, Kind::Nginx, Kind::Caddy, Kind::Envoy] {
        let balancer = Balancer::with_tls(kind, &[Place::of(&gateway)], &[site]).await;
        let url = format!("https://{}/", balancer.public);
        let page = match browser {
            Some(page) => page,
            None => Driver::visit(&url).await,
        };
        page.go(&url).await;
        page.run(&format!(
            "window.sources = Array.from({{length: {STREAMS}}}, (_, number) => \
                new EventSource('/events?channel=' + number))"
        ))
        .await;
        let open = "sources.filter(source => source.readyState === EventSource.OPEN).length";
        page.until(open, json!(STREAMS)).await;
        page.run(
            "window.answer = null; \
             fetch('/answer').then(answer => answer.text()).then(text => window.answer = text)",
        )
        .await;
        page.until("answer", json!("forty-two")).await;
        // All of it used HTTP/2, and no stream was closed for it.
        let protocols = "[...new Set(performance.getEntriesByType('resource').map(one => one.nextHopProtocol))]";
        page.until(protocols, json!(["h2"])).await;
        page.until(open, json!(STREAMS)).await;
        page.run("sources.forEach(source => source.close())").await;
        eventually("they have left", PATIENCE, async || {
            match gateway.metrics().await.sum("sse_gateway_streams") {
                0.0 => Ok(()),
                open => Err(open.to_string()),
            }
        })
        .await;
        browser = Some(page);
    }
}
