//! Third-party client libraries and publishers against real replicas: `./dev test clients`.
//!
//! Each language has a folder with one program per library. A program uses its library as the library's documentation
//! shows, or as `docs/clients.md` recommends. All programs follow one channel through HAProxy while replicas are killed
//! and drain. The recommended programs have to be exact. A table in `docs/clients.md` documents the results of the
//! others, and has to be true.
//!
//! The helpers of `docs/cluster.md` publish to a Redis Cluster beside them: `./dev test clients cluster`.
//!
//! This test has its own harness, because it prints its results. The name of a library runs that one alone: `./dev test
//! clients okhttp`. `./dev test clients --write` writes the tables.

mod client;
mod cluster;
mod docs;
mod front;
mod libraries;
mod limits;
mod publishers;
mod story;
#[allow(dead_code, unused_imports)]
#[path = "../it/support/mod.rs"]
mod support;
mod tools;

use std::{env, process::ExitCode, time::Instant};

use docs::Docs;
use libraries::LIBRARIES;
use tools::Tools;

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let write = arguments.iter().any(|argument| argument == "--write");
    // Other options are meant for the usual harness.
    let names: Vec<_> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let chosen = |name: &str| names.is_empty() || names.iter().any(|part| name.contains(*part));
    let wants_publishers = chosen("publishers");
    let wants_helpers = chosen("cluster");
    let libraries: Vec<_> = LIBRARIES
        .iter()
        .filter(|library| chosen(library.name))
        .collect();
    if libraries.is_empty() && !wants_publishers && !wants_helpers {
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let failures = runtime.block_on(async {
        let started = Instant::now();
        let tools = Tools::prepare(&libraries, wants_publishers, wants_helpers).await;
        let mut docs = Docs::read(write);
        let mut failures = Vec::new();
        let clients = async {
            if !libraries.is_empty() {
                let rows = story::play(&tools, &libraries, &mut failures).await;
                docs.compare("libraries", &rows, &mut failures);
            }
            if libraries.iter().any(|library| library.name == "okhttp") {
                limits::play(&tools, &mut failures).await;
            }
            if wants_publishers {
                let rows = publishers::play(&tools, &mut failures).await;
                docs.compare("publishers", &rows, &mut failures);
            }
        };
        let helpers = async {
            if wants_helpers {
                cluster::play(&tools).await;
            }
        };
        tokio::join!(clients, helpers);
        for (tool, why) in tools.missing() {
            eprintln!("NOT RUN: {}: {why}", tool.name());
        }
        eprintln!("{:.0?} in all", started.elapsed());
        failures
    });
    for failure in &failures {
        eprintln!("FAILED: {failure}");
    }
    match failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
