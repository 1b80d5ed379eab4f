//! A real Prometheus scrapes three replicas under load: each panel shows data, and faults cause alerts.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    Balancer, Dir, Fleet, Gateway, Kind, Load, PATIENCE, Place, Plan, Process, Redis, Replicas,
    alone, among_others, eventually, listening, recording,
};

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(name)
}

/// Breaks when a rule is invalid, when an alert does not fire where it should, or fires where it should not.
#[tokio::test]
async fn the_rules_pass_their_own_tests() {
    let _machine = among_others().await;
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ] {
        let mut command = Command::new("promtool");
        command.current_dir(deployed("prometheus")).args(arguments);
        let mut process = Process::start("promtool", &mut command);
        let status = process.exit_within(Duration::from_secs(120)).await;
        let (output, log) = (process.output(), process.log());
        assert!(status.success(), "{arguments:?}: {output}{log}");
    }
}

/// Breaks when an alert has no section in the runbooks, or a section has no alert or lacks a part. Breaks also when a
/// section names an undocumented metric, or another severity than its alert has.
#[test]
fn each_alert_has_a_runbook() {
    let read = |path: PathBuf| fs::read_to_string(path).expect("it is there");
    let documents = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let rules = read(deployed("prometheus/rules.yml"));
    let mut alerts = BTreeMap::new();
    for alert in rules.split("- alert: ").skip(1) {
        let value = |key: &str| {
            let mut lines = alert.lines().map(str::trim);
            let line = lines.find_map(|line| line.strip_prefix(key));
            line.unwrap_or_else(|| panic!("there is no {key} in {alert}"))
        };
        let name = alert.lines().next().expect("a name");
        let base = "https://github.com/example/sse-gateway/blob/main/docs/runbooks.md#";
        let url = format!("{base}{}", name.to_lowercase());
        assert_eq!(value("runbook_url: "), url, "of {name}");
        alerts.insert(name, value("severity: "));
    }
    assert!(alerts.len() > 35, "{alerts:?}");

    let runbooks = read(documents.join("runbooks.md"));
    let metrics = read(documents.join("metrics.md"));
    let mut sections = BTreeMap::new();
    for section in runbooks.split("\n### ").skip(1) {
        let section = section.split("\n## ").next().expect("a beginning");
        let (name, text) = section.split_once('\n').expect("a text");
        let severity = text.trim_start().split('`').nth(1).expect("a severity");
        sections.insert(name, severity);
        for part in ["Clients", "Look", "Do", "Over"] {
            let part = format!("\n- **{part}**: ");
            assert_eq!(text.matches(&part).count(), 1, "{part:?} of {name}");
        }
        for words in text.split(|char: char| char != '_' && !char.is_ascii_alphanumeric()) {
            let named =
                !words.starts_with("sse_gateway_") || metrics.contains(&format!("`{words}`"));
            assert!(named, "{words} in {name}");
            let alert = !words.starts_with("SseGateway") || alerts.contains_key(words);
            assert!(alert, "{words} in {name}");
        }
    }
    assert_eq!(sections, alerts);
}

/// A Prometheus with the deployed configuration, except for addresses and an interval of one second.
struct Prometheus {
    address: SocketAddr,
    _process: Process,
    _dir: Dir,
}

impl Prometheus {
    async fn start(replicas: &[&Gateway], balancer: SocketAddr) -> Self {
        let config =
            fs::read_to_string(deployed("prometheus/prometheus.yml")).expect("it is deployed");
        let rules = deployed("prometheus/rules.yml");
        let mut config = config
            .replace(
                "rule_files: [rules.yml]",
                &format!("rule_files: ['{}']", rules.display()),
            )
            .replace("scrape_interval: 5s", "scrape_interval: 1s")
            .replace("scrape_timeout: 4s", "scrape_timeout: 1s")
            .replace("evaluation_interval: 5s", "evaluation_interval: 1s")
            .replace("haproxy:8404", &balancer.to_string());
        for (number, gateway) in replicas.iter().enumerate() {
            let name = format!("gateway{}:9090", number + 1);
            assert!(config.contains(&name));
            config = config.replace(&name, &gateway.admin.to_string());
        }
        let dir = Dir::new();
        let config = dir.write("prometheus.yml", &config);
        let (address, process) = listening("prometheus", |address| {
            let mut command = Command::new("prometheus");
            command
                .args(["--config.file", &config, "--web.listen-address"])
                .arg(address.to_string())
                .arg("--storage.tsdb.path")
                .arg(dir.path().join("data"));
            command
        })
        .await;
        Self {
            address,
            _process: process,
            _dir: dir,
        }
    }

    /// The present result of an expression.
    async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let mut form = "query=".to_owned();
        for byte in expression.bytes() {
            write!(form, "%{byte:02X}").expect("a string takes everything");
        }
        let length = form.len();
        let head = format!(
            "POST /api/v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: {length}\r\nConnection: close\r\n\r\n{form}"
        );
        let answer = testkit::request(self.address, head.as_bytes()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer: Value =
            serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
        match answer["data"]["result"].as_array() {
            Some(result) => Ok(result.clone()),
            None => Err(answer.to_string()),
        }
    }

    async fn fires(&self, alert: &str) {
        let expression = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        eventually(
            &format!("{alert} fires"),
            3 * PATIENCE,
            async || match &self.query(&expression).await?[..] {
                [] => Err(format!("{:?}", self.query("ALERTS").await)),
                _ => Ok(()),
            },
        )
        .await;
    }
}

/// The title and the query of each panel of the dashboard.
fn panels() -> Vec<(String, String)> {
    let dashboard = fs::read_to_string(deployed("grafana/dashboard.json")).expect("it is deployed");
    let dashboard: Value = serde_json::from_str(&dashboard).expect("JSON");
    let mut found = Vec::new();
    let mut open = vec![&dashboard];
    while let Some(panel) = open.pop() {
        open.extend(panel["panels"].as_array().into_iter().flatten());
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().expect("a panel has a title");
            let expression = target["expr"].as_str().expect("an expression");
            let expression = expression
                .replace("$job", "sse-gateway")
                .replace("$__rate_interval", "10s");
            found.push((title.to_owned(), expression));
        }
    }
    found
}

/// Breaks when a panel has no data, or when a fault causes no alert.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_panel_shows_data_and_faults_cause_alerts() {
    let _machine = alone().await;
    let redis = Redis::start().await;
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Gateway::start(&redis, "--canary-interval 1s --publish-token t").await);
    }
    let replicas: Vec<_> = replicas.iter().collect();
    recording(replicas.iter().copied(), 1).await;
    let places: Vec<_> = replicas.iter().map(|gateway| Place::of(gateway)).collect();
    let balancer = Balancer::start(Kind::HaProxy, &places, &[replicas[0].admin]).await;
    let prometheus = Prometheus::start(&replicas, balancer.stats()).await;

    let channels = ["x", "y"].map(str::to_owned);
    let plans = (0..60).map(|client| Plan::new(&channels, client));
    let fleet = Fleet::start(plans, &Replicas::of(replicas.iter().copied()), 1, &["raw"]);
    fleet.open().await;
    let load = Load::publish(&redis, "raw", &channels, 50, 100).await;
    fleet.cut(1, Duration::from_secs(1));
    replicas[0]
        .post("/events?channel=x", "Authorization: Bearer t\r\n", "hello")
        .await;

    let panels = panels();
    assert!(panels.len() > 30);
    for (title, expression) in &panels {
        eventually(
            &format!("{title:?} shows something"),
            2 * PATIENCE,
            async || match &prometheus.query(expression).await?[..] {
                [] => Err(expression.clone()),
                _ => Ok(()),
            },
        )
        .await;
    }
    // A pending alert would end in time.
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}").await;
    assert_eq!(firing, Ok(Vec::new()));

    let mut commands = redis.connect().await;
    commands.run("FLUSHALL").await;
    prometheus.fires("SseGatewayEventsForgotten").await;
    commands.run("CONFIG SET maxmemory 1").await;
    prometheus.fires("SseGatewayRawUnrecordedBriefly").await;
    commands.run("CONFIG SET maxmemory 0").await;
    load.stop().await;
}
