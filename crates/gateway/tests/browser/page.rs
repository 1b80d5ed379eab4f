//! The web site that the browser visits: it serves one page, which reports its events back.

use std::{future::IntoFuture, net::SocketAddr, time::Duration};

use axum::{
    Json, Router,
    response::Html,
    routing::{get, post},
};
use serde::Deserialize;
use tokio::{net::TcpListener, sync::watch, time::timeout};

/// Limit of every wait for a browser. Its first start on a busy machine is slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `EventSource.CLOSED`: the browser has given up and will not retry.
const CLOSED: u8 = 2;

/// An event of the page's `EventSource`.
#[derive(Clone, Debug, Deserialize)]
struct Report {
    /// The type of the event.
    kind: String,
    data: String,
    /// `EventSource.readyState` at that moment.
    state: u8,
}

/// The site.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) address: SocketAddr,
    reports: watch::Receiver<Vec<Report>>,
}

impl Page {
    pub(crate) async fn serve() -> Self {
        let (seen, reports) = watch::channel(Vec::new());
        let take = async move |Json(batch): Json<Vec<Report>>| {
            seen.send_modify(|all| all.extend(batch));
        };
        let site = Router::new()
            .route("/", get(Html(include_str!("page.html"))))
            .route("/reports", post(take));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(axum::serve(listener, site).into_future());
        Self { address, reports }
    }

    /// How often a stream has been opened.
    pub(crate) fn opened(&self) -> usize {
        count(&self.reports.borrow(), "open")
    }

    /// Waits until a stream has been opened this many times.
    pub(crate) async fn until_opened(&self, times: usize) {
        self.until(&format!("{times} times open"), |all| {
            count(all, "open") >= times
        })
        .await;
    }

    /// Waits for the message `last`, and returns all messages.
    pub(crate) async fn messages_until(&self, last: &str) -> Vec<String> {
        self.until(&format!("the message {last:?}"), |all| {
            all.iter()
                .any(|report| report.kind == "message" && report.data == last)
        })
        .await;
        let all = self.reports.borrow();
        let messages = all.iter().filter(|report| report.kind == "message");
        messages.map(|report| report.data.clone()).collect()
    }

    /// Asserts that there was no gap and the browser never gave up.
    pub(crate) fn assert_content(&self) {
        self.assert_open_with_gaps(0);
    }

    /// Asserts that there were this many gaps and the browser never gave up.
    pub(crate) fn assert_open_with_gaps(&self, gaps: usize) {
        let all = self.reports.borrow();
        let closed = all.iter().find(|report| report.state == CLOSED);
        assert!(closed.is_none(), "{closed:?}");
        let told: Vec<_> = all.iter().filter(|one| one.kind == "gateway.gap").collect();
        assert_eq!(told.len(), gaps, "{told:?}");
    }

    async fn until(&self, what: &str, enough: impl Fn(&[Report]) -> bool) {
        let mut reports = self.reports.clone();
        let waiting = reports.wait_for(|all| enough(all));
        if timeout(PATIENCE, waiting).await.is_err() {
            let all = self.reports.borrow();
            let last = &all[all.len().saturating_sub(10)..];
            let (opened, messages) = (count(&all, "open"), count(&all, "message"));
            panic!(
                "not within {PATIENCE:?}: {what}; the page has seen {opened} streams open, \
                 {messages} messages, and last: {last:#?}"
            );
        }
    }
}

fn count(reports: &[Report], kind: &str) -> usize {
    reports.iter().filter(|report| report.kind == kind).count()
}
