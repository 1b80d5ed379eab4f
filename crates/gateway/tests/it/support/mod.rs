//! Real servers, real gateways, many clients, and helpers that wait for them.

mod backend;
mod balancer;
mod buffering_proxy;
mod haproxy;
mod load;
mod nginx;
pub(crate) mod tokens;
mod viewer;

use std::sync::LazyLock;

use testkit::Response;
pub(crate) use testkit::lab::{
    Commands, Dir, FaultyLink, Fleet, Gateway, MASTER, PATIENCE, Plan, Process, Redis, Replicas,
    Reply, Report, Sentinel, assert_exact, eventually, in_time, recording,
};
use tokio::sync::{Semaphore, SemaphorePermit, watch};

pub(crate) use backend::{Backend, status, with};
pub(crate) use balancer::{Balancer, Kind, Place, listening};
pub(crate) use buffering_proxy::BufferingProxy;
pub(crate) use haproxy::HaProxy;
pub(crate) use load::{Load, next_number};
pub(crate) use nginx::Nginx;
pub(crate) use viewer::{Viewer, assert_rising, assert_told, data, gaps, messages, texts};

/// A history that is large enough for every test.
pub(crate) const KEEP_ALL: &str = r#"
[[channels]]
match = "*"
history = 100000
max_age = "1h"
expire = "24h"
"#;

/// Waits until a metric, summed over its series with this label, has this value. A client may see an event before it is
/// counted.
pub(crate) async fn becomes(gateway: &Gateway, name: &str, label: &str, value: f64) {
    let what = format!("{name} with {label:?} is {value}");
    eventually(&what, PATIENCE, async || {
        match gateway.metrics().await.labelled(name, label) {
            now if now == value => Ok(()),
            now => Err(now.to_string()),
        }
    })
    .await;
}

/// All tests share two cores. Most stories wait for servers, clocks and each other, so this many run at once, for any
/// number of cores. A story that measures or loads the machine runs alone.
const SHARES: u32 = 10;

static MACHINE: Semaphore = Semaphore::const_new(SHARES as usize);

/// The number of stories that have a share, or wait for one.
static OTHERS: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Keeps all other stories off the machine. Runs after the stories that can share it, so the machine has to become free
/// only once.
pub(crate) async fn alone() -> SemaphorePermit<'static> {
    let mut others = OTHERS.subscribe();
    loop {
        let none = others.wait_for(|others| *others == 0).await;
        none.expect("it is never dropped");
        let machine = MACHINE.acquire_many(SHARES).await.expect("never closed");
        if *others.borrow() == 0 {
            return machine;
        }
    }
}

/// Shares the machine with other light stories, and keeps heavy ones off it.
pub(crate) async fn among_others() -> Share {
    shares(1).await
}

/// The same, for a story with more load than most.
pub(crate) async fn shares(count: u32) -> Share {
    OTHERS.send_modify(|others| *others += 1);
    let permit = MACHINE.acquire_many(count).await;
    Share {
        _permit: permit.expect("never closed"),
    }
}

/// The same, for a story that loads the machine with a thousand clients or tens of thousands of messages, and is exact on
/// a busy machine too. Two of these run at once.
pub(crate) async fn heavy() -> Share {
    shares(SHARES / 2).await
}

/// A story's share of the machine, until its end.
#[derive(Debug)]
pub(crate) struct Share {
    _permit: SemaphorePermit<'static>,
}

impl Drop for Share {
    fn drop(&mut self) {
        OTHERS.send_modify(|others| *others -= 1);
    }
}

/// A certificate for localhost and its key, as files, and the certificate itself.
pub(crate) fn certificate(dir: &Dir) -> (String, String, String) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    // OpenSSL tries only one of several certificates with the same name.
    let unique = dir.path().display().to_string();
    let name = &mut params.distinguished_name;
    name.push(rcgen::DnType::CommonName, unique);
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let paths = (
        dir.write("certificate.pem", &certificate),
        dir.write("key.pem", &key.serialize_pem()),
    );
    (paths.0, paths.1, certificate)
}

/// The code of the problem with which a request was refused.
pub(crate) fn refused(response: &Response, status: u16) -> String {
    assert_eq!(response.head.status, status, "{}", response.body);
    let kind = response.head.field("content-type");
    assert_eq!(kind, Some("application/problem+json"));
    let problem: serde_json::Value = serde_json::from_str(&response.body).expect("JSON");
    problem["code"].as_str().expect("a code").to_owned()
}
