//! The machine's states as a table, which docs/protocol.md holds: what each input does to each state.

use std::fs;

use super::*;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
const BEGIN: &str = "<!-- states -->\n";
const END: &str = "<!-- /states -->";

/// A machine, and what it has asked for last.
struct Seat {
    machine: Machine,
    /// Of the barrier that it published.
    barrier: String,
    /// Of the lease that it asked for last.
    token: String,
    notice: String,
}

impl Seat {
    fn subscribed() -> Self {
        let mut machine = Machine::new("r", 1);
        let barrier = machine.begin();
        Self {
            machine,
            barrier,
            token: String::new(),
            notice: String::new(),
        }
    }

    fn listening() -> Self {
        let mut seat = Self::subscribed();
        seat.machine.notice(&seat.barrier);
        seat
    }

    fn in_sync() -> Self {
        let mut seat = Self::listening();
        seat.machine.notice(&seat.barrier.replacen('?', "!", 1));
        seat
    }

    fn fencing() -> Self {
        let mut seat = Self::in_sync();
        seat.machine.tick();
        seat.effects();
        seat
    }

    fn active() -> Self {
        let mut seat = Self::fencing();
        seat.machine.notice(&format!("#{}", seat.token));
        seat.machine.reply(Reply::Acquire(Outcome::Done));
        seat
    }

    fn appending() -> Self {
        let mut seat = Self::active();
        seat.raw();
        seat.effects();
        seat
    }

    fn draining() -> Self {
        let mut seat = Self::appending();
        seat.machine.cut();
        seat
    }

    fn cut() -> Self {
        let mut seat = Self::in_sync();
        seat.machine.cut();
        seat
    }

    fn leaving() -> Self {
        let mut seat = Self::in_sync();
        seat.machine.leave();
        seat.effects();
        seat
    }

    fn raw(&mut self) {
        let channel = hub::Partitions::new(1).unwrap().channel("a").unwrap();
        self.machine.raw(channel, Bytes::from_static(b"x")).unwrap();
    }

    /// What it asks for, until there is nothing.
    fn effects(&mut self) -> Vec<&'static str> {
        let mut names = Vec::new();
        while let Some(effect) = self.machine.next() {
            names.push(match effect {
                Effect::Acquire {
                    token, challenge, ..
                } => {
                    self.token = token;
                    match challenge {
                        Some(_) => "preempt",
                        None => "acquire",
                    }
                }
                Effect::Renew { .. } => "renew",
                Effect::Append { .. } => "append",
                Effect::Ask { .. } => "publish barrier",
                Effect::Leave { notice } => {
                    self.notice = notice;
                    "step down"
                }
            });
        }
        names
    }

    fn state(&self) -> &'static str {
        let machine = &self.machine;
        let has_arrived = |barrier: &Barrier| barrier.behind.is_some();
        match &machine.state {
            _ if machine.has_left() => "stopped",
            State::Standby if machine.leave == Leave::Asked => "stepping down",
            State::Standby if machine.warm => "standby",
            State::Standby if machine.barrier.as_ref().is_some_and(has_arrived) => "listening",
            State::Standby => "subscribed",
            State::Fencing { .. } => "fencing",
            State::Active { .. } if machine.in_flight > 0 => "appending",
            State::Active { .. } => "active",
            State::Draining { .. } => "draining",
            State::Cut { .. } => "cut",
        }
    }
}

/// Its name, whether it arrives over the subscription, and what it does.
type Input = (&'static str, bool, fn(&mut Seat));

const STATES: [fn() -> Seat; 9] = [
    Seat::subscribed,
    Seat::listening,
    Seat::in_sync,
    Seat::fencing,
    Seat::active,
    Seat::appending,
    Seat::draining,
    Seat::cut,
    Seat::leaving,
];

const INPUTS: [Input; 16] = [
    ("raw message", true, Seat::raw),
    ("own barrier arrives", true, |seat| {
        seat.machine.notice(&seat.barrier.clone())
    }),
    ("own barrier was recorded", true, |seat| {
        seat.machine.notice(&seat.barrier.replacen('?', "!", 1));
    }),
    ("barrier of another recorder", true, |seat| {
        seat.machine.notice("?s:1-1")
    }),
    ("own fence", true, |seat| {
        seat.machine.notice(&format!("#{}", seat.token))
    }),
    ("fence of a recorder in sync", true, |seat| {
        seat.machine.notice("#s:1-2")
    }),
    (
        "fence of one out of sync, a message pending",
        true,
        |seat| {
            seat.raw();
            seat.machine.notice("#s:1-2?0");
        },
    ),
    ("lease released", true, |seat| seat.machine.notice("~")),
    ("lease denied", false, |seat| {
        seat.machine.reply(Reply::Acquire(Outcome::Denied))
    }),
    ("preemption too late", false, |seat| {
        seat.machine.reply(Reply::Late)
    }),
    ("append carried out", false, |seat| {
        seat.machine.reply(Reply::Append(Outcome::Done))
    }),
    ("append fenced", false, |seat| {
        seat.machine.reply(Reply::Append(Outcome::Denied))
    }),
    ("append without an answer", false, |seat| {
        seat.machine.reply(Reply::Append(Outcome::Unknown))
    }),
    ("two ticks", false, |seat| {
        seat.machine.tick();
        seat.machine.tick();
    }),
    ("subscription cut", false, |seat| seat.machine.cut()),
    ("the replica stops", false, |seat| seat.machine.leave()),
];

fn table() -> String {
    let mut out = String::from("| |");
    for state in STATES {
        out += &format!(" {} |", state().state());
    }
    out += &format!("\n|---|{}\n", "---|".repeat(STATES.len()));
    for (name, is_received, input) in INPUTS {
        out += &format!("| {name} |");
        for state in STATES {
            let mut seat = state();
            let before = seat.state();
            let is_cut = matches!(
                seat.machine.state,
                State::Draining { .. } | State::Cut { .. }
            );
            if is_received && is_cut {
                out += " - |";
                continue;
            }
            input(&mut seat);
            let effects = seat.effects();
            let after = seat.state();
            let after = if after == before { "=" } else { after };
            let asks = match &effects[..] {
                [] => String::new(),
                effects => format!(": {}", effects.join(", ")),
            };
            out += &format!(" {after}{asks} |");
        }
        out += "\n";
    }
    out
}

/// Breaks when the table of the protocol says something else than the code. `UPDATE=1` writes it.
#[test]
fn the_table_of_states_is_that_of_the_code() {
    let page = fs::read_to_string(PAGE).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the table begins");
    let (found, after) = rest.split_once(END).expect("the table ends");
    let table = table();
    if std::env::var_os("UPDATE").is_some() {
        fs::write(PAGE, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
        return;
    }
    assert!(
        found == table,
        "UPDATE=1 cargo test -p broker states writes it:\n{table}"
    );
}
