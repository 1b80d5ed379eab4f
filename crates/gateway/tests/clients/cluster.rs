//! The helpers of `docs/cluster.md`, as they are on that page, publish to a real Redis Cluster while a slot moves and
//! while a master is failed over.
//!
//! A program per library publishes to a channel of each partition in turn. Each event has to arrive once, in order, and
//! with the id that the helper returned.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use testkit::{
    channel_of_each,
    lab::{Cluster, eventually},
};
use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    support::{Dir, Gateway, KEEP_ALL, Process, Viewer, gaps, messages, recording},
    tools::{Tool, Tools},
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/cluster.md");
const REDIS_PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/redis.md");
/// The programs that call the helpers.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/cluster");
const PARTITIONS: u32 = 6;
/// Longest wait for the programs. On two busy cores, only a fault takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
/// For this long half of the keys of a slot have moved. No library waits for as long.
const HALF_MOVED: Duration = Duration::from_secs(2);
/// Rounds through all channels that each program makes after an event.
const ROUNDS: usize = 3;

/// The programs: language, name, and the words of their command.
const PROGRAMS: &[(Tool, &str, &[&str])] = &[
    (Tool::Python, "python", &["main.py"]),
    (Tool::Node, "node-redis", &["main.mjs", "node-redis"]),
    (Tool::Node, "ioredis", &["main.mjs", "ioredis"]),
    (Tool::Go, "go", &[]),
    (Tool::Php, "php", &["main.php"]),
    (Tool::Ruby, "ruby", &["main.rb"]),
];

/// Runs all helpers.
pub(crate) async fn play(tools: &Tools) {
    let started = Instant::now();
    let folder = Dir::new();
    fill(&folder, tools);
    let build = async {
        if tools.has(Tool::Go) {
            let path = folder.path().to_owned();
            let built = spawn_blocking(move || build_go(&path));
            built.await.expect("it is built");
        }
    };
    let (cluster, ()) = tokio::join!(Cluster::start(3, 1, 2000), build);
    for node in &cluster.nodes {
        let mut commands = node.connect().await;
        for line in user() {
            assert_eq!(commands.run(&line).await.text(), "OK", "{line}");
        }
    }
    let options = format!(
        "--redis-url redis://any --redis-cluster {} --partitions {PARTITIONS}",
        cluster.seeds()
    );
    let gateway = Gateway::start_with(&cluster.nodes[0], &options, KEEP_ALL).await;
    recording([&gateway], PARTITIONS).await;
    let ready = started.elapsed();

    let channels = channel_of_each(PARTITIONS);
    let query: Vec<_> = channels
        .iter()
        .map(|name| format!("channel={name}"))
        .collect();
    let mut live = Viewer::open(&gateway, &query.join("&")).await;
    let mut programs = Vec::new();
    for (tool, name, words) in PROGRAMS.iter().filter(|(tool, ..)| tools.has(*tool)) {
        let mut command = command(*tool, folder.path());
        command
            .args(*words)
            .args(&channels)
            .current_dir(folder.path());
        command.env("REDIS_NODES", cluster.seeds());
        command
            .env("REDIS_USER", "appender")
            .env("REDIS_PASSWORD", "SECRET");
        programs.push(Program {
            name,
            process: Process::start(*name, &mut command),
        });
    }
    rounds(&mut programs, "the start", async {}).await;
    let slot = cluster.slot(0, PARTITIONS).await;
    let to = (cluster.owner(slot).await + 1) % 3;
    let moving = cluster.move_slot_while(slot, to, sleep(HALF_MOVED));
    rounds(&mut programs, "the move of a slot", moving).await;
    let holder = cluster.holder(&channels[3], PARTITIONS).await;
    let failing_over = async {
        cluster.fail_over(holder).await;
    };
    rounds(&mut programs, "the failover", failing_over).await;
    folder.write("stop", "");
    for program in &mut programs {
        let status = program.process.exit_within(PATIENCE).await;
        assert!(
            status.success(),
            "{}: {}",
            program.name,
            program.process.log()
        );
    }

    let published: BTreeMap<_, _> = programs
        .iter()
        .map(|it| (it.name, it.published()))
        .collect();
    let mut events = Vec::new();
    for channel in &channels {
        cluster
            .append(channel, &format!("last {channel}"), PARTITIONS)
            .await;
        let query = format!("channel={channel}&since=start");
        let history = Viewer::open(&gateway, &query)
            .await
            .until(&format!("last {channel}"))
            .await;
        assert_eq!(gaps(&history), [], "{channel}");
        for (name, published) in &published {
            let of_program: Vec<_> = messages(&history)
                .into_iter()
                .filter_map(|event| {
                    let (by, number) = event.data.split_once(' ')?;
                    (by == *name).then(|| format!("{channel} {number} {}", event.id))
                })
                .collect();
            let expected: Vec<_> = published
                .iter()
                .filter(|line| line.starts_with(&format!("{channel} ")))
                .collect();
            assert!(expected.len() >= 3 * ROUNDS, "{name}: {published:?}");
            assert_eq!(of_program.iter().collect::<Vec<_>>(), expected, "{name}");
        }
        events.extend(
            messages(&history)
                .into_iter()
                .map(|event| event.data.clone()),
        );
    }
    // The stream that was open all the time has the same events.
    let mut seen = Vec::new();
    for channel in &channels {
        // One channel after another ends.
        if !seen.contains(&format!("last {channel}")) {
            let more = live.until(&format!("last {channel}")).await;
            assert_eq!(gaps(&more), []);
            seen.extend(messages(&more).into_iter().map(|event| event.data.clone()));
        }
    }
    events.sort();
    seen.sort();
    assert_eq!(seen, events);
    let counts: Vec<_> = published
        .iter()
        .map(|(name, lines)| format!("{name} {}", lines.len()))
        .collect();
    eprintln!(
        "helpers for a Redis Cluster: {:.0?}, ready after {ready:.0?}, events: {}",
        started.elapsed(),
        counts.join(", ")
    );
}

/// A running program.
struct Program {
    name: &'static str,
    process: Process,
}

impl Program {
    /// Channel, number and id of each event, in the order of publishing.
    ///
    /// # Panics
    /// If it got another id for the event that it has published twice.
    fn published(&self) -> Vec<String> {
        let output = self.process.output();
        let mut lines: Vec<_> = output.lines().map(str::to_owned).collect();
        let again = lines.pop().expect("the last event was published twice");
        assert!(lines.contains(&again), "{}: {again}", self.name);
        lines
    }
}

/// Waits until `event` is over and each program has then made [`ROUNDS`] more.
async fn rounds(programs: &mut [Program], what: &str, event: impl Future<Output = ()>) {
    let started = Instant::now();
    event.await;
    let took = started.elapsed();
    let lines = |program: &Program| program.process.output().lines().count();
    let before: Vec<_> = programs.iter().map(lines).collect();
    let wanted = ROUNDS * PARTITIONS as usize;
    eventually(what, PATIENCE, async || {
        for (program, before) in programs.iter_mut().zip(&before) {
            let (name, now) = (program.name, lines(program));
            if let Some(status) = program.process.exited() {
                let (output, log) = (program.process.output(), program.process.log());
                let last = output.lines().next_back();
                panic!("{name} has ended: {status}: {last:?}: {log}");
            }
            if now < before + wanted {
                return Err(format!(
                    "{name}: {} of {wanted} events: {}",
                    now - before,
                    program.process.log()
                ));
            }
        }
        Ok(())
    })
    .await;
    eprintln!(
        "helpers: {what}: {took:.1?}, and {:.1?} until all had published",
        started.elapsed() - took
    );
}

fn read(page: &str) -> String {
    fs::read_to_string(page).unwrap_or_else(|error| panic!("{page}: {error}"))
}

/// Writes the helpers of the page, the programs that call them, and the table of prefixes.
fn fill(folder: &Dir, tools: &Tools) {
    let page = read(PAGE);
    let mut blocks = page.split("\n```");
    blocks.next();
    // The text between two blocks begins with a line end.
    for block in blocks.filter(|block| !block.starts_with('\n')) {
        let (first, program) = block.split_once('\n').expect("a line");
        if let Some((_, name)) = first.split_once(' ') {
            folder.write(name, &(program.to_owned() + "\n"));
        }
    }
    for entry in fs::read_dir(SOURCES).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        fs::copy(&path, folder.path().join(name)).expect("a copy");
    }
    if tools.has(Tool::Node) {
        let libraries = Tool::Node.installed().join("node_modules");
        symlink(libraries, folder.path().join("node_modules")).expect("a link");
    }
    let mut command = Gateway::command();
    command.args(["keys", "--format", "json"]);
    command.env("SSE_GATEWAY_PARTITIONS", PARTITIONS.to_string());
    let table = command.output().expect("it starts");
    assert!(table.status.success(), "{table:?}");
    fs::write(folder.path().join("prefixes.json"), table.stdout).expect("a file");
}

/// Builds the program for Go.
fn build_go(folder: &Path) {
    for file in ["go.mod", "go.sum"] {
        fs::copy(
            Path::new(SOURCES).join("../go").join(file),
            folder.join(file),
        )
        .expect("a copy");
    }
    let mut command = Command::new("go");
    command
        .args(["build", "-mod=readonly", "-o", "helper", "."])
        .current_dir(folder);
    command.env("GOTOOLCHAIN", "local").env("CGO_ENABLED", "0");
    let built = command.output().expect("it starts");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
}

/// The program that runs those of a language.
fn command(tool: Tool, folder: &Path) -> Command {
    match tool {
        Tool::Go => Command::new(folder.join("helper")),
        Tool::Node => Command::new("node"),
        Tool::Python => Command::new(Tool::Python.installed().join("bin/python3")),
        Tool::Php => Command::new("php"),
        Tool::Ruby => Command::new("ruby"),
        Tool::Jvm => unreachable!("it has no helper"),
    }
}

/// Makes the user of the documentation that may call the function, with its rights for a cluster.
fn user() -> [String; 2] {
    let page = read(REDIS_PAGE);
    let line = page
        .lines()
        .find(|line| line.starts_with("ACL SETUSER appender"));
    let (_, rest) = page
        .split_once("The third user needs\n`")
        .expect("rights for a cluster");
    let (rights, _) = rest.split_once('`').expect("an end");
    [
        line.expect("the user is documented").to_owned(),
        format!("ACL SETUSER appender {rights}"),
    ]
}
