//! The checker catches each kind of broken promise, and accepts all else.

use super::*;
use crate::partition_of;

/// Feeds `script` to a checker and returns its violations.
///
/// A line is `id publisher channel seq`, `id gap channel after oldest`, `id open` or `id text`. The id `=` repeats the
/// one of the line before. At the end, texts and gaps are settled.
fn check(ledger: &Arc<Ledger>, script: &str) -> Vec<String> {
    let mut checker = Checker::new(ledger);
    let mut last = String::new();
    for line in script
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        let (id, rest) = line.split_once(' ').unwrap();
        if id != "=" {
            last = id.to_owned();
        }
        let (event, data) = match rest.split(' ').collect::<Vec<_>>()[..] {
            ["gap", channel, after, oldest] => {
                let data = format!(
                    r#"{{"channel": "{channel}", "after": "{after}", "oldest": "{oldest}"}}"#
                );
                ("gateway.gap", data)
            }
            ["open"] => ("gateway.open", "{}".to_owned()),
            [_, _, _] => ("message", format!("{rest} 1700000000000000")),
            _ => ("message", rest.to_owned()),
        };
        let id = last.clone();
        checker.see(&Event {
            id,
            event: event.into(),
            data,
        });
    }
    checker.settle();
    checker
        .violations()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn an_exact_stream_has_no_violations() {
    let script = "
        1-0 open
        2-0 p a 0
        3-0 q a 0
        3-1 p a 1
        4-0 p b 0
        4-0 open
        5-0 p a 2
        6-0 tick";
    assert_eq!(check(&Ledger::new(1), script), [""; 0]);
}

#[test]
fn a_drop_is_caught() {
    let violations = check(&Ledger::new(1), "2-0 p a 0\n3-0 p a 3");
    assert_eq!(violations, ["a: p's 1..=2 did not arrive"]);
}

#[test]
fn a_drop_at_either_end_is_caught() {
    let mut checker = Checker::new(&Ledger::new(1));
    checker.expect_from("a", "p", 0);
    let data = "p a 1 1700000000000000".to_owned();
    checker.see(&Event {
        id: "2-0".into(),
        event: "message".into(),
        data,
    });
    let goal = Goal::from([(("a".into(), "p".into()), 2)]);
    assert!(!checker.reached(&goal));
    checker.finish(&goal);
    let violations: Vec<_> = checker
        .violations()
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        violations,
        ["a: p's 0..=0 did not arrive", "a: p's 2..=2 did not arrive"]
    );
}

/// A repetition over a new connection is distinguished from one over the same connection.
#[test]
fn a_repetition_after_a_reconnect_is_marked_as_one() {
    let mut checker = Checker::new(&Ledger::new(1));
    let mut see = |event: &str, data: &str| {
        let id = "2-0".to_owned();
        checker.see(&Event {
            id,
            event: event.into(),
            data: data.to_owned(),
        });
    };
    let message = |seq: u64| format!("p a {seq} 1700000000000000");
    see("gateway.open", "{}");
    see("message", &message(0));
    see("message", &message(1));
    see("gateway.open", "{}");
    see("message", &message(1));
    see("message", &message(1));
    see("message", &message(2));
    see("message", &message(2));
    let moved = checker
        .violations()
        .iter()
        .filter_map(|violation| match violation {
            Violation::Repeated { seq, has_moved, .. } => Some((*seq, *has_moved)),
            _ => None,
        });
    assert_eq!(
        moved.collect::<Vec<_>>(),
        [(1, true), (1, false), (2, false)]
    );
}

#[test]
fn a_repetition_is_caught_with_or_without_a_new_id() {
    let again = check(&Ledger::new(1), "2-0 p a 0\n3-0 p a 1\n= p a 1");
    assert_eq!(again, ["a: p's 1 arrived again, as 3-0"]);
    let renumbered = check(&Ledger::new(1), "2-0 p a 0\n3-0 p a 1\n4-0 p a 1");
    assert_eq!(renumbered[0], "a: p's 1 arrived again, as 4-0");
    let text = check(&Ledger::new(1), "2-0 tick\n3-0 tick\n= tick");
    assert_eq!(text, ["\"tick\" arrived again under 3-0"]);
}

#[test]
fn a_swap_is_caught() {
    let violations = check(
        &Ledger::new(1),
        "2-0 p a 0\n3-0 p a 2\n4-0 p a 1\n5-0 p a 3",
    );
    assert_eq!(
        violations,
        ["a: p's 1..=1 did not arrive", "a: p's 1 arrived late"]
    );
}

#[test]
fn decreasing_ids_are_caught() {
    let violations = check(&Ledger::new(1), "5-0 p a 0\n4-9 p a 1\n5-0 p a 2");
    assert_eq!(violations, ["id 4-9 arrived after 5-0"]);
    let open = check(&Ledger::new(1), "5-0 p a 0\n4-9 open");
    assert_eq!(open, ["id 4-9 arrived after 5-0"]);
}

#[test]
fn an_id_of_the_wrong_partition_is_caught() {
    assert_eq!((partition_of("b", 2), partition_of("a", 2)), (0, 1));
    let good = "2_0.5-0_1.5-0 open\n2_0.6-0_1.5-0 p b 0\n2_0.6-0_1.7-0 p a 0";
    assert_eq!(check(&Ledger::new(2), good), [""; 0]);
    let wrong = check(&Ledger::new(2), "2_0.5-0_1.5-0 open\n2_0.5-0_1.6-0 p b 0");
    assert_eq!(wrong, ["id 2_0.5-0_1.6-0 arrived after 2_0.5-0_1.5-0"]);
    let gone = check(&Ledger::new(2), "2_0.5-0_1.5-0 open\n2_0.6-0 p b 0");
    assert_eq!(gone, ["id 2_0.6-0 arrived after 2_0.5-0_1.5-0"]);
}

#[test]
fn a_message_with_two_ids_is_caught_across_clients() {
    let ledger = Ledger::new(1);
    assert_eq!(check(&ledger, "2-0 p a 0\n3-0 p a 1"), [""; 0]);
    assert_eq!(ledger.id_of("a", "p", 1), Some(Id { ms: 3, seq: 0 }));
    let violations = check(&ledger, "2-0 p a 0\n3-1 p a 1");
    assert_eq!(violations, ["a: p's 1 is 3-1, elsewhere 3-0"]);
}

#[test]
fn a_gap_excuses_its_own_channel_once_and_inside_its_range() {
    assert_eq!(
        check(&Ledger::new(1), "2-0 p a 0\n3-0 gap a 2-0 9-0\n9-0 p a 7"),
        [""; 0]
    );
    let elsewhere = check(&Ledger::new(1), "2-0 p a 0\n3-0 gap b 2-0 9-0\n9-0 p a 7");
    let false_gap = |channel| {
        format!("{channel}: nothing is missing between 2-0 and 9-0, where a gap was received")
    };
    assert_eq!(elsewhere, ["a: p's 1..=6 did not arrive", &false_gap("b")]);
    let later = check(
        &Ledger::new(1),
        "2-0 p a 0\n3-0 gap a 2-0 9-0\n4-0 p a 1\n9-0 p a 7",
    );
    assert_eq!(later, ["a: p's 2..=6 did not arrive", &false_gap("a")]);
}

#[test]
fn a_gap_excuses_no_message_before_or_after_it() {
    let ledger = Ledger::new(1);
    let all = "2-0 p a 0\n3-0 p a 1\n4-0 p a 2\n5-0 p a 3\n6-0 p a 4";
    assert_eq!(check(&ledger, all), [""; 0]);
    let early = check(&ledger, "2-0 p a 0\n5-0 gap a 3-0 6-0\n6-0 p a 4");
    assert_eq!(early, ["a: p's 1..=1 did not arrive"]);
    let cut = check(&ledger, "2-0 p a 0\n2-0 open\n5-0 gap a 3-0 6-0\n6-0 p a 4");
    assert_eq!(cut, early, "a cut is no excuse");
    let late = check(&ledger, "2-0 p a 0\n3-0 gap a 2-0 5-0\n6-0 p a 4");
    assert_eq!(late, ["a: p's 2..=3 did not arrive"]);
    let behind = check(&ledger, "2-0 p a 0\n3-0 gap a 2-0 ?\n6-0 p a 4");
    assert_eq!(behind, ["a: p's 2..=3 did not arrive"], "it has an id");
    let open = check(&ledger, "2-0 p a 0\n= gap a 2-0 ?\n6-0 p a 4");
    assert_eq!(open, [""; 0]);
    let ended = "2-0 p a 0\n= gap a 2-0 ?\n2-1 q a 0\n6-0 p a 4";
    assert_eq!(check(&ledger, ended)[0], "a: p's 1..=3 did not arrive");
    // If events of another channel are inside the gap, the gap event does not move the client to the gap's end.
    let around = check(&ledger, "2-0 p a 0\n= gap a 2-0 6-0\n4-1 p b 0\n6-0 p a 4");
    assert_eq!(around, [""; 0]);
    let around = check(&ledger, "2-0 p a 0\n= gap a 2-0 5-0\n4-1 p b 0\n6-0 p a 4");
    assert_eq!(around, ["a: p's 3..=3 did not arrive"]);
}

#[test]
fn a_repeated_gap_is_caught() {
    let again = "2-0 p a 0\n3-0 gap a 2-0 9-0\n= gap a 2-0 9-0\n9-0 p a 7";
    assert_eq!(
        check(&Ledger::new(1), again),
        ["a: a gap was received again"]
    );
    // A client that was cut before it had an id for the gap receives it again.
    let cut = "2-0 p a 0\n= gap a 2-0 9-0\n= open\n3-0 gap a 2-0 9-0\n9-0 p a 7";
    assert_eq!(check(&Ledger::new(1), cut), [""; 0]);
}

#[test]
fn a_gap_without_a_missing_message_is_caught() {
    let violations = check(&Ledger::new(1), "2-0 p a 0\n3-0 gap a 2-0 4-0\n4-0 p a 1");
    assert_eq!(
        violations,
        ["a: nothing is missing between 2-0 and 4-0, where a gap was received"]
    );
}

#[test]
fn a_message_without_an_id_is_caught() {
    let violations = check(&Ledger::new(1), "2-0 p a 0\n= p a 1\n4-0 p a 2");
    assert_eq!(violations, ["a: p's 1 arrived without an id"]);
}

#[test]
fn a_gap_excuses_a_missing_end_only_if_no_message_follows_it() {
    let goal = Goal::from([(("a".into(), "p".into()), 9)]);
    for (script, violations) in [("2-0 0|3-0 gap", 0), ("2-0 0|3-0 gap|4-0 5", 1)] {
        let mut checker = Checker::new(&Ledger::new(1));
        for line in script.split('|') {
            let (id, rest) = line.split_once(' ').unwrap();
            let (event, data) = match rest {
                "gap" => ("gateway.gap", r#"{"channel": "a"}"#.to_owned()),
                seq => ("message", format!("p a {seq} 1700000000000000")),
            };
            checker.see(&Event {
                id: id.into(),
                event: event.into(),
                data,
            });
        }
        checker.finish(&goal);
        assert_eq!(checker.violations().len(), violations, "{script}");
    }
}

#[test]
fn an_unreadable_event_is_a_violation() {
    let mut checker = Checker::new(&Ledger::new(1));
    let gap = |data: &str| Event {
        id: "1-0".into(),
        event: "gateway.gap".into(),
        data: data.into(),
    };
    checker.see(&gap("nothing"));
    checker.see(&gap("{}"));
    assert_eq!(checker.violations().len(), 2);
    // An unreadable id counts as no id.
    assert_eq!(check(&Ledger::new(1), "nonsense p a 0").len(), 2);
}

#[test]
fn a_text_that_one_client_missed_or_saw_twice_is_caught() {
    let ledger = Ledger::new(1);
    let clients = ["1-0 2-0 3-0", "1-0 3-0", "1-0 2-0 2-1 3-0"];
    let mut checkers: Vec<_> = clients.map(|_| Checker::new(&ledger)).into();
    let event = |id: &str, event: &str, data: &str| Event {
        id: id.into(),
        event: event.into(),
        data: data.into(),
    };
    for checker in &mut checkers {
        checker.see(&event("0-5", "gateway.open", "{}"));
        checker.settle();
    }
    for (checker, ids) in checkers.iter_mut().zip(clients) {
        for id in ids.split(' ') {
            checker.see(&event(id, "message", "tick"));
        }
        checker.see(&event("4-0", "gateway.position", "{}"));
    }
    for (checker, came) in checkers.iter_mut().zip([3, 2, 4]) {
        checker.settle();
        assert_eq!(checker.came("tick"), came);
        let violations: Vec<_> = checker
            .violations()
            .iter()
            .map(ToString::to_string)
            .collect();
        let expected = format!("\"tick\" arrived {came} times, elsewhere 4");
        let expected: &[String] = if came == 4 { &[] } else { &[expected] };
        assert_eq!(violations, expected);
    }
    // A gap excuses the client until the next comparison.
    let gap = r#"{"channel": "a", "reason": "forgotten"}"#;
    checkers[1].see(&event("5-0", "gateway.gap", gap));
    checkers[0].see(&event("5-0", "message", "tick"));
    checkers[1].take_violations();
    checkers[1].settle();
    assert_eq!(checkers[1].violations(), []);
    // A gap of another channel is no excuse.
    checkers[1].asks_for(&["a".to_owned()], &["ticks".to_owned()]);
    checkers[1].settle();
    checkers[0].see(&event("6-0", "message", "tick"));
    let gap = r#"{"channel": "a", "after": "5-0", "reason": "forgotten"}"#;
    checkers[1].see(&event("6-0", "gateway.gap", gap));
    checkers[1].settle();
    assert_eq!(checkers[1].take_violations().len(), 1);
    // A client that never received the text is not excused either.
    let mut deaf = Checker::new(&ledger);
    deaf.expect_text("tick");
    for id in ["4-0", "6-0"] {
        deaf.see(&event(id, "gateway.position", "{}"));
        deaf.settle();
    }
    assert_eq!(deaf.take_violations().len(), 1);
}

#[test]
fn a_leak_is_caught() {
    let mut checker = Checker::new(&Ledger::new(1));
    checker.asks_for(&["a".to_owned()], &[]);
    for (id, event, data) in [
        ("2-0", "message", "p a 0 1700000000000000"),
        ("3-0", "message", "p b 0 1700000000000000"),
        ("5-0", "gateway.gap", r#"{"channel": "c"}"#),
    ] {
        checker.see(&Event {
            id: id.into(),
            event: event.into(),
            data: data.into(),
        });
    }
    // A gap of a channel that was not requested is only a leak.
    checker.settle();
    let leaks = ["b", "c"].map(|channel| Violation::Leaked {
        channel: channel.into(),
    });
    assert_eq!(checker.violations(), leaks);
}
