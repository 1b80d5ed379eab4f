//! The lines of a real log, and unusual lines that real logs also contain.

use std::{fs, iter};

use crate::support::{Dir, PATIENCE, Redis, eventually};

/// About this many lines are from the real log.
const REAL: usize = 300;

/// The last line.
pub(crate) const END: &str = "end of the log";

/// Lines of other programs' logs that look like a protocol, or are not plain text.
const ODD: [&str; 20] = [
    "",
    " ",
    "  indented, with blanks at its end  ",
    "\tat Object.<anonymous> (/srv/app/main.js:1:7)",
    ": a comment?",
    "data: 1",
    "data",
    "id: 1795349738020-0",
    "event: gateway.gap",
    "retry: 1",
    "-n",
    r#"{"level":"info","msg":"an object, but no envelope"}"#,
    r#"[{"data":"an array"}]"#,
    r#"GET /?q=%22%27+%00 HTTP/1.1" 200 "-" "curl/7.88 \x22\" \\""#,
    "\u{feff}a byte order mark",
    "übergröße 溢出 🚨 e\u{301}",
    "a line separator\u{2028}and a control character\u{1}",
    "\u{1b}[31mred\u{1b}[0m",
    "progress 10%\rprogress 100%",
    "carriage returns\r\nat line ends\r",
];

/// The log of Redis at its most detailed level, with an odd line after every ten, one very long
/// line, and a last line that marks the end.
pub(crate) async fn lines() -> Vec<String> {
    let dir = Dir::new();
    let file = dir.path().join("redis.log");
    let path = file.display().to_string();
    let redis = Redis::start_with(&["--loglevel", "debug", "--logfile", &path]).await;
    let log = eventually("a log of some length", PATIENCE, async || {
        // Each connection adds two lines: one when it opens and one when it closes.
        for _ in 0..REAL / 4 {
            redis.connect().await;
        }
        let log = fs::read_to_string(&file).expect("Redis logs");
        let count = log.lines().count();
        (count >= REAL)
            .then_some(log)
            .ok_or_else(|| format!("{count} lines"))
    })
    .await;
    let odd = ODD.map(str::to_owned);
    let mut odd = odd.into_iter().chain(iter::once("=".repeat(100_000)));
    let mut lines = Vec::new();
    for (number, line) in log.lines().enumerate() {
        lines.push(line.to_owned());
        if number % 10 == 0 {
            lines.extend(odd.next());
        }
    }
    lines.extend(odd);
    lines.push(END.to_owned());
    lines
}

/// Compares the arrived lines with the published ones.
pub(crate) fn assert_same(arrived: &[String], published: &[String]) {
    for (number, line) in published.iter().enumerate() {
        // In an event stream, each kind of line end becomes a line feed.
        let line = line.replace("\r\n", "\n").replace('\r', "\n");
        let arrived = arrived.get(number);
        assert_eq!(arrived, Some(&line), "line {number} of {}", published.len());
    }
    assert_eq!(
        arrived.len(),
        published.len(),
        "more lines arrived than were published"
    );
}
