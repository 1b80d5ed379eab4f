//! Two independent parsers must read the encoder's input back, and must agree with our parser on random streams.

#[path = "support/generate.rs"]
mod generate;
mod support;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use generate::{Draft, draft, hostile_stream};
use proptest::collection::vec;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::Value;
use sse::{Event, Line};
use support::parse;

const ENCODED_CASES: usize = 3_000;
const HOSTILE_CASES: usize = 3_000;

/// An independent parser, called by a script.
struct Oracle {
    name: &'static str,
    /// Both relative to the oracle folder, except that a bare program name is looked up.
    command: [&'static str; 2],
    /// Whether it follows the standard on this stream, as far as is known.
    reads: fn(&[u8]) -> bool,
}

const ORACLES: [Oracle; 2] = [
    Oracle {
        name: "eventsource-parser",
        command: ["node", "oracle.mjs"],
        reads: |_| true,
    },
    Oracle {
        name: "launchdarkly-eventsource",
        command: [".venv/bin/python", "oracle.py"],
        // It decodes strictly instead of replacing, and takes a byte order mark at the start for a part of the first
        // field's name. An encoded stream never holds either.
        reads: |stream| std::str::from_utf8(stream).is_ok_and(|text| !text.starts_with('\u{feff}')),
    },
];

struct Case {
    stream: Vec<u8>,
    /// The input of the encoder, if the stream is its output.
    drafts: Option<Vec<Draft>>,
}

/// One test, so that one process installs the packages and each oracle starts once.
#[test]
fn independent_parsers_agree_with_the_encoder_and_the_parser() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/oracle");
    let installed = Command::new(folder.join("install")).output().unwrap();
    assert!(
        installed.status.success(),
        "tests/oracle/install failed:\n{}",
        String::from_utf8_lossy(&installed.stderr)
    );
    let cases = cases();
    for oracle in &ORACLES {
        let readable: Vec<&Case> = cases
            .iter()
            .filter(|case| (oracle.reads)(&case.stream))
            .collect();
        assert!(readable.len() > cases.len() / 2, "most cases are compared");
        let answers = ask(oracle, &folder, &readable);
        assert_eq!(answers.len(), readable.len(), "{}", oracle.name);
        for (case, answer) in readable.into_iter().zip(&answers) {
            let about = format!("{}\n{}", oracle.name, case.stream.escape_ascii());
            match &case.drafts {
                Some(drafts) => compare_with_drafts(drafts, answer, &about),
                None => compare_with_parser(&case.stream, answer, &about),
            }
        }
    }
}

/// The same cases in each run.
fn cases() -> Vec<Case> {
    let mut runner = TestRunner::deterministic();
    let encoded = vec(draft(), 1..4);
    let hostile = hostile_stream();
    let encoded = sample(&encoded, &mut runner)
        .take(ENCODED_CASES)
        .map(|drafts| Case {
            stream: encode(&drafts),
            drafts: Some(drafts),
        })
        .collect::<Vec<_>>();
    let hostile = sample(&hostile, &mut runner)
        .take(HOSTILE_CASES)
        .map(|mut stream| {
            // After a final CR, eventsource-parser waits for an LF that may belong to it.
            stream.push(b'\n');
            Case {
                stream,
                drafts: None,
            }
        });
    encoded.into_iter().chain(hostile).collect()
}

fn sample<S: Strategy>(strategy: &S, runner: &mut TestRunner) -> impl Iterator<Item = S::Value> {
    std::iter::repeat_with(move || {
        let tree = strategy.new_tree(runner).expect("no filter rejects it");
        tree.current()
    })
}

fn encode(drafts: &[Draft]) -> Vec<u8> {
    let line = |text| Line::new(text).expect("generated without CR, LF and NUL");
    let mut out = Vec::new();
    for draft in drafts {
        sse::comment(line("between"), &mut out);
        let event = Event {
            id: draft.id.as_deref().map(line),
            event: draft.event.as_deref().map(line),
            retry: draft.retry,
            data: &draft.data,
        };
        sse::encode(&event, &mut out);
    }
    out
}

/// The oracle's answer to each case.
fn ask(oracle: &Oracle, folder: &Path, cases: &[&Case]) -> Vec<Value> {
    let mut input = Vec::new();
    for Case { stream, .. } in cases {
        let length = u32::try_from(stream.len()).expect("cases are small");
        input.extend(length.to_be_bytes());
        input.extend(stream);
    }
    // A file and not a pipe: writing to a pipe would wait while the oracle waits for its reader.
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.cases", oracle.name));
    fs::write(&path, input).expect("the target directory is writable");
    let [program, script] = oracle.command;
    let program = match program.contains('/') {
        true => folder.join(program),
        false => program.into(),
    };
    let output = Command::new(&program)
        .arg(folder.join(script))
        .stdin(File::open(&path).expect("written above"))
        .stderr(Stdio::inherit())
        .output()
        .unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()));
    assert!(output.status.success(), "{} failed", oracle.name);
    output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("oracles print JSON"))
        .collect()
}

fn compare_with_drafts(drafts: &[Draft], answer: &Value, about: &str) {
    let events = answer["events"].as_array().expect("a list of events");
    assert_eq!(events.len(), drafts.len(), "{about}");
    for (draft, event) in drafts.iter().zip(events) {
        let event_type = draft.event.as_deref().filter(|name| !name.is_empty());
        let data = draft.data.replace("\r\n", "\n").replace('\r', "\n");
        assert_eq!(event["id"].as_str(), draft.id.as_deref(), "{about}");
        assert_eq!(event["event"], event_type.unwrap_or("message"), "{about}");
        assert_eq!(event["data"], data, "{about}");
    }
    if let Some(retry) = answer.get("retry") {
        let last = drafts.iter().rev().find_map(|draft| draft.retry);
        assert_eq!(retry.as_u64(), last, "{about}");
    }
}

fn compare_with_parser(stream: &[u8], answer: &Value, about: &str) {
    let events = answer["events"].as_array().expect("a list of events");
    let ours = parse([stream]);
    assert_eq!(events.len(), ours.len(), "{about}");
    for (ours, event) in ours.iter().zip(events) {
        // Oracles report the id that the block names. Our parser reports the id in force. So the two can be compared
        // only if the block names one.
        if let Some(id) = event["id"].as_str() {
            assert_eq!(id, ours.id, "{about}");
        }
        assert_eq!(event["event"], ours.event, "{about}");
        assert_eq!(event["data"], ours.data, "{about}");
    }
}
