//! OkHttp's limit of streams to one host.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    support::{Gateway, Process, Redis, becomes},
    tools::{Tool, Tools},
};

/// The program opens six streams. By default the sixth waits silently.
pub(crate) async fn play(tools: &Tools, failures: &mut Vec<String>) {
    if !tools.has(Tool::Jvm) {
        return;
    }
    let redis = Redis::start().await;
    for (how, expected) in [("shown", 5.0), ("recommended", 6.0)] {
        let gateway = Gateway::start(&redis, "").await;
        let url = format!("http://{}/events?channel=updates", gateway.public);
        let arguments = ["okhttp-six", how, &url];
        let _program = Process::start("okhttp-six", &mut tools.command(Tool::Jvm, &arguments));
        becomes(&gateway, "sse_gateway_streams", "", expected).await;
        // A sixth stream would be open by now.
        sleep(Duration::from_secs(1)).await;
        let found = gateway.metrics().await.sum("sse_gateway_streams");
        eprintln!("okhttp {how}: {found} of 6 streams to one host");
        if found != expected {
            failures.push(format!(
                "okhttp {how}: {found} streams to one host, not {expected}"
            ));
        }
    }
}
