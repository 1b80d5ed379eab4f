//! Latencies as a curve: the latency of the slowest one in ten, in a hundred, in a thousand
//! deliveries.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 50.0;
/// The curve ends at one in 10 to the power of this.
const NINES: i32 = 5;
/// Points of the curve between two powers.
const STEPS: i32 = 20;

/// An SVG image of latencies, in microseconds, over the share of deliveries that were later.
#[must_use]
pub fn latency_chart(latency: &Histogram<u64>) -> String {
    let millis = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    let quantile = |power: f64| 1.0 - 10_f64.powf(-power);
    let top = nice(millis(quantile(f64::from(NINES))));
    let x = |power: f64| MARGIN + power / f64::from(NINES) * (WIDTH - 2.0 * MARGIN);
    let y = |millis: f64| HEIGHT - MARGIN - millis / top * (HEIGHT - 2.0 * MARGIN);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\" text-anchor=\"middle\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{}\" y=\"24\">latency in ms, {} deliveries</text>\n",
        WIDTH / 2.0,
        latency.len()
    );
    let mut rule = |from: (f64, f64), to: (f64, f64), at: (f64, f64), label: &str| {
        let ((x1, y1), (x2, y2), (x, y)) = (from, to, at);
        // Writing to a String does not fail.
        let _written = writeln!(
            svg,
            "<line x1=\"{x1}\" y1=\"{y1}\" x2=\"{x2}\" y2=\"{y2}\" stroke=\"#ccc\"/>\
             <text x=\"{x}\" y=\"{y}\">{label}</text>"
        );
    };
    for line in 0..=5 {
        let value = top * f64::from(line) / 5.0;
        let at = (MARGIN / 2.0, y(value) + 4.0);
        let (left, right) = (x(0.0), x(f64::from(NINES)));
        rule((left, y(value)), (right, y(value)), at, &format!("{value}"));
    }
    for power in 0..=NINES {
        let x = x(f64::from(power));
        let label = match power {
            0 => "all".to_owned(),
            _ => format!("1 in {}", 10_u32.pow(power.unsigned_abs())),
        };
        let at = (x, HEIGHT - MARGIN + 18.0);
        rule((x, MARGIN), (x, HEIGHT - MARGIN), at, &label);
    }
    svg += "<polyline fill=\"none\" stroke=\"#d9480f\" stroke-width=\"2\" points=\"";
    for step in 0..=NINES * STEPS {
        let power = f64::from(step) / f64::from(STEPS);
        let _written = write!(svg, "{:.1},{:.1} ", x(power), y(millis(quantile(power))));
    }
    svg + "\"/>\n</svg>\n"
}

/// The next greater of 1, 2, 5, 10, 20, 50...
fn nice(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-3).log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    steps
        .into_iter()
        .find(|step| *step >= value)
        .unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curve_ends_within_its_frame() {
        assert_eq!(
            [0.3, 1.0, 1.1, 3.0, 7.0, 99.0].map(nice),
            [0.5, 1.0, 2.0, 5.0, 10.0, 100.0]
        );
        let mut latency = Histogram::new(3).expect("three digits are allowed");
        for micros in 1..=99_900_u64 {
            latency.record(micros).expect("it grows");
        }
        let svg = latency_chart(&latency);
        let points = svg.split("points=\"").nth(1).expect("a curve");
        let last = points
            .split('"')
            .next()
            .expect("an end")
            .trim()
            .rsplit(' ')
            .next();
        let (x, y) = last.expect("a point").split_once(',').expect("a pair");
        assert_eq!(x, "590.0");
        let y: f64 = y.parse().expect("a number");
        assert!((MARGIN..MARGIN + 2.0).contains(&y), "{y}");
    }
}
