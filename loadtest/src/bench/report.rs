//! The results of the benchmark, as a table and as a chart.

use std::{
    fmt::{Display, Write as _},
    fs,
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use serde_json::{Value, json};
use testkit::lab::redis_server;

use super::{Contender, FIGURES, Figure};

/// The conditions of the figures: the processor, the system, and the versions of the measured
/// programs.
pub(super) fn machine() -> Result<Value> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|model| model.trim_start_matches(['\t', ' ', ':']));
    let version = |program: &str, flag: &str| {
        let output = Command::new(program).arg(flag).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        Some(String::from_utf8_lossy(&said).lines().next()?.to_owned())
    };
    Ok(json!({
        "processor": model,
        "cores": std::thread::available_parallelism()?,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "redis": version(&redis_server(), "--version"),
        "nginx": version("nginx", "-v"),
        "node": version("node", "--version"),
    }))
}

/// One contender's figure: the median, and the median of its ratios to the base in the same rounds.
struct Entry {
    value: f64,
    ratio: Option<f64>,
}

fn entry(results: &Value, contender: Contender, figure: &Figure) -> Result<Option<Entry>> {
    let values = |contender: Contender| -> Vec<f64> {
        let values = results["figures"][contender.name()][figure.name].as_array();
        let values = values.into_iter().flatten();
        values.filter_map(Value::as_f64).collect()
    };
    let (own, base) = (values(contender), values(Contender::BASE));
    let rounds = results["rounds"].as_u64().context("no rounds")? as usize;
    if own.len() < rounds {
        return Ok(None);
    }
    let ratios = own.iter().zip(base).map(|(own, base)| own / base).collect();
    Ok(Some(Entry {
        value: median(own)?,
        ratio: median(ratios).ok(),
    }))
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    if values.is_empty() {
        bail!("no figures");
    }
    values.sort_by(f64::total_cmp);
    Ok(values[values.len() / 2])
}

fn took_part(results: &Value) -> impl Iterator<Item = &'static Contender> {
    let contenders = Contender::value_variants().iter();
    contenders.filter(|contender| results["figures"].get(contender.name()).is_some())
}

/// The medians as Markdown, with their ratios to the first reference server in the same rounds.
///
/// # Errors
/// If the results are not those of [`super::Bench::run`].
pub fn table(results: &Value) -> Result<String> {
    let mut text = String::from("|");
    let mut rule = String::from("|---|");
    for contender in took_part(results) {
        write!(text, " | {}", contender.name())?;
        rule += "---|";
    }
    writeln!(text, " |\n{rule}")?;
    for figure in &FIGURES {
        write!(text, "| {}, {}", figure.what, figure.unit)?;
        for contender in took_part(results) {
            match entry(results, *contender, figure)? {
                None => write!(text, " | -")?,
                Some(Entry { value, ratio }) => {
                    write!(text, " | {}", short(value))?;
                    if let Some(ratio) = ratio {
                        write!(text, " ({})", short(ratio))?;
                    }
                }
            }
        }
        writeln!(text, " |")?;
    }
    Ok(text)
}

/// Three significant digits, or more if they are before the decimal point.
fn short(value: f64) -> String {
    if value >= 1000.0 {
        let digits = format!("{value:.0}");
        let groups = digits.as_bytes().rchunks(3).rev();
        let groups = groups.map(|group| String::from_utf8_lossy(group).into_owned());
        groups.collect::<Vec<_>>().join(",")
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

const CHARTED: [&str; 6] = [
    "sustained",
    "cpu_one",
    "p99",
    "cpu_many",
    "idle",
    "connects",
];
const PANEL_WIDTH: usize = 440;
const BAR_HEIGHT: usize = 18;
const NAMES_WIDTH: usize = 190;
const BARS_WIDTH: usize = 160;

/// The medians as bars, an SVG image.
///
/// # Errors
/// If the results are not those of [`super::Bench::run`].
pub fn chart(results: &Value) -> Result<String> {
    let rows = took_part(results).count();
    let panel_height = 60 + rows * BAR_HEIGHT;
    let (width, height) = (2 * PANEL_WIDTH + 20, 3 * panel_height + 10);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n\
         <title>sse-gateway and others, measured in one run</title>\n\
         <style>\n\
         text {{ fill: #1f2328 }} .bar {{ fill: #9aa4b2 }} .own {{ fill: #d9480f }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         text {{ fill: #e6edf3 }} .bar {{ fill: #6e7681 }} .own {{ fill: #ff922b }}\n\
         }}\n\
         </style>\n"
    );
    for (place, name) in CHARTED.iter().enumerate() {
        let figure = FIGURES.iter().find(|figure| figure.name == *name);
        let figure = figure.context("no such figure")?;
        let x = 10 + place % 2 * PANEL_WIDTH;
        let y = 20 + place / 2 * panel_height;
        let better = if figure.more { "more" } else { "less" };
        let (title, conditions) = figure.what.split_once(", ").unwrap_or((figure.what, ""));
        let separator = if conditions.is_empty() { "" } else { "; " };
        let title = format!("{title}, {}", figure.unit);
        text(&mut svg, (x, y), "font-weight=\"bold\"", title)?;
        let conditions = format!("{conditions}{separator}{better} is better");
        text(&mut svg, (x, y + 14), "font-size=\"11\"", conditions)?;
        let entries = took_part(results)
            .map(|contender| Ok((*contender, entry(results, *contender, figure)?)))
            .collect::<Result<Vec<_>>>()?;
        let values = entries
            .iter()
            .flat_map(|(_, entry)| entry)
            .map(|entry| entry.value);
        let greatest = values.fold(f64::MIN_POSITIVE, f64::max);
        for (row, (contender, entry)) in entries.iter().enumerate() {
            let top = y + 20 + row * BAR_HEIGHT;
            text(&mut svg, (x, top + 13), "", contender.name())?;
            let Some(Entry { value, .. }) = entry else {
                text(
                    &mut svg,
                    (x + NAMES_WIDTH, top + 13),
                    "",
                    "not kept up with",
                )?;
                continue;
            };
            let class = if *contender == Contender::Gateway {
                "own"
            } else {
                "bar"
            };
            let length = (value / greatest * BARS_WIDTH as f64).max(1.0);
            writeln!(
                svg,
                "<rect class=\"{class}\" x=\"{}\" y=\"{}\" width=\"{length:.1}\" height=\"{}\"/>",
                x + NAMES_WIDTH,
                top + 3,
                BAR_HEIGHT - 5
            )?;
            let end = x + NAMES_WIDTH + length as usize + 6;
            text(&mut svg, (end, top + 13), "", short(*value))?;
        }
    }
    Ok(svg + "</svg>\n")
}

/// None of the texts has a character that XML requires to be escaped.
fn text(svg: &mut String, at: (usize, usize), style: &str, text: impl Display) -> Result<()> {
    let (x, y) = at;
    Ok(writeln!(
        svg,
        "<text x=\"{x}\" y=\"{y}\" {style}>{text}</text>"
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_the_same_rounds() {
        let results = json!({
            "rounds": 3,
            "figures": {
                Contender::BASE.name(): { "p99": [2.0, 4.0, 8.0], "cpu_one": [1.0, 1.0, 1.0] },
                Contender::Gateway.name(): { "p99": [2.0, 8.0, 8.0], "cpu_one": [1.0, null, 1.0] },
            },
        });
        let table = table(&results).expect("these are results");
        let row = |what: &str| {
            table
                .lines()
                .find(|line| line.contains(what))
                .expect("a row")
        };
        assert!(row("99th percentile, ms").ends_with("| 4.00 (1.00) | 8.00 (1.00) |"));
        assert!(row("CPU per delivery, 1 channel").ends_with("| 1.00 (1.00) | - |"));
        let chart = chart(&results).expect("these are results");
        assert!(chart.contains("not kept up with") && chart.ends_with("</svg>\n"));
        assert_eq!(short(3_554_321.4), "3,554,321");
    }
}
