//! The documents name the flags, metrics and defaults that the program has.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use tokio::process::Command;

use crate::support::{Gateway, PATIENCE, Redis, Viewer, among_others, eventually};

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of every line of a table that begins with a name in backticks.
fn rows(text: &str, prefix: &str) -> BTreeMap<String, Vec<String>> {
    let rows = text.lines().filter_map(|line| {
        let cells = line.strip_prefix("| `")?.strip_suffix(" |")?;
        let (name, rest) = cells.split_once('`')?;
        let rest = rest.strip_prefix(" | ")?.split(" | ").map(str::to_owned);
        name.starts_with(prefix)
            .then(|| (name.to_owned(), rest.collect()))
    });
    rows.collect()
}

/// Every flag of the manual, with its default.
async fn flags() -> BTreeMap<String, String> {
    let mut command = Command::from(Gateway::command());
    let manual = command.arg("--help").output().await.expect("a manual");
    let manual = String::from_utf8(manual.stdout).expect("UTF-8");
    let (_, options) = manual
        .split_once("\nOptions:\n")
        .expect("there are options");
    let mut flags = BTreeMap::new();
    let mut name = None;
    for line in options.lines().map(str::trim) {
        let flag = line.trim_start_matches("-h, ").trim_start_matches("-V, ");
        if flag.starts_with("--") {
            let flag = flag.split([' ', '=']).next().expect("a word").to_owned();
            flags.insert(flag.clone(), String::new());
            name = Some(flag);
        }
        if let Some((_, default)) = line.split_once("[default: ")
            && let Some(name) = &name
        {
            let default = default.trim_end_matches(']');
            // The manual and docs/flags.md describe a default in different words, so it is not compared.
            let default = if default.contains(' ') { "" } else { default };
            flags.insert(name.clone(), default.to_owned());
        }
    }
    flags.remove("--help");
    flags.remove("--version");
    flags
}

/// Breaks when a flag is added, removed or given another default, and docs/flags.md is not updated.
#[tokio::test]
async fn flags_are_documented_with_their_defaults() {
    let documented = rows(&read("docs/flags.md"), "--");
    let documented = documented.into_iter().map(|(flag, cells)| {
        // A default in words is not on the command line.
        let default = cells[0]
            .strip_prefix('`')
            .and_then(|cell| cell.strip_suffix('`'));
        (flag, default.unwrap_or_default().to_owned())
    });
    let flags = flags().await;
    assert!(flags.len() > 30, "{flags:?}");
    assert_eq!(documented.collect::<BTreeMap<_, _>>(), flags);
}

/// Breaks when the command prints other keys than docs/cluster.md shows, or ignores the variable of the servers' flag.
#[tokio::test]
async fn the_keys_of_the_guide_are_those_of_the_command() {
    let mut command = Command::from(Gateway::command());
    command
        .args(["keys", "news"])
        .env("SSE_GATEWAY_PARTITIONS", "16");
    let output = command.output().await.expect("it runs");
    let output = String::from_utf8(output.stdout).expect("UTF-8");
    let guide = read("docs/cluster.md");
    let shown = format!("$ sse-gateway keys --partitions 16 news\n{output}");
    assert!(guide.contains(&shown), "{shown}");
}

/// Breaks when a metric, its type or a label is not as documented, or when a documented one does not exist. That
/// includes labels that appear with their first event.
#[tokio::test]
async fn every_metric_is_documented() {
    let _machine = among_others().await;
    let redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "--canary-interval 100ms --publish-token t").await;
    let mut viewer = Viewer::open(&gateway, "channel=news").await;
    gateway
        .post("/events?channel=news", "Authorization: Bearer t\r\n", "end")
        .await;
    viewer.until("end").await;
    gateway.get("/events", "").await;
    let metrics = gateway.metrics().await;

    let documented = rows(&read("docs/metrics.md"), "");
    let documented: BTreeMap<_, _> = documented
        .into_iter()
        .filter(|(name, _)| name.starts_with("sse_gateway_") || name.starts_with("process_"))
        .collect();
    let kinds = metrics.text().lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name.to_owned(), kind.to_owned()))
    });
    let kinds: BTreeMap<_, _> = kinds.collect();
    let said = documented
        .iter()
        .map(|(name, cells)| (name.clone(), cells[0].clone()));
    assert_eq!(said.collect::<BTreeMap<_, _>>(), kinds);
    let mut labels = BTreeMap::<_, BTreeSet<_>>::new();
    for (series, _) in metrics.series() {
        let Some((name, pairs)) = series.split_once('{') else {
            continue;
        };
        let of = labels.entry(name.trim_end_matches("_bucket")).or_default();
        for pair in pairs.trim_end_matches('}').split(',') {
            let (label, value) = pair.split_once('=').expect("a label has a value");
            of.insert(label);
            // The values of an `_info` metric differ between processes.
            if !name.ends_with("_info") {
                of.insert(value.trim_matches('"'));
            }
        }
    }
    for (name, cells) in &documented {
        let said: BTreeSet<_> = cells[1].split('`').skip(1).step_by(2).collect();
        let of = labels.remove(name.as_str()).unwrap_or_default();
        assert_eq!(said, of, "{name}");
    }
}

/// Breaks when a balancer or a container gets no answer, or gets "ready" from a replica that is not.
#[tokio::test]
async fn a_container_can_check_its_health() {
    let _machine = among_others().await;
    let mut redis = Redis::start().await;
    let gateway = Gateway::start(&redis, "").await;
    let ask = async || {
        let mut command = Command::from(Gateway::command());
        command
            .arg("healthcheck")
            .env("SSE_GATEWAY_ADMIN_LISTEN", gateway.admin.to_string());
        let output = command.output().await.expect("it runs");
        let text = output.stdout.into_iter().chain(output.stderr).collect();
        (
            output.status.code(),
            String::from_utf8(text).expect("UTF-8"),
        )
    };
    // The command waits for two seconds. That may be too short on a busy machine.
    let answers = async |code: i32, what: &str| {
        eventually(
            "the health check answers as expected",
            PATIENCE,
            async || match ask().await {
                (found, text) if found == Some(code) && text.contains(what) => Ok(()),
                (code, text) => Err(format!("{code:?} {text}")),
            },
        )
        .await;
    };
    answers(0, "ready\n").await;
    redis.stop().await;
    gateway.readiness(503).await;
    answers(1, "not subscribed to redis").await;
    gateway.kill();
    let mut command = Command::from(Gateway::command());
    // Port 1 is closed.
    command.args(["healthcheck", "--admin-listen", "127.0.0.1:1"]);
    let output = command.output().await.expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not answer"));
}
