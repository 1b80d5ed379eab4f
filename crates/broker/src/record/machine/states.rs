//! The machine's states as a table, which is in docs/protocol.md: the effect of each input on each state.

use std::fs;

use super::*;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/protocol.md");
const BEGIN: &str = "<!-- states -->\n";
const END: &str = "<!-- /states -->";

/// A machine, and its last requests.
struct Recorder {
    machine: Machine,
    /// The notice of the barrier that it published.
    barrier: String,
    /// The token under which it last asked for the lease.
    token: String,
    notice: String,
}

impl Recorder {
    fn subscribed() -> Self {
        let mut machine = Machine::new("r:1");
        let barrier = machine.begin();
        Self {
            machine,
            barrier,
            token: String::new(),
            notice: String::new(),
        }
    }

    fn listening() -> Self {
        let mut recorder = Self::subscribed();
        recorder.machine.notice(&recorder.barrier);
        recorder
    }

    fn in_sync() -> Self {
        let mut recorder = Self::listening();
        recorder
            .machine
            .notice(&recorder.barrier.replacen('?', "!", 1));
        recorder
    }

    fn fencing() -> Self {
        let mut recorder = Self::in_sync();
        recorder.machine.tick();
        recorder.effects();
        recorder
    }

    fn active() -> Self {
        let mut recorder = Self::fencing();
        recorder.machine.notice(&format!("#{}", recorder.token));
        recorder.machine.reply(Reply::Acquire(Outcome::Done));
        recorder
    }

    fn appending() -> Self {
        let mut recorder = Self::active();
        recorder.raw();
        recorder.effects();
        recorder
    }

    fn carrying() -> Self {
        let mut recorder = Self::active();
        assert!(recorder.machine.carry());
        recorder
    }

    fn draining() -> Self {
        let mut recorder = Self::appending();
        recorder.machine.cut();
        recorder
    }

    fn cut() -> Self {
        let mut recorder = Self::in_sync();
        recorder.machine.cut();
        recorder
    }

    fn stepping_down() -> Self {
        let mut recorder = Self::in_sync();
        recorder.machine.step_down();
        recorder.effects();
        recorder
    }

    fn raw(&mut self) {
        let channel = hub::Partitions::new(1).unwrap().channel("a").unwrap();
        self.machine.raw(channel, Bytes::from_static(b"x")).unwrap();
    }

    /// The names of the effects that it asks for.
    fn effects(&mut self) -> Vec<&'static str> {
        let mut names = Vec::new();
        while let Some(effect) = self.machine.next() {
            names.push(match effect {
                Effect::Acquire {
                    token, preemption, ..
                } => {
                    self.token = token;
                    match preemption {
                        Some(_) => "preempt",
                        None => "acquire",
                    }
                }
                Effect::Renew { .. } => "renew",
                Effect::Append { .. } => "append",
                Effect::PublishBarrier { .. } => "publish barrier",
                Effect::StepDown { notice } => {
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
            _ if machine.has_stepped_down() => "stopped",
            State::Standby if machine.step_down == StepDown::Asked => "stepping down",
            State::Standby if machine.in_sync => "standby",
            State::Standby if machine.barrier.as_ref().is_some_and(has_arrived) => "listening",
            State::Standby => "subscribed",
            State::Fencing { .. } => "fencing",
            State::Active { .. } if machine.in_flight > 0 => "appending",
            State::Active { .. } => "active",
            State::Carrying { .. } => "carrying",
            State::Draining { .. } => "draining",
            State::Cut { .. } => "cut",
        }
    }
}

/// The name of the input, whether it arrives over the subscription, and the call that passes it to the machine.
type Input = (&'static str, bool, fn(&mut Recorder));

const RAW: &str = "raw message";

const STATES: [fn() -> Recorder; 10] = [
    Recorder::subscribed,
    Recorder::listening,
    Recorder::in_sync,
    Recorder::fencing,
    Recorder::active,
    Recorder::appending,
    Recorder::carrying,
    Recorder::draining,
    Recorder::cut,
    Recorder::stepping_down,
];

const INPUTS: [Input; 18] = [
    (RAW, true, Recorder::raw),
    ("end announced", true, |recorder| {
        let channel = hub::Partitions::new(1).unwrap().channel("a").unwrap();
        recorder.machine.end(channel, "5-0");
    }),
    ("own barrier arrives", true, |recorder| {
        recorder.machine.notice(&recorder.barrier.clone())
    }),
    ("own barrier was recorded", true, |recorder| {
        recorder
            .machine
            .notice(&recorder.barrier.replacen('?', "!", 1));
    }),
    ("barrier of another recorder", true, |recorder| {
        recorder.machine.notice("?s:1-1")
    }),
    ("own fence", true, |recorder| {
        recorder.machine.notice(&format!("#{}", recorder.token))
    }),
    ("fence of a recorder in sync", true, |recorder| {
        recorder.machine.notice("#s:1-2")
    }),
    (
        "fence of one out of sync, a message pending",
        true,
        |recorder| {
            recorder.raw();
            recorder.machine.notice("#s:1-2?0");
        },
    ),
    ("lease released", true, |recorder| {
        recorder.machine.notice("~")
    }),
    ("lease denied", false, |recorder| {
        recorder.machine.reply(Reply::Acquire(Outcome::Denied))
    }),
    ("preemption too late", false, |recorder| {
        recorder.machine.reply(Reply::Late)
    }),
    ("append carried out", false, |recorder| {
        recorder.machine.reply(Reply::Append(Outcome::Done))
    }),
    ("append fenced", false, |recorder| {
        recorder.machine.reply(Reply::Append(Outcome::Denied))
    }),
    ("append refused, the partition moves", false, |recorder| {
        recorder.machine.reply(Reply::Append(Outcome::Elsewhere))
    }),
    ("append without an answer", false, |recorder| {
        recorder.machine.reply(Reply::Append(Outcome::Unknown))
    }),
    ("two ticks", false, |recorder| {
        recorder.machine.tick();
        recorder.machine.tick();
    }),
    ("subscription cut", false, |recorder| recorder.machine.cut()),
    ("the replica stops", false, |recorder| {
        recorder.machine.step_down()
    }),
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
            let mut recorder = state();
            let before = recorder.state();
            let is_cut = matches!(
                recorder.machine.state,
                State::Draining { .. } | State::Cut { .. }
            );
            let brings = match recorder.machine.state {
                State::Carrying { .. } => name == RAW,
                _ => !is_cut,
            };
            if is_received && !brings {
                out += " - |";
                continue;
            }
            input(&mut recorder);
            let effects = recorder.effects();
            let after = recorder.state();
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

/// Breaks when the table of the protocol differs from the code. `UPDATE=1` writes it.
#[test]
fn the_table_of_states_agrees_with_the_code() {
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
