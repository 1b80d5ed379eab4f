//! Parsers of flags' values: times, sizes and numbers within bounds. Errors say the bound in words, where those of
//! clap would quote the largest integer.

use std::{num::ParseIntError, ops::RangeInclusive, str::FromStr, time::Duration};

/// Longer than any sensible setting, and far below the overflow of times.
const MAX_TIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A time, up to 30 days.
pub(crate) fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match time <= MAX_TIME {
        true => Ok(time),
        false => Err("it has to be at most 30d".to_owned()),
    }
}

/// A time of at least `least`.
pub(crate) fn time_from(
    least: Duration,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| match time(text)? {
        time if time >= least => Ok(time),
        _ => {
            let least = humantime::format_duration(least);
            Err(format!("it has to be at least {least}"))
        }
    }
}

/// A time of at least `least`, or 0s, which has the meaning of `off`.
pub(crate) fn time_or_off(
    least: Duration,
    off: &'static str,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| match time(text)? {
        time if time >= least || time.is_zero() => Ok(time),
        _ => {
            let least = humantime::format_duration(least);
            Err(format!("it has to be at least {least}, or 0s for {off}"))
        }
    }
}

/// A number of at least 1.
pub(crate) fn positive<T>(text: &str) -> Result<T, String>
where
    T: FromStr<Err = ParseIntError> + Default + PartialEq,
{
    let number: T = text
        .parse()
        .map_err(|error: ParseIntError| error.to_string())?;
    match number == T::default() {
        true => Err("it has to be at least 1".to_owned()),
        false => Ok(number),
    }
}

/// A number of bytes within `range`, which `expected` describes.
pub(crate) fn bytes(
    range: RangeInclusive<usize>,
    expected: &'static str,
) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text::parse_bytes(text)? {
        bytes if range.contains(&bytes) => Ok(bytes),
        _ => Err(format!("it has to be {expected}")),
    }
}
