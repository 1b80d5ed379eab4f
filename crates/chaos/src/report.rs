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

What happens to clients when something breaks, and what an operator sees of it. Written by `./dev chaos`, \
from a run with three replicas, two of which record, one Redis with an AOF, or, for the faults that replace a master, a master \
with two copies that three sentinels watch (`down-after-milliseconds 1000`), {clients} clients of one to three of four channels, and {rate} \
messages a second of each of raw PUBLISH, `FCALL sse_publish` and POST, with ten identical raw messages a second beside them, five at once. \
All of it shared two cores. Clients reconnect as a browser's EventSource does, to a random replica, after 0.3 s at most; a \
tenth of them stops reading now and then, and during each fault three of a hundred leave every half second and come back.

Each client checks each event: its number, its order, its id, which has to be the one that all others see, and whether a gap \
was told exactly where something is missing. After each row all that Redis has *stored* is compared with what clients saw. *Lost* is what a client missed without a word, *twice* what came again, *other* whatever else is \
not as it should be; each has to be 0, but where Redis evicts (marked ‡): it tells nobody which keys it drops, be it history or what the \
recorders agree by.

- *unrecorded*: raw messages that somebody heard and that are in no history. Nothing else is possible where every recorder has \
lost its subscription or Redis takes no writes (marked \\*); anywhere else it has to be 0. Where every recorder has lost its \
subscription, every client of the channel has to be told a gap after each such message.
- *gaps*: `gateway.gap` events. They are only told where Redis has forgotten something or recording was interrupted (marked †); \
anywhere else there must be none.
- *cut*: connections that ended without the client's doing. Where no replica ends there must be none, but of clients that stall.
- *live* and *raw*: from the end of the fault until every client received what was published after it, by \
function and raw. A killed replica's fault ends when it is dead.
- *silence*: the longest time that any client was without an event, from the beginning of the fault; *quiet*: the longest that a \
connection brought nothing at all, with a heartbeat a second. A replica that is stopped brings none; any other goes on, whatever \
becomes of Redis.
- *ready*: the least number of replicas whose `/readyz` said 200 meanwhile.
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
            "\nIn {} of these rounds every raw message that somebody heard had to be recorded; {}.",
            soak.recorded,
            match soak.broken {
                0 => "each was".to_owned(),
                broken => format!("in {broken} rounds something was not as promised"),
            }
        )?;
        if let [first, .., last] = &soak.usage[..] {
            let mib = |bytes: u64| bytes / 1024 / 1024;
            writeln!(
                out,
                "\nA replica that lived through all of the last row had {} MiB and {} open files, beside streams, in its first minute, {} MiB and {} \
                 in its last; the most in any minute was {} MiB.",
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
         Counters that moved, over all replicas, and what was logged, with the number of times. Of what moves whatever happens, that \
         which moved more than three times as much as while nothing happened."
    )?;
    let mut faults = findings.rows.iter().flat_map(|row| &row.faults);
    if faults.any(|fault| *fault == Fault::Promote) {
        writeln!(
            out,
            "\nFrom `promote` on events seem some 20 s old when they are written: their ids are of the new master's clock, which is \
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
            shown.push(format!("mean of `sse_gateway_publish_to_write_seconds` {seconds:.3}, {usually:.3} while nothing happens"));
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
