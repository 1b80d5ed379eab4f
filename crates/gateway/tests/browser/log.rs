//! The lines of a real log, and some that logs are known to have now and then.

use std::{fs, iter};

use crate::support::{Dir, PATIENCE, Redis, eventually};

/// So many lines, or a few more, are taken from the real log.
const REAL: usize = 300;

/// The last line.
pub(crate) const END: &str = "end of the log";

/// Lines of other programs' logs that look like something else, or are not plain text.
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

/// What Redis logs when it is asked to leave nothing out, with an odd line between the others every
/// so often, a very long one, and one to know the end by.
pub(crate) async fn lines() -> Vec<String> {
    let dir = Dir::new();
    let file = dir.path().join("redis.log");
    let path = file.display().to_string();
    let redis = Redis::start_with(&["--loglevel", "debug", "--logfile", &path]).await;
    let log = eventually("a log of some length", PATIENCE, async || {
        // Each visitor is worth two lines: one when it comes and one when it goes.
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

/// Compares what arrived with what was published, line by line.
pub(crate) fn assert_same(arrived: &[String], published: &[String]) {
    for (number, line) in published.iter().enumerate() {
        // In a stream of events each kind of line end becomes a line feed.
        let line = line.replace("\r\n", "\n").replace('\r', "\n");
        let arrived = arrived.get(number);
        assert_eq!(arrived, Some(&line), "line {number} of {}", published.len());
    }
    assert_eq!(
        arrived.len(),
        published.len(),
        "there is more than was published"
    );
}
