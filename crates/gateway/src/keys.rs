//! `sse-gateway keys`: prints the keys that a call of `sse_publish` declares in a Redis Cluster.

use std::fmt::Write as _;

use broker::PublishKeys;
use serde_json::json;

use crate::invalid::Invalid;

/// How the keys are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum KeysFormat {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// The prefix of the keys of each partition. As JSON, an array in the order of the partitions.
pub(crate) fn table(keys: &PublishKeys, format: KeysFormat) -> String {
    let partitions = keys.partitions().all();
    match format {
        KeysFormat::Json => {
            let prefixes: Vec<_> = partitions.map(|partition| keys.prefix(partition)).collect();
            json!(prefixes).to_string()
        }
        KeysFormat::Text => {
            partitions.fold("partition   slot  prefix".to_owned(), |text, partition| {
                let (slot, prefix) = (keys.slot(partition), keys.prefix(partition));
                format!("{text}\n{partition:>9}  {slot:>5}  {prefix}")
            })
        }
    }
}

/// Partition, slot and keys of each channel.
///
/// # Errors
/// When a name is no channel.
pub(crate) fn of_channels(
    keys: &PublishKeys,
    names: &[String],
    idempotency_key: Option<&str>,
    format: KeysFormat,
) -> Result<String, Invalid> {
    let (mut text, mut list) = (String::new(), Vec::new());
    for name in names {
        let channel = keys.partitions().channel(name);
        let channel = channel.map_err(|error| Invalid(format!("keys: {name:?}: {error}")))?;
        let partition = channel.partition();
        let (slot, keys) = (keys.slot(partition), keys.of(&channel, idempotency_key));
        let separator = if text.is_empty() { "" } else { "\n" };
        let lines = keys.join("\n  ");
        write!(
            text,
            "{separator}{name}: partition {partition}, slot {slot}\n  {lines}"
        )
        .expect("a String takes everything");
        list.push(json!({ "channel": name, "partition": partition, "slot": slot, "keys": keys }));
    }
    Ok(match format {
        KeysFormat::Text => text,
        KeysFormat::Json => json!(list).to_string(),
    })
}

#[cfg(test)]
mod tests {
    use hub::Partitions;
    use serde_json::Value;
    use testkit::{hash_tag, partition_of};

    use super::*;

    fn keys(count: u16) -> PublishKeys {
        PublishKeys::new(Partitions::new(count).unwrap())
    }

    /// Breaks when a backend that embeds the table would compute other keys than the function library.
    #[test]
    fn the_table_holds_the_prefix_of_each_partition() {
        for count in [1, 16, 1024] {
            let expected: Vec<_> = (0..u32::from(count))
                .map(|partition| format!("ssegw:{{{}}}:", hash_tag(partition, u32::from(count))))
                .collect();
            let table = table(&keys(count), KeysFormat::Json);
            assert_eq!(
                serde_json::from_str::<Vec<String>>(&table).unwrap(),
                expected
            );
        }
        assert_eq!(
            table(&keys(2), KeysFormat::Text),
            "partition   slot  prefix\n        0   4096  ssegw:{4129}:\n        1  12288  ssegw:{356}:"
        );
    }

    #[test]
    fn channels_are_printed_with_their_keys() {
        let names = ["news".to_owned(), "ö {x}".to_owned()];
        let printed = of_channels(&keys(16), &names, Some("k"), KeysFormat::Json).unwrap();
        let printed: Value = serde_json::from_str(&printed).unwrap();
        for (name, printed) in names.iter().zip(printed.as_array().unwrap()) {
            let partition = partition_of(name, 16);
            let prefix = format!("ssegw:{{{}}}:", hash_tag(partition, 16));
            assert_eq!(printed["channel"], **name);
            assert_eq!(printed["partition"], partition);
            assert_eq!(printed["slot"], (2 * partition + 1) * 512);
            let keys = printed["keys"].as_array().unwrap();
            let expected = [
                "clock",
                "past",
                "ends",
                &format!("log:{name}"),
                &format!("ids:{name}"),
            ];
            for (key, expected) in keys.iter().zip(expected) {
                assert_eq!(*key, prefix.clone() + expected);
            }
            assert_eq!(keys.len(), 6);
        }
        let text = of_channels(&keys(1), &names[..1], None, KeysFormat::Text).unwrap();
        assert_eq!(
            text,
            "news: partition 0, slot 8192\n  ssegw:{8209}:clock\n  ssegw:{8209}:past\n  ssegw:{8209}:ends\n  \
             ssegw:{8209}:log:news\n  ssegw:{8209}:ids:news"
        );
        let refused = of_channels(&keys(1), &["a\nb".to_owned()], None, KeysFormat::Text);
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("control characters")
        );
    }
}
