//! Writes the table of faults, and the signals of each that an operator sees, as Markdown.

use std::{collections::BTreeSet, fmt, fmt::Write as _, time::Duration};

use crate::{counters::is_usual, fault::Fault, findings::Findings, row::Row};

/// A counter is remarkable if it moves this many times as much as without a fault.
const MUCH: f64 = 3.0;
/// Lines that a replica logs at each start.
const START: [&str; 2] = ["INFO as many as the limit", "INFO the function library"];

/// The document of a run.
#[must_use]
pub fn markdown(findings: &Findings) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    write_markdown(findings, &mut text).expect("a string takes everything");
    text
}

fn write_markdown(findings: &Findings, out: &mut String) -> fmt::Result {
    let chaos = &findings.chaos;
    let clients = chaos.clients;
    let rate = chaos.rate;
    writeln!(
        out,
        "# Faults

The effect of each fault on clients, and what an operator sees of it. `./dev chaos` writes this page. The run has three replicas, two \
of which record, and a Redis with an AOF, on two cores. For the faults that replace a master, it has a master with two copies, and three \
sentinels that watch it (`down-after-milliseconds 1000`). Each of {clients} clients follows one to three of four channels. Raw PUBLISH, \
`FCALL sse_publish` and POST each publish {rate} messages a second. PUBLISH also sends ten identical messages a second, five at once. \
Clients reconnect as a browser's EventSource does, to a random replica, after at most 0.3 s. A tenth of them stops reading at times. \
During each fault, 3 % of the clients leave every half second and reconnect.

Each client checks the number, the order and the id of each event, and all clients have to see the same id. It also checks that a gap \
arrives exactly where an event is missing. After each row, the events that Redis has *stored* are compared with those that clients saw. \
*Lost* counts messages that a client missed without a gap, *twice* messages that arrived again, and *other* all other broken promises. \
Each of them has to be 0, unless Redis evicts (marked ‡). Redis does not report which keys it evicts: history, or keys that recorders \
coordinate with.

- *unrecorded*: raw messages that had a subscriber and are in no history. They are unavoidable where every recorder has lost its \
subscription or Redis takes no writes (marked \\*). Elsewhere the count has to be 0. Where every recorder has lost its subscription, \
every client of the channel has to receive a gap after each such message.
- *gaps*: `gateway.gap` events. They are allowed only where Redis has forgotten events or recording was interrupted (marked †).
- *cut*: connections that the client did not end. Where no replica ends, only clients that stall may be cut.
- *live* and *raw*: the time from the end of the fault until every client has received a message that was published after it, by the \
function and raw. The fault of a killed replica ends when its process has ended.
- *silence*: the longest time that a client received no event, from the beginning of the fault. *quiet*: the longest time that a \
connection received no bytes. Replicas send a heartbeat each second, also while Redis is away. A stopped replica sends none.
- *ready*: the least number of replicas whose `/readyz` answered 200 at the same time.
",
    )?;
    writeln!(
        out,
        "| fault | | messages | stored | deliveries | cut | gaps | unrecorded | lost | twice | other | lasts | live | raw | silence | quiet | ready |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    )?;
    for row in &findings.rows {
        let what = row.faults.iter().map(|fault| fault.what());
        let what: Vec<_> = what.collect();
        table_row(&format!("`{}`", row.name()), &what.join(" "), row, out)?;
    }
    if let Some(soak) = &findings.random {
        let minutes = chaos.random.as_secs() / 60;
        let what = format!(
            "{} rounds in {minutes} minutes, seed {}",
            soak.rounds, chaos.seed
        );
        table_row(
            "at random, one or two at about the same time",
            &what,
            &soak.row,
            out,
        )?;
        writeln!(
            out,
            "\nIn {} of these rounds, every raw message that had a subscriber had to be recorded: {}.",
            soak.recorded,
            match soak.broken {
                0 => "all were".to_owned(),
                broken => format!("{broken} rounds broke a promise"),
            }
        )?;
        if let [first, .., last] = &soak.usage[..] {
            let mib = |bytes: u64| bytes / 1024 / 1024;
            writeln!(
                out,
                "\nA replica that lived through all rounds of the last row had {} MiB and {} open files (without streams) in its first minute, and {} MiB \
                 and {} in its last. Its maximum was {} MiB.",
                mib(first[0]),
                first[1],
                mib(last[0]),
                last[1],
                mib(soak
                    .usage
                    .iter()
                    .map(|usage| usage[0])
                    .max()
                    .unwrap_or_default()),
            )?;
        }
    }
    writeln!(
        out,
        "\n## What an operator sees\n\n\
         Counters that increased, summed over all replicas, and log lines with their counts. A counter that also increases without a \
         fault is listed if it increased more than three times as much."
    )?;
    let mut faults = findings.rows.iter().flat_map(|row| &row.faults);
    if faults.any(|fault| *fault == Fault::Promote) {
        writeln!(
            out,
            "\nAfter `promote`, events seem about 20 s old when they are written. Their ids are from the clock of the new master, which is \
             that far behind."
        )?;
    }
    let calm = findings.rows.iter().find(|row| row.faults == [Fault::None]);
    let usual: BTreeSet<_> = calm.iter().flat_map(|row| row.logs.keys()).collect();
    for row in findings
        .rows
        .iter()
        .filter(|row| row.faults != [Fault::None])
    {
        writeln!(out, "\n### {}\n", row.name())?;
        let shows = |(name, by): &(&String, &f64)| {
            let usually = calm.map(|calm| calm.metrics.get(*name).copied().unwrap_or_default());
            !is_usual(name) || usually.is_some_and(|usually| **by > MUCH * usually)
        };
        let moved = row.metrics.iter().filter(shows);
        let moved: Vec<_> = moved.map(|(name, by)| format!("`{name}` +{by}")).collect();
        let logged = row.logs.iter().filter(|(line, _)| {
            let at_start = row.faults != [Fault::ScriptFlush]
                && START.iter().any(|start| line.starts_with(start));
            !usual.contains(line) && !at_start
        });
        let logged: Vec<_> = logged
            .map(|(line, times)| format!("`{line}` ×{times}"))
            .collect();
        let mut shown: Vec<_> = row
            .gauges
            .iter()
            .filter(|(name, range)| is_remarkable(name, **range, row.ready[1]))
            .map(|(name, [least, most])| format!("`{name}` between {least} and {most}"))
            .collect();
        let usually = calm.map_or(f64::INFINITY, |calm| calm.delay);
        if row.delay > MUCH * usually {
            let (seconds, usually) = (row.delay, usually);
            shown.push(format!("mean of `sse_gateway_publish_to_write_seconds` {seconds:.3}, {usually:.3} without a fault"));
        }
        if row.up < row.ready[1] {
            shown.push(format!("{} of {} replicas answer", row.up, row.ready[1]));
        }
        for (what, list) in [
            ("Gauges, summed over replicas", shown),
            ("Counters", moved),
            ("Logs", logged),
        ] {
            if list.is_empty() && what != "Logs" {
                continue;
            }
            let list = if list.is_empty() {
                "nothing".to_owned()
            } else {
                list.join(", ")
            };
            writeln!(out, "{what}: {list}.\n")?;
        }
    }
    Ok(())
}

/// Whether the sum of a gauge differs from its value without a fault.
fn is_remarkable(gauge: &str, [least, most]: [f64; 2], replicas: usize) -> bool {
    match gauge {
        "sse_gateway_recorder_active" => [least, most] != [1.0, 1.0],
        "sse_gateway_recorder_subscribed" | "sse_gateway_recorder_in_sync" => least < 2.0,
        // Fewer messages arrive between two answers of Redis.
        "sse_gateway_recorder_pending" => most >= 20.0,
        _ => least < replicas as f64,
    }
}

fn table_row(name: &str, what: &str, row: &Row, out: &mut String) -> fmt::Result {
    let seconds = |time: Duration| format!("{:.1} s", time.as_secs_f64());
    let star = if row.promises.raw_recorded() {
        ""
    } else {
        "\\*"
    };
    let dagger = if row.promises.no_gaps { "" } else { "†" };
    let double = if row.promises.exact { "" } else { "‡" };
    writeln!(
        out,
        "| {name} | {what} | {} | {} | {} | {} | {}{dagger} | {}{star} | {}{double} | {}{double} | {} | {} | {} | {} | {} | {} | {}/{} |",
        row.messages,
        row.stored,
        row.deliveries,
        row.cuts,
        row.gaps,
        row.unrecorded,
        row.lost,
        row.repeated,
        row.disorder,
        seconds(row.lasted),
        seconds(row.live),
        seconds(row.raw_live),
        seconds(row.silence),
        seconds(row.quiet),
        row.ready[0],
        row.ready[1],
    )
}
