//! The signals of a fault that an operator sees: log lines and metrics.

use std::collections::BTreeMap;

use serde_json::Value;
use testkit::lab::Metrics;

use super::Row;

impl Row {
    /// Counts JSON log lines by level and message.
    pub(crate) fn note_lines(&mut self, lines: &[String]) {
        for line in lines {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                *self.logs.entry(line.clone()).or_default() += 1;
                continue;
            };
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (level, fields) = (text(&line["level"]), &line["fields"]);
            let message = text(&fields["message"]);
            let because = ["error", "reason"].map(|field| text(&fields[field]));
            // Numbers are removed, so equal lines are counted together.
            let because = because
                .join("")
                .replace(|char: char| char.is_ascii_digit(), "");
            let line = match &*because {
                "" => format!("{level} {message}"),
                because => format!("{level} {message}: {because}"),
            };
            *self.logs.entry(line).or_default() += 1;
        }
    }

    /// Notes the average time from append to write over these replicas.
    pub(crate) fn note_delay(&mut self, before: &[Option<Metrics>], after: &[Option<Metrics>]) {
        let [seconds, count] = ["sum", "count"].map(|what| {
            let name = format!("sse_gateway_publish_to_write_seconds_{what}");
            let of = |metrics: &Option<Metrics>| metrics.as_ref().map(|metrics| metrics.sum(&name));
            let all = before
                .iter()
                .zip(after)
                .filter_map(|(before, after)| Some(moved(of(before), of(after)?)));
            all.sum::<f64>()
        });
        self.delay = if count > 0.0 { seconds / count } else { 0.0 };
    }

    /// Adds the increases of a replica's counters.
    pub(crate) fn note_metrics(&mut self, before: Option<&Metrics>, after: &Metrics) {
        let before: BTreeMap<_, _> = before.into_iter().flat_map(Metrics::series).collect();
        for (name, value) in after.series() {
            let is_counter = name
                .split('{')
                .next()
                .is_some_and(|name| name.ends_with("_total"));
            let moved = moved(before.get(name).copied(), value);
            if is_counter && moved > 0.0 {
                *self.metrics.entry(name.to_owned()).or_default() += moved;
            }
        }
    }
}

/// The increase of a counter. The counters of a restarted replica begin at 0.
fn moved(before: Option<f64>, after: f64) -> f64 {
    match before {
        Some(before) if before <= after => after - before,
        _ => after,
    }
}
