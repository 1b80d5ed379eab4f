//! `nearest`: finds the known name that is closest to an unknown one.

/// The known name that differs least, unless all of them differ by more than a third.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Clients choose these names, and the comparison is quadratic. A long name is not a misspelled one.
    if name.len() > 64 {
        return None;
    }
    let name = plain(name).into_bytes();
    let distances = known
        .into_iter()
        .map(|known| (distance(&name, plain(known).as_bytes()), known));
    let (distance, known) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= known.len().max(3) / 3).then_some(known)
}

/// Case, hyphens and underscores make no difference: `lastEventId` and `Last-Event-ID` are one name.
fn plain(name: &str) -> String {
    let letters = name.chars().filter(|c| !matches!(c, '_' | '-'));
    letters.map(|c| c.to_ascii_lowercase()).collect()
}

/// Letters that have to be put in, taken out or changed.
fn distance(one: &[u8], other: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (number, letter) in one.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], number + 1);
        for (place, with) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != with);
            diagonal = row[place + 1];
            row[place + 1] = changed.min(row[place] + 1).min(diagonal + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_no_far_one() {
        let known = ["channel", "last_event_id", "since", "limit", "access_token"];
        for (name, expected) in [
            ("chanel", Some("channel")),
            ("channels", Some("channel")),
            ("last-event", Some("last_event_id")),
            ("LastEventID", Some("last_event_id")),
            ("sinse", Some("since")),
            ("token", None),
            ("x", None),
            ("", None),
            ("é", None),
            (&"channel".repeat(100), None),
        ] {
            assert_eq!(nearest(name, known), expected, "{name}");
        }
    }
}
