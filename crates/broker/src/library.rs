//! The function library: its text for this deployment, and the retention rules written into it.

use std::{fmt::Write as _, time::Duration};

use crate::{
    names::{LIBRARY, Names},
    times,
};

/// The whole library except its settings. Each file uses only what those before it define.
const PROCEDURES: &str = concat!(
    include_str!("library/partition.lua"),
    include_str!("library/rules.lua"),
    include_str!("library/append.lua"),
    include_str!("library/ends.lua"),
    include_str!("library/read.lua"),
    include_str!("library/payload.lua"),
    include_str!("library/handshake.lua"),
    include_str!("library/record.lua"),
    include_str!("library/lease.lua"),
    include_str!("library/republish.lua"),
    include_str!("library/publish.lua"),
    include_str!("library/migrate.lua"),
    include_str!("library/functions.lua"),
);

/// How much of a channel is kept. The first rule whose pattern matches counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Channel names; `*` matches any run of characters.
    pub pattern: String,
    /// Entries kept. With 0, events are relayed without an id and without history.
    pub history: u32,
    /// Entries are kept for this long, up to `history`.
    pub max_age: Duration,
    /// A channel without events for this long is forgotten. At least one second.
    pub expire: Duration,
}

impl Default for Rule {
    fn default() -> Self {
        Self {
            pattern: "*".to_owned(),
            history: 1000,
            max_age: Duration::from_secs(3600),
            expire: Duration::from_secs(24 * 3600),
        }
    }
}

/// The text to load as a function library.
pub(crate) fn library(script: &str) -> String {
    format!("#!lua name={LIBRARY}\n{script}")
}

/// The text to run as a plain script: settings, names, procedures.
pub(crate) fn script(names: &Names, rules: &[Rule], max_payload: usize) -> String {
    let mut text = names.lua_constants();
    let count = names.partitions().count();
    let _infallible = writeln!(text, "local PARTITIONS = {count}");
    let _infallible = writeln!(text, "local MAX_PAYLOAD = {max_payload}");
    for (name, time) in [
        ("LATENCY", times::LATENCY),
        ("LEASED", times::LEASE),
        ("RESUMED", times::RESUMED),
        ("LOST_BEGINNINGS", times::LOST_BEGINNINGS),
        ("REPEAT", times::REPEAT),
        ("LATEST", times::LATEST),
        ("CLOSING", times::CLOSING),
        ("GONE", times::GONE),
    ] {
        let _infallible = writeln!(text, "local {name} = {}", time.as_millis());
    }
    let _infallible = writeln!(text, "local IN_SYNC_LEASES = {}", times::IN_SYNC_LEASES);
    text += "local RULES = {\n";
    for rule in rules.iter().chain([&Rule::default()]) {
        let _infallible = writeln!(
            text,
            "  {{ match = {}, history = {}, max_age = {}, expire = {} }},",
            quoted(&rule.pattern),
            rule.history,
            rule.max_age.as_millis(),
            rule.expire.as_millis().max(1000),
        );
    }
    text += "}\n";
    text + PROCEDURES
}

/// Whether a library on a server is of this version, with any settings.
pub(crate) fn is_of_this_version(code: &[u8]) -> bool {
    code.ends_with(PROCEDURES.as_bytes())
}

/// The number of partitions that a library was loaded for.
pub(crate) fn partitions(code: &[u8]) -> Option<&str> {
    setting(std::str::from_utf8(code).ok()?, "PARTITIONS")
}

/// The largest payload that a library was loaded for, in bytes.
pub(crate) fn max_payload(code: &str) -> Option<usize> {
    setting(code, "MAX_PAYLOAD")?.parse().ok()
}

fn setting<'a>(code: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| {
        let line = line.strip_prefix("local ")?;
        line.strip_prefix(name)?.strip_prefix(" = ")
    };
    code.lines().find_map(value)
}

/// The text of a library as a plain script, for a deployment with other partitions and the same rules. None if this
/// version cannot read it.
pub(crate) fn divided(code: &str, names: &Names) -> Option<String> {
    let (_, settings) = code.split_once("local PARTITIONS = ")?;
    let (_, settings) = settings.split_once('\n')?;
    let (constants, count) = (names.lua_constants(), names.partitions().count());
    Some(format!("{constants}local PARTITIONS = {count}\n{settings}"))
}

/// A Lua string literal: every byte that is not a plain letter or digit is escaped.
fn quoted(text: &str) -> String {
    let mut literal = String::from("'");
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            literal.push(char::from(byte));
        } else {
            let _infallible = write!(literal, "\\{byte:03}");
        }
    }
    literal + "'"
}

#[cfg(test)]
pub(crate) mod tests;
