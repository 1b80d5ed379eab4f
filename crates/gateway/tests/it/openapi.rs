//! The HTTP interface matches its description: schemathesis makes requests from it and checks the
//! answers.

use std::{process::Command, time::Duration};

use crate::support::{Gateway, Process, Redis, among_others};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openapi");

/// The status, type, headers and body of each answer must be described, and no request may fail.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance,unsupported_method,\
    missing_required_header,allow_header_conformance";

/// Streams have to end, and some answers wait for a Redis that is down.
const LONG: Duration = Duration::from_secs(240);

/// Breaks when an answer is not in the description, or when a request makes the gateway fail.
#[tokio::test]
async fn every_answer_matches_the_description() {
    let _machine = among_others().await;
    let install = tokio::task::spawn_blocking(|| {
        let done = Command::new(format!("{FOLDER}/install")).status();
        assert!(done.is_ok_and(|status| status.success()), "no schemathesis");
    });
    install.await.expect("it is installed");
    let mut redis = Redis::start().await;
    let publisher = "[[publish]]\ntoken = \"t\"\n";
    let secret = "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n";
    let config = format!("public_channels = [\"*\"]\n{publisher}{secret}");
    let open = Gateway::start_with(&redis, "--max-publish-rate 0", &config).await;
    let brief = Gateway::start_with(&redis, "--max-stream-age 1s", &config).await;
    let closed = Gateway::start_with(&redis, "", &format!("public_channels = []\n{secret}")).await;
    let off = Gateway::start(&redis, "").await;

    let public = open.get("/openapi.json", "").await;
    assert_eq!(
        public.head.status, 404,
        "the description is on the public port"
    );
    let (json, token) = ("Accept: application/json", "Authorization: Bearer t");
    // Where publishing is off, the gateway does not ask for a credential.
    let but_header = &CHECKS.replace("missing_required_header,", "");
    let runs = [
        // Pages, events and tickets.
        run(
            &open,
            CHECKS,
            &["-H", json, "-H", token, "--max-examples", "40"],
        ),
        // Streams, which end soon.
        run(
            &brief,
            CHECKS,
            &[
                "-H",
                token,
                "--include-method",
                "GET",
                "--phases",
                "fuzzing",
                "--max-examples",
                "15",
            ],
        ),
        // Clients without a credential, or with a wrong one.
        run(&closed, CHECKS, &["--max-examples", "20"]),
        run(&closed, CHECKS, &["-H", token, "--max-examples", "20"]),
        run(&off, but_header, &["-H", json, "--max-examples", "20"]),
    ];
    for mut run in runs {
        let status = run.exit_within(LONG).await;
        assert!(status.success(), "{}", run.output());
    }
    redis.stop().await;
    let but_failures = CHECKS.trim_start_matches("not_a_server_error,");
    let options = [
        "-H",
        json,
        "-H",
        token,
        "--phases",
        "fuzzing",
        "--max-examples",
        "3",
        "-w",
        "4",
    ];
    let mut run = run(&open, but_failures, &options);
    let status = run.exit_within(LONG).await;
    assert!(status.success(), "{}", run.output());
}

fn run(gateway: &Gateway, checks: &str, options: &[&str]) -> Process {
    let mut command = Command::new(format!("{FOLDER}/.venv/bin/st"));
    command
        .args(["--config-file", &format!("{FOLDER}/schemathesis.toml")])
        .args(["run", &format!("http://{}/openapi.json", gateway.admin)])
        .args(["--url", &format!("http://{}", gateway.public)])
        .args(["--checks", checks, "--request-timeout", "15", "--no-color"])
        .args(options)
        // It writes its findings into the folder in which it runs.
        .current_dir(std::env::temp_dir());
    Process::start("schemathesis", &mut command)
}
